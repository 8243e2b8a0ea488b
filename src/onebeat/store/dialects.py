"""SQLite, PostgreSQL, MySQL/MariaDB: the few answers in which they differ."""

from __future__ import annotations

import hashlib
import importlib.util
import random
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import urlencode

from sqlalchemy import (
    BigInteger,
    ClauseElement,
    Connection,
    Integer,
    Select,
    Table,
    Update,
    bindparam,
    cast,
    extract,
    func,
    literal,
    literal_column,
    select,
    text,
    true,
    type_coerce,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite as sqlite_speech
from sqlalchemy.engine import URL
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Insert
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.expression import Executable

from onebeat.errors import ConfigurationError
from onebeat.store.faults import Fault, mysql_fault, postgresql_fault, sqlite_fault

_BIG = BigInteger()
_POOLED = "onebeat_pooled"  # in `Connection.info`


class Dialect(ABC):
    """The answers of one kind of database. Shape the tables first; add a method here only where that ends."""

    name: ClassVar[str]
    driver: ClassVar[str]  # the URL's driver that onebeat opens
    module: ClassVar[str]  # what must be importable for it
    extra: ClassVar[str | None]  # `pip install onebeat[…]`
    update_returning: ClassVar[bool] = True  # UPDATE … RETURNING and DELETE … RETURNING
    arrays: ClassVar[bool] = False  # a list of any length in one bound value, and UPDATE … FROM it
    locks_in_passing: ClassVar[bool] = False  # a locking search locks, for a moment, rows that it then does not want
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

    def greatest(self, a: Any, b: Any) -> ColumnElement[int]:
        """The larger of two numbers; neither may be NULL (databases disagree about that)."""
        return func.greatest(a, b, type_=_BIG)

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

    def adapt(self, url: URL) -> tuple[URL, dict[str, Any]]:
        """The same server with the driver that onebeat opens, and what that driver is told apart from the URL."""
        return url.set(drivername=f"{self.name}+{self.driver}"), {}

    pooled_arguments: ClassVar[dict[str, Any] | None] = (
        None  # how to connect through a transaction pooler; None: never so
    )


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
        return type_coerce(milliseconds * literal_column("1000"), _BIG)

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

    def greatest(self, a: Any, b: Any) -> ColumnElement[int]:
        """`max` of two arguments is scalar here."""
        return func.max(a, b, type_=_BIG)

    def classify(self, error: BaseException) -> Fault:
        """By result code."""
        return sqlite_fault(error)

    def begin(self, connection: Connection, *, write: bool) -> None:
        """Take the write lock at once: an upgrade in mid-transaction fails without waiting.

        Waiting is a steady poll: SQLite's own busy handler sleeps longer and longer, up to 100 ms, so that whoever has
        waited longest would be served last.
        """
        driver = self._driver(connection)
        if not write:
            driver.execute("BEGIN")
            return
        deadline = time.monotonic() + self.busy_timeout
        while True:
            try:
                driver.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if sqlite_fault(error) is not Fault.RETRY or time.monotonic() > deadline:
                    raise
            time.sleep(random.uniform(*self.poll))  # noqa: S311 - so that two who wait do not march in step

    busy_timeout: ClassVar[float] = 5.0  # seconds
    poll: ClassVar[tuple[float, float]] = (0.0003, 0.0015)  # seconds between two looks at a lock that others hold

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


class PostgreSQL(Dialect):
    """PostgreSQL 13 and later, directly or through PgBouncer in transaction mode."""

    name = "postgresql"
    driver = "asyncpg"
    module = "asyncpg"
    extra = "postgresql"
    arrays = True

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

    def unflushed(self, change: Update) -> Update:
        """`synchronous_commit` of this transaction alone; later commits flush what came before them in the log."""
        return change.where(func.set_config("synchronous_commit", "off", true()) == "off")

    def classify(self, error: BaseException) -> Fault:
        """By SQLSTATE."""
        return postgresql_fault(error)

    # Unnamed statements only: a named one stays behind on a server connection that the pooler gives to the next.
    pooled_arguments: ClassVar[dict[str, Any] | None] = {
        "statement_cache_size": 0,
        "prepared_statement_cache_size": 0,
        "prepared_statement_name_func": lambda: "",
    }
    # In the query of a URL these are the driver's own parameters; everything else is libpq's and goes into its DSN.
    _NUMBERS = ("statement_cache_size", "max_cached_statement_lifetime", "max_cacheable_statement_size")
    _OWN = (
        *_NUMBERS,
        "prepared_statement_cache_size",
        "command_timeout",
        "timeout",
        "ssl",
        "direct_tls",
        "host",
        "port",
    )

    def adapt(self, url: URL) -> tuple[URL, dict[str, Any]]:
        """libpq's parameters (`sslmode`, `application_name`, …) are taken as they are written for other drivers."""
        query = {key: value if isinstance(value, str) else value[-1] for key, value in url.query.items()}
        arguments: dict[str, Any] = {key: int(query[key]) for key in self._NUMBERS if key in query}
        if "connect_timeout" in query:
            arguments["timeout"] = float(query.pop("connect_timeout"))
        arguments |= {key: float(query[key]) for key in ("command_timeout", "timeout") if key in query}
        foreign = {key: value for key, value in query.items() if key not in self._OWN}
        if foreign:
            arguments["dsn"] = f"postgresql:///?{urlencode(foreign)}"
        adapted, _ = super().adapt(url)
        return adapted.difference_update_query([*foreign, *arguments, "connect_timeout"]), arguments

    def begin(self, connection: Connection, *, write: bool) -> None:
        """The level is named in the statement: no server default and no pooler can change it."""
        self._simple(connection, self._BEGIN_POOLED if connection.info.get(_POOLED) else self._BEGIN)

    _BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
    _BEGIN_POOLED = (
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '30s'; "
        "SET LOCAL idle_in_transaction_session_timeout = '60s'; SET LOCAL enable_bitmapscan = off; "
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
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
        )

    def inspect(self, connection: Connection) -> tuple[list[str], bool]:
        """A pooler gives a backend process of its own invention in the handshake."""
        _require_version("PostgreSQL", connection.dialect.server_version_info, (13,))
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
        connection.execute(select(func.pg_advisory_xact_lock(literal(key, _BIG))))
        return True


class MySQL(Dialect):
    """MariaDB 10.6 and MySQL 8.0, and later."""

    name = "mysql"
    driver = "asyncmy"
    module = "asyncmy"
    extra = "mysql"
    update_returning = False
    locks_in_passing = True
    transactional_ddl = False

    def clock_expression(self) -> ColumnElement[int]:
        """No session time zone takes part in it."""
        return type_coerce(
            func.timestampdiff(
                literal_column("MICROSECOND"),
                literal_column("'1970-01-01 00:00:00'"),
                func.utc_timestamp(literal_column("6")),
            ),
            _BIG,
        )

    def insert_ignore(self, table: Table) -> Insert:
        """INSERT IGNORE."""
        return mysql.insert(table).prefix_with("IGNORE")

    def upsert(
        self,
        table: Table,
        values: Mapping[str, Any],
        *,
        key: Sequence[str],
        update: Mapping[str, Any],
        where: ColumnElement[bool] | None = None,
    ) -> Insert:
        """ON DUPLICATE KEY UPDATE, for any unique key: `key` must be the only one that can collide."""
        if where is not None:
            raise AssertionError("ON DUPLICATE KEY UPDATE has no WHERE; make the condition part of `update`")
        return mysql.insert(table).values(**values).on_duplicate_key_update(list(update.items()))

    def classify(self, error: BaseException) -> Fault:
        """By error number."""
        return mysql_fault(error)

    def begin(self, connection: Connection, *, write: bool) -> None:
        """START TRANSACTION, at the level that `setup` gave the session."""
        connection.exec_driver_sql("START TRANSACTION")

    def setup(self, connection: Connection, *, pooled: bool) -> None:
        """READ COMMITTED, strict values, limits of time; what only MariaDB has stands in its own kind of comment.

        No notes are kept of rows that `insert_ignore` leaves out: the driver would log a warning of each.
        """
        connection.exec_driver_sql("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        connection.exec_driver_sql(
            "SET SESSION sql_mode = 'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION', "
            "max_error_count = 0, "
            "innodb_lock_wait_timeout = 5 /*M!100600 , max_statement_time = 30, idle_transaction_timeout = 60 */"
        )

    def inspect(self, connection: Connection) -> tuple[list[str], bool]:
        """Durability and replication are the server's own settings; what weakens a promise is said."""
        mariadb = bool(getattr(connection.dialect, "is_mariadb", False))
        found = connection.dialect.server_version_info
        _require_version("MariaDB" if mariadb else "MySQL", found, (10, 6) if mariadb else (8, 0))
        cautions = []
        row = connection.execute(
            text("SELECT @@innodb_flush_log_at_trx_commit, @@log_bin, @@sync_binlog, @@binlog_format")
        ).one()
        if int(row[0]) != 1:
            cautions.append(
                f"innodb_flush_log_at_trx_commit is {row[0]}: a power cut may undo the last commits; 1 does not"
            )
        if int(row[1]) and int(row[2]) != 1:
            cautions.append(f"sync_binlog is {row[2]}: a power cut may part the server from its replicas; 1 does not")
        if int(row[1]) and str(row[3]).upper() == "STATEMENT":
            cautions.append("binlog_format is STATEMENT, which does not replicate claims faithfully; use ROW or MIXED")
        return cautions, False

    def migration_lock(self, connection: Connection, name: str, timeout: float) -> bool:
        """GET_LOCK; its names are per server and at most 64 characters."""
        connection.exec_driver_sql("SET SESSION lock_wait_timeout = 60 /*M!100600 , max_statement_time = 0 */")
        return (
            connection.execute(text("SELECT GET_LOCK(:name, :s)"), {"name": self._lock(name), "s": timeout}).scalar()
            == 1
        )

    def migration_unlock(self, connection: Connection, name: str) -> None:
        """RELEASE_LOCK; the end of the connection would do it too."""
        connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": self._lock(name)})

    @staticmethod
    def _lock(name: str) -> str:
        return f"onebeat-{hashlib.sha256(name.encode()).hexdigest()[:48]}"


def _require_version(product: str, found: tuple[Any, ...] | None, oldest: tuple[int, ...]) -> None:
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


_DIALECTS: dict[str, Dialect] = {"sqlite": SQLite(), "postgresql": PostgreSQL(), "mysql": MySQL(), "mariadb": MySQL()}
_ALIASES = {"postgres": "postgresql"}


def dialect_for(url: URL) -> Dialect:
    """The answers for the database a URL names.

    Raises `ConfigurationError` for a scheme onebeat does not know.

    >>> from sqlalchemy import make_url
    >>> dialect_for(make_url("mariadb+pymysql://host/app")).name
    'mysql'
    """
    scheme = url.drivername.partition("+")[0].lower()
    try:
        return _DIALECTS[_ALIASES.get(scheme, scheme)]
    except KeyError:
        raise ConfigurationError(
            f"the database URL starts with {scheme!r}; onebeat works with sqlite, postgresql, mysql and mariadb "
            "(for example sqlite:///app.db or postgresql://user@host/name)"
        ) from None


def select_clock(expression: ColumnElement[int]) -> Select[tuple[int]]:
    """A statement that asks for nothing but the time."""
    return select(expression.label("now_us"))


def bound_clock(read: Callable[[], int]) -> ColumnElement[int]:
    """A virtual clock, as an expression that is read anew at each execution."""
    return bindparam("onebeat_now", callable_=read, type_=_BIG)
