"""MySQL and MariaDB."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Column,
    Connection,
    Select,
    String,
    Table,
    bindparam,
    column,
    func,
    literal_column,
    select,
    text,
    type_coerce,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Insert
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement

from onebeat.errors import ConfigurationError
from onebeat.store.dialects.base import BIG, Dialect, require_version
from onebeat.store.dialects.mysql_url import adapt_mysql
from onebeat.store.dialects.url_query import Adapted
from onebeat.store.faults import Fault, mysql_fault


class MySQL(Dialect):
    """MariaDB 10.6 and MySQL 8.0, and later."""

    name = "mysql"
    driver = "asyncmy"
    module = "asyncmy"
    extra = "mysql"
    update_returning = False
    pipelines = False
    locks_in_passing = True
    insert_locks_taken_keys = True
    searches_steps = False
    transactional_ddl = False

    def clock_expression(self) -> ColumnElement[int]:
        """No session time zone takes part in it."""
        return type_coerce(
            func.timestampdiff(
                literal_column("MICROSECOND"),
                literal_column("'1970-01-01 00:00:00'"),
                func.utc_timestamp(literal_column("6")),
            ),
            BIG,
        )

    def current_read(self, select: Select[Any]) -> Select[Any]:
        """A locking read: at REPEATABLE READ, the default level, others see the snapshot of the first read."""
        return select.with_for_update(read=True)

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

    def given_rows(self, **columns: Column[Any]) -> Any:
        """A JSON list as a table."""
        speech = mysql.dialect()
        described: list[ColumnElement[Any]] = [
            literal_column(f"{name} {like.type.compile(dialect=speech)} PATH '$.{name}'")
            for name, like in columns.items()
        ]
        rows = _JsonTable(bindparam("given", type_=String()), *described)
        return rows.table_valued(*[column(name, like.type) for name, like in columns.items()], name="given").c

    def given(self, rows: Sequence[Mapping[str, Any]], **shared: Any) -> Any:
        """One JSON text."""
        return {"given": json.dumps(rows, default=_hex), **shared}

    def insert_given(self, table: Table, columns: Sequence[str]) -> Insert:
        """INSERT … SELECT: the rows are one value, so none of them costs a message of its own."""
        given = self.given_rows(**{f"b_{name}": table.c[name] for name in columns})
        return table.insert().from_select(list(columns), select(*[getattr(given, f"b_{name}") for name in columns]))

    def classify(self, error: BaseException) -> Fault:
        """By error number."""
        return mysql_fault(error)

    def adapt(self, url: URL) -> Adapted:
        """Read the parameters of MySQL's client, hosters and other drivers."""
        return adapt_mysql(url)

    def on_connect(self, connection: DBAPIConnection) -> None:
        """Set strict values, and undo server defaults that change how statements read and transactions end.

        SQLAlchemy reads `sql_mode` from the first connection and quotes names as ANSI_QUOTES says, so this comes first.
        `completion_type` CHAIN would begin a transaction after each COMMIT.
        """
        cursor = connection.cursor()
        cursor.execute(
            "SET SESSION sql_mode = 'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION', "
            "completion_type = 'NO_CHAIN'"
        )
        cursor.close()

    def begin(self, connection: Connection, *, write: bool) -> None:
        """START TRANSACTION, at the level that `setup` gave the session."""
        connection.exec_driver_sql("START TRANSACTION")

    def setup(self, connection: Connection, *, pooled: bool) -> None:
        """READ COMMITTED and limits of time; what only MariaDB has stands in its own kind of comment.

        No notes are kept of rows that `insert_ignore` leaves out: the driver would log a warning of each.
        """
        connection.exec_driver_sql("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        connection.exec_driver_sql(
            "SET SESSION max_error_count = 0, "
            "innodb_lock_wait_timeout = 5 /*M!100600 , max_statement_time = 30, idle_transaction_timeout = 60 */"
        )

    def inspect(self, connection: Connection) -> tuple[list[str], bool]:
        """Durability and replication are the server's own settings; what weakens a promise is said."""
        mariadb = bool(getattr(connection.dialect, "is_mariadb", False))
        found = connection.dialect.server_version_info
        require_version("MariaDB" if mariadb else "MySQL", found, (10, 6) if mariadb else (8, 0))
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
            raise ConfigurationError(
                "the server's binlog_format is STATEMENT, with which InnoDB refuses what onebeat writes (it needs READ "
                "COMMITTED); set binlog_format to ROW or MIXED"
            )
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


class _JsonTable(FunctionElement[Any]):
    """JSON_TABLE of a list of objects: the list, then the description of each column."""

    name = "json_table"
    inherit_cache = True


@compiles(_JsonTable)
def _compile_json_table(element: _JsonTable, compiler: SQLCompiler, **kw: Any) -> str:
    rows, *columns = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"JSON_TABLE({rows}, '$[*]' COLUMNS ({', '.join(columns)}))"


def _hex(id: UUID) -> str:
    """Return a job's id as JSON holds it."""
    return id.hex
