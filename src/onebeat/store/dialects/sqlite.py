"""SQLite: one file, one writer at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, CursorResult, Integer, Select, Table, cast, func, literal_column, type_coerce
from sqlalchemy.dialects import sqlite as sqlite_speech
from sqlalchemy.engine import URL
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Insert
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.expression import Executable

from onebeat.store.dialects.base import BIG, Dialect
from onebeat.store.dialects.url_query import IGNORED, Adapted, UrlQuery
from onebeat.store.faults import Fault, sqlite_fault


class SQLite(Dialect):
    """One file, one writer at a time."""

    name = "sqlite"
    driver = "pysqlite"
    module = "sqlite3"
    extra = None
    one_writer = True
    explain_verb = "EXPLAIN QUERY PLAN"

    def clock_expression(self) -> ColumnElement[int]:
        """Milliseconds, on every version: `unixepoch('subsec')` is NULL before 3.42."""
        days = func.julianday(literal_column("'now'"))
        milliseconds = cast((days - literal_column("2440587.5")) * literal_column("86400000"), Integer)
        return type_coerce(milliseconds * literal_column("1000"), BIG)

    def skip_locked(self, select: Select[Any]) -> Select[Any]:
        """Nothing to skip: whoever writes is alone."""
        return select

    def lock_rows(self, select: Select[Any]) -> Select[Any]:
        """`BEGIN IMMEDIATE` has locked everything already."""
        return select

    def insert_ignore(self, table: Table) -> Insert:
        """ON CONFLICT DO NOTHING, for any unique key."""
        return sqlite_speech.insert(table).on_conflict_do_nothing()

    def upsert(
        self,
        table: Table,
        values: Mapping[str, Any],
        *,
        key: Sequence[str],
        update: Mapping[str, Any],
        where: ColumnElement[bool] | None = None,
    ) -> Insert:
        """ON CONFLICT DO UPDATE."""
        insert = sqlite_speech.insert(table).values(**values)
        return insert.on_conflict_do_update(index_elements=list(key), set_=dict(update), where=where)

    def execute_given(
        self, connection: Connection, statement: Executable, parameters: Any, cache: dict[Any, Any]
    ) -> CursorResult[Any]:
        """Hand the rows to the driver as they are: what SQLAlchemy does for each costs more than its statement."""
        direct = cache.get(statement)
        if direct is None:
            direct = cache[statement] = _Direct(connection, statement)
        return connection.exec_driver_sql(direct.text, direct.rows(parameters))

    def greatest(self, a: Any, b: Any) -> ColumnElement[int]:
        """`max` of two arguments is scalar here."""
        return func.max(a, b, type_=BIG)

    def classify(self, error: BaseException) -> Fault:
        """By result code."""
        return sqlite_fault(error)

    def adapt(self, url: URL) -> Adapted:
        """Keep the parameters of SQLite's own file names; the driver's own are onebeat's to set."""
        query = UrlQuery(url)
        kept = query.rest(("mode", "cache", "vfs", "psow", "nolock", "immutable", "uri"))
        cautions = query.finish((*IGNORED, "timeout", "busy_timeout", "journal_mode", "check_same_thread", "charset"))
        return Adapted(url=url.set(drivername="sqlite+pysqlite", query=kept), cautions=cautions)

    def begin(self, connection: Connection, *, write: bool) -> None:
        """Take the write lock at once: an upgrade in mid-transaction fails without waiting.

        Raises "database is locked" while another connection holds the lock; `SQLiteThread` tries again.
        """
        self._driver(connection).execute("BEGIN IMMEDIATE" if write else "BEGIN")

    def commit(self, connection: Connection) -> None:
        """Make it last; a COMMIT that fails has not happened."""
        self._driver(connection).execute("COMMIT")

    @staticmethod
    def _driver(connection: Connection) -> sqlite3.Connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        return driver

    def migration_lock(self, connection: Connection, name: str, timeout: float) -> bool:
        """The transaction is the lock; but PRAGMAs answer from a cached schema until a statement has compared it."""
        connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one()
        return True

    def rollback(self, connection: Connection) -> None:
        """SQLite may have rolled back by itself (a full disk); then there is nothing to undo."""
        driver = self._driver(connection)
        if driver.in_transaction:
            driver.execute("ROLLBACK")


class _Direct:
    """A statement as text with the order of its values, and what turns them into those of the driver."""

    def __init__(self, connection: Connection, statement: Executable) -> None:
        compiled = statement.compile(dialect=connection.dialect)  # type: ignore[attr-defined]  # a ClauseElement too
        assert isinstance(compiled, SQLCompiler)
        assert compiled.positiontup is not None, "SQLite's placeholders are question marks"
        self.text = str(compiled)
        names = compiled.positiontup
        self._values = itemgetter(*names)
        self._constants = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}
        changed = (
            (place, compiled.binds[name].type.dialect_impl(connection.dialect).bind_processor(connection.dialect))
            for place, name in enumerate(names)
        )
        self._changed = [(place, change) for place, change in changed if change is not None]

    def rows(self, parameters: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
        """The values of each row in the order of the text."""
        if self._constants:
            parameters = [{**self._constants, **row} for row in parameters]
        rows: list[tuple[Any, ...]] = list(map(self._values, parameters))
        if self._changed:
            changing = list(map(list, rows))
            for place, change in self._changed:
                for row in changing:
                    row[place] = change(row[place])
            rows = list(map(tuple, changing))
        return rows
