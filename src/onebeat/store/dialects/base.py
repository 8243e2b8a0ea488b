"""The questions that a kind of database answers."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    ClauseElement,
    Column,
    Connection,
    CursorResult,
    Select,
    Table,
    Update,
    bindparam,
    func,
    select,
)
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Insert
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.expression import Executable

from onebeat.errors import ConfigurationError
from onebeat.store.dialects.url_query import Adapted
from onebeat.store.faults import Fault

BIG = BigInteger()


class Dialect(ABC):
    """The answers of one kind of database. Shape the tables first; add a method here only where that ends."""

    name: ClassVar[str]
    driver: ClassVar[str]  # the URL's driver that onebeat opens
    module: ClassVar[str]  # what must be importable for it
    extra: ClassVar[str | None]  # `pip install onebeat[…]`
    update_returning: ClassVar[bool] = True  # UPDATE … RETURNING and DELETE … RETURNING
    arrays: ClassVar[bool] = False  # a list of any length in one bound value, and UPDATE … FROM it
    pipelines: ClassVar[bool] = True  # one statement with many sets of values costs no round trip for each of them
    locks_in_passing: ClassVar[bool] = False  # a locking search locks, for a moment, rows that it then does not want
    lateral: ClassVar[bool] = False  # LATERAL: a search for each row of another one
    searches_steps: ClassVar[bool] = True  # a recursive query searches an index with values of the step before
    insert_locks_taken_keys: ClassVar[bool] = False  # an INSERT that meets a taken key keeps a shared lock on it
    error_aborts_transaction: ClassVar[bool] = False  # after one failed statement only a rollback is possible
    one_writer: ClassVar[bool] = False  # a file with a single writer, on threads of onebeat's own
    transactional_ddl: ClassVar[bool] = True

    @abstractmethod
    def clock_expression(self) -> ColumnElement[int]:
        """The database's own now in UTC microseconds, taken at the start of the statement."""

    def skip_locked(self, select: Select[Any]) -> Select[Any]:
        """Lock the rows found and leave out those another transaction has locked."""
        return select.with_for_update(skip_locked=True)

    def lock_rows(self, select: Select[Any]) -> Select[Any]:
        """Lock the rows found, waiting for those another transaction has locked."""
        return select.with_for_update()

    def current_read(self, select: Select[Any]) -> Select[Any]:
        """Read what is committed now, also where the transaction reads an older snapshot otherwise."""
        return select

    @abstractmethod
    def insert_ignore(self, table: Table) -> Insert:
        """An INSERT that leaves the table as it is where a unique key is taken; `rowcount` tells how many went in.

        It never fails the caller's transaction. On MySQL other defects of a row are ignored too (a NULL, a text too
        long, become a neighbouring value), so check values before.
        """

    @abstractmethod
    def upsert(
        self,
        table: Table,
        values: Mapping[str, Any],
        *,
        key: Sequence[str],
        update: Mapping[str, Any],
        where: ColumnElement[bool] | None = None,
    ) -> Insert:
        """Insert `values`, or apply `update` (values or expressions) to the row that holds `key`.

        In `update` a column of `table` means the row as it was. Name a column after those whose old value its
        expression needs: MySQL assigns from left to right. `rowcount` is not comparable between databases.
        `where`: leave the row alone unless it fulfils this; only where `update_returning` (MySQL has no such clause).
        """

    def among(self, column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
        """`column` is one of the values bound as the list `name`; give it `padded`, as each length is a statement."""
        return column.in_(bindparam(name, expanding=True))

    def given_rows(self, **columns: Column[Any]) -> Any:
        """Return an object whose attributes are the values of `given`, each typed as the column of the same keyword.

        A statement that changes one row of a table for each given one is built with them. Databases to which a list of
        rows can be sent as one value run it once; SQLite, to which the way is short, once for each row.
        """
        return SimpleNamespace(**{name: bindparam(name, type_=column.type) for name, column in columns.items()})

    def given(self, rows: Sequence[Mapping[str, Any]], **shared: Any) -> Any:
        """Return the parameters of a statement built with `given_rows`; `shared` are its other bound values."""
        return [{**row, **shared} for row in rows]

    def insert_given(self, table: Table, columns: Sequence[str]) -> Insert:
        """An INSERT of the rows of `given`; each holds a value for all of `columns` under its name with `b_` before."""
        given = self.given_rows(**{f"b_{name}": table.c[name] for name in columns})
        return table.insert().values({name: getattr(given, f"b_{name}") for name in columns})

    def execute_given(
        self, connection: Connection, statement: Executable, parameters: Any, cache: dict[Any, Any]
    ) -> CursorResult[Any]:
        """Run a statement that was built with `given_rows` and kept by `Tx.prepared`; `parameters` come from `given`.

        `cache` keeps what is made of the statement.
        """
        return connection.execute(statement, parameters)

    def greatest(self, a: Any, b: Any) -> ColumnElement[int]:
        """The larger of two numbers; neither may be NULL (databases disagree about that)."""
        return func.greatest(a, b, type_=BIG)

    def unflushed(self, change: Update) -> Update:
        """The same change, whose commit does not wait for the disk where a statement can ask for that.

        Only for what a crash may undo, and as its transaction's one change: all of that commits so.
        """
        return change

    @abstractmethod
    def classify(self, error: BaseException) -> Fault:
        """What an error means for what happens next."""

    # ── one transaction, in text, on a connection in driver autocommit ────────────────────────────────────────────────
    def begin(self, connection: Connection, *, write: bool) -> None:
        """Start a transaction at READ COMMITTED (on SQLite: holding the write lock when `write`)."""
        connection.exec_driver_sql("BEGIN")

    def commit(self, connection: Connection) -> None:
        """Make it last."""
        connection.exec_driver_sql("COMMIT")

    def rollback(self, connection: Connection) -> None:
        """Undo it; harmless when there is nothing to undo."""
        connection.exec_driver_sql("ROLLBACK")

    def setup(self, connection: Connection, *, pooled: bool) -> None:
        """Prepare a new connection: isolation, limits of time, checks of values.

        `pooled`: a transaction pooler stands between, so nothing may be set for longer than a transaction.
        """
        return

    def inspect(self, connection: Connection) -> tuple[list[str], bool]:
        """Look at a server once: cautions in words, and whether a transaction pooler stands between.

        Raises `ConfigurationError` for a server too old.
        """
        return [], False

    def migration_lock(self, connection: Connection, name: str, timeout: float) -> bool:
        """Wait until no other process migrates these tables; held until the transaction ends or `migration_unlock`."""
        return True

    def migration_unlock(self, connection: Connection, name: str) -> None:
        """Let the next one in, where the end of the transaction does not."""
        return

    explain_verb: ClassVar[str] = "EXPLAIN"

    def explain(self, connection: Connection, statement: ClauseElement) -> str:
        """The plan of a statement in the database's own words, a line for each step; for tests of indexes."""
        rows = connection.execute(_Explain(self.explain_verb, statement))
        return "\n".join(" ".join(str(value) for value in row) for row in rows)

    def require_driver(self) -> None:
        """Raise `ConfigurationError` naming the extra when the driver is not installed."""
        if importlib.util.find_spec(self.module) is None:
            raise ConfigurationError(
                f"{self.name} needs the driver {self.module}, which is not installed; "
                f"pip install 'onebeat[{self.extra}]'"
            )

    @abstractmethod
    def adapt(self, url: URL) -> Adapted:
        """Return the same database with the driver that onebeat opens, and what that driver is told besides.

        Raises `ConfigurationError`, which names the parameter, for one that is unknown or cannot work.
        """

    def on_connect(self, connection: DBAPIConnection) -> None:
        """Prepare a new driver connection before SQLAlchemy looks at it."""
        return

    pooled_arguments: ClassVar[dict[str, Any] | None] = (
        None  # how to connect through a transaction pooler; None: never so
    )


def select_clock(expression: ColumnElement[int]) -> Select[tuple[int]]:
    """A statement that asks for nothing but the time."""
    return select(expression.label("now_us"))


def bound_clock(read: Callable[[], int]) -> ColumnElement[int]:
    """A virtual clock, as an expression that is read anew at each execution."""
    return bindparam("onebeat_now", callable_=read, type_=BIG)


def require_version(product: str, found: tuple[Any, ...] | None, oldest: tuple[int, ...]) -> None:
    """Raise `ConfigurationError` for a server older than onebeat works with."""
    if found is not None and tuple(found) < oldest:
        dotted = ".".join(str(part) for part in found), ".".join(str(part) for part in oldest)
        raise ConfigurationError(f"the server is {product} {dotted[0]}; onebeat needs {dotted[1]} or later")


class _Explain(Executable, ClauseElement):
    """A statement with EXPLAIN before it, its bound values in place."""

    inherit_cache = False

    def __init__(self, verb: str, statement: ClauseElement) -> None:
        self.verb = verb
        self.statement = statement


@compiles(_Explain)
def _compile_explain(element: _Explain, compiler: SQLCompiler, **kw: Any) -> str:
    inner = compiler.process(element.statement, **kw)
    compiler._result_columns.clear()  # the plan's columns are not the statement's
    return f"{element.verb} {inner}"
