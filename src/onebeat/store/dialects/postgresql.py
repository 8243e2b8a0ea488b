"""PostgreSQL, directly or through a transaction pooler."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    String,
    Table,
    Update,
    bindparam,
    cast,
    column,
    extract,
    func,
    literal,
    literal_column,
    select,
    text,
    true,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import URL
from sqlalchemy.sql.dml import Insert
from sqlalchemy.sql.elements import ColumnElement

from onebeat.store.dialects.base import BIG, Dialect, require_version
from onebeat.store.dialects.postgresql_url import adapt_postgresql
from onebeat.store.dialects.url_query import Adapted
from onebeat.store.faults import Fault, postgresql_fault

_POOLED = "onebeat_pooled"  # in `Connection.info`


class PostgreSQL(Dialect):
    """PostgreSQL 13 and later, directly or through PgBouncer in transaction mode."""

    name = "postgresql"
    driver = "asyncpg"
    module = "asyncpg"
    extra = "postgresql"
    arrays = True
    lateral = True
    error_aborts_transaction = True

    def clock_expression(self) -> ColumnElement[int]:
        """`statement_timestamp()` is stable, so an index can use it; `now()` stands still through a transaction."""
        return cast(extract("epoch", func.statement_timestamp()) * literal_column("1000000"), BigInteger)

    def insert_ignore(self, table: Table) -> Insert:
        """ON CONFLICT DO NOTHING, for any unique key."""
        return postgresql.insert(table).on_conflict_do_nothing()

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
        insert = postgresql.insert(table).values(**values)
        return insert.on_conflict_do_update(index_elements=list(key), set_=dict(update), where=where)

    def among(self, column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
        """One array instead of a parameter for each value: nothing to render, and one plan for every length."""
        return column == func.any(bindparam(name, type_=postgresql.ARRAY(column.type)))

    def given_rows(self, **columns: Column[Any]) -> Any:
        """A JSON list as a table."""
        rows = func.json_to_recordset(cast(bindparam("given", type_=String()), postgresql.JSON()))
        names = [column(name, like.type) for name, like in columns.items()]
        return rows.table_valued(*names, name="given").render_derived(name="given", with_types=True).c

    def given(self, rows: Sequence[Mapping[str, Any]], **shared: Any) -> Any:
        """One JSON text."""
        return {"given": json.dumps(rows, default=_hex), **shared}

    def unflushed(self, change: Update) -> Update:
        """`synchronous_commit` of this transaction alone; later commits flush what came before them in the log."""
        return change.where(func.set_config("synchronous_commit", "off", true()) == "off")

    def insert_given(self, table: Table, columns: Sequence[str]) -> Insert:
        """INSERT … SELECT: the rows are one value, so none of them costs a message of its own."""
        given = self.given_rows(**{f"b_{name}": table.c[name] for name in columns})
        return table.insert().from_select(list(columns), select(*[getattr(given, f"b_{name}") for name in columns]))

    def classify(self, error: BaseException) -> Fault:
        """By SQLSTATE."""
        return postgresql_fault(error)

    # Unnamed statements only: a named one stays behind on a server connection that the pooler gives to the next.
    pooled_arguments: ClassVar[dict[str, Any] | None] = {
        "statement_cache_size": 0,
        "prepared_statement_cache_size": 0,
        "prepared_statement_name_func": lambda: "",
    }

    def adapt(self, url: URL) -> Adapted:
        """Read the parameters of libpq, hosters and other drivers."""
        return adapt_postgresql(url)

    def begin(self, connection: Connection, *, write: bool) -> None:
        """The level is named in the statement: no server default and no pooler can change it.

        What is written is found by an index, whatever the statistics say: a scan is never planned where one would do.
        """
        begin = self._BEGIN_POOLED if connection.info.get(_POOLED) else self._BEGIN
        self._simple(connection, f"{begin}; SET LOCAL enable_seqscan = off" if write else begin)

    _BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
    _BEGIN_POOLED = (
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '30s'; "
        "SET LOCAL idle_in_transaction_session_timeout = '60s'; SET LOCAL enable_bitmapscan = off; "
        "SET LOCAL jit = off; "
        "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
    )

    def commit(self, connection: Connection) -> None:
        """COMMIT; the server answers ROLLBACK to a failed transaction, which is an error here."""
        if self._simple(connection, "COMMIT") == "ROLLBACK":
            raise AssertionError("the transaction had failed before; it cannot be committed")

    def rollback(self, connection: Connection) -> None:
        """ROLLBACK; a warning at most when there is nothing to undo."""
        self._simple(connection, "ROLLBACK")

    def setup(self, connection: Connection, *, pooled: bool) -> None:
        """Limits of time for this connection, and durable commits although the role may have them off."""
        connection.info[_POOLED] = pooled
        if pooled:
            return  # each BEGIN says it
        self._simple(
            connection,
            "SET default_transaction_isolation = 'read committed'; SET lock_timeout = '5s'; "
            "SET statement_timeout = '30s'; SET idle_in_transaction_session_timeout = '60s'; "
            # a queue's statistics are stale by nature: without this a claim may sort the whole backlog
            "SET enable_bitmapscan = off; "
            # its costs grow with the guessed backlog: above 100,000 every claim would be compiled first, for 0.2 s
            "SET jit = off; "
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
        )

    def inspect(self, connection: Connection) -> tuple[list[str], bool]:
        """A pooler gives a backend process of its own invention in the handshake."""
        require_version("PostgreSQL", connection.dialect.server_version_info, (13,))
        self.begin(connection, write=False)
        process = connection.execute(select(func.pg_backend_pid())).scalar_one()
        self.rollback(connection)
        told = getattr(connection.connection.driver_connection, "get_server_pid", lambda: process)()
        return [], told != process

    def _simple(self, connection: Connection, statement: str) -> str | None:
        """One round trip without a prepared statement, so that a transaction pooler keeps it in one piece."""
        adapted = connection.connection.dbapi_connection
        if connection.dialect.driver != self.driver:  # the caller's engine has another driver
            connection.exec_driver_sql(statement)
            return None
        status: str = adapted.run_async(lambda raw: raw.execute(statement))  # type: ignore[union-attr]  # AdaptedConnection
        return status

    def migration_lock(self, connection: Connection, name: str, timeout: float) -> bool:
        """An advisory lock that ends with the transaction."""
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
        connection.execute(text("SELECT set_config('lock_timeout', :ms, true)"), {"ms": str(int(timeout * 1000))})
        connection.execute(text("SELECT set_config('statement_timeout', '0', true)"))
        connection.execute(select(func.pg_advisory_xact_lock(literal(key, BIG))))
        return True


def _hex(id: UUID) -> str:
    """Return a job's id as JSON holds it."""
    return id.hex
