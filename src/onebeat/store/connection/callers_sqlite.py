"""The caller's SQLite engine: `configure_sqlite`, and which task or thread has a write transaction open on a file."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Connection, event
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from onebeat.errors import ConfigurationError, DatabaseUnavailable
from onebeat.store.connection.autocommit import is_autocommit
from onebeat.store.connection.sqlite_file import BUSY_TIMEOUT, check_synchronous, file_of

Begin = Literal["write", "immediate"]
Owner = asyncio.Task[Any] | threading.Thread

# Statements that take no write lock, or that SQLite refuses inside a transaction; any other one may write.
_WITHOUT_LOCK = frozenset(
    "SELECT VALUES EXPLAIN PRAGMA ATTACH DETACH VACUUM BEGIN COMMIT END ROLLBACK RELEASE".split()  # noqa: SIM905
)
_FIRST_WORD = re.compile(r"(?:\s|;|--[^\n]*(?:\n|$)|/\*.*?\*/)*([A-Za-z]+)", re.DOTALL)
_WRITE_IN_WITH = re.compile(r"\b(?:INSERT|REPLACE)\s+(?:OR|INTO)\b|\bUPDATE\s|\bDELETE\s+FROM\b", re.IGNORECASE)

log = logging.getLogger("onebeat.store")

# The connections on which a task or thread began a write transaction. Only that task or thread uses its own entry.
_writing: WeakKeyDictionary[Owner, WeakSet[Connection]] = WeakKeyDictionary()


def configure_sqlite(engine: Engine | AsyncEngine, *, begin: Begin = "write", synchronous: str = "FULL") -> None:
    """Let the application's own SQLite engine live beside onebeat: WAL, a busy timeout of 5 seconds, `BEGIN IMMEDIATE`.

    Call it once, before the engine's first connection. Without it, a transaction that reads and then writes fails at
    once ("database is locked") beside any other writer.

    Args:
        engine: an `Engine` or an `AsyncEngine` on SQLite.
        begin: when a transaction takes the write lock, for which it waits up to 5 seconds.
            "write": at its first statement that may write, or at its first savepoint. A transaction that has only read
            holds nothing, so a request may read and then enqueue. Until its first write, each statement sees what is
            committed at that moment. Whoever reads a value and writes back what follows from it can therefore
            overwrite the change of another transaction.
            "immediate": at its begin, reads included, so that nothing changes between a read and a write. Commit before
            you enqueue: onebeat's own writer waits for that lock.
        synchronous: "FULL", "NORMAL" or "EXTRA", as SQLite's pragma of that name.

    Raises `ConfigurationError` for an engine of another database and for other values.

    >>> from sqlalchemy import create_engine
    >>> engine = create_engine("sqlite://")
    >>> configure_sqlite(engine)
    >>> with engine.begin() as connection:
    ...     connection.exec_driver_sql("PRAGMA synchronous").scalar()
    2
    """
    target = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
    if target.dialect.dbapi is None or not hasattr(target.dialect.dbapi, "sqlite_version"):
        raise ConfigurationError(
            f"configure_sqlite got an engine for {target.dialect.dialect_description}; it is for SQLite only"
        )
    if begin not in get_args(Begin):
        raise ConfigurationError(f"begin={begin!r:.40} is unknown; give 'write' or 'immediate'")
    level = check_synchronous(synchronous)

    def prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT * 1000)}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute(f"PRAGMA synchronous = {level}")
        cursor.close()

    event.listen(target, "connect", prepare)
    if begin == "immediate":
        event.listen(target, "begin", _begin_immediate)
    else:
        event.listen(target, "before_cursor_execute", _begin_before_write)


# ── handlers of the caller's engine ───────────────────────────────────────────────────────────────────────────────────
def _begin_before_write(connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
    if may_write(statement) and not _is_in_transaction(connection):
        _begin_immediate(connection)


def _begin_immediate(connection: Connection) -> None:
    if is_autocommit(connection):  # nothing would commit what it writes
        return
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    _writing.setdefault(_current_owner(), WeakSet()).add(connection)


def may_write(statement: str) -> bool:
    """Return whether a statement in text may write, or begins a savepoint; a doubtful one may.

    >>> may_write("select 1"), may_write("/* route: / */ INSERT INTO t VALUES (1)"), may_write("SAVEPOINT a")
    (False, True, True)
    >>> may_write("WITH a AS (SELECT 1) SELECT * FROM a"), may_write("WITH a AS (SELECT 1) DELETE FROM t")
    (False, True)
    """
    found = _FIRST_WORD.match(statement)
    word = found[1].upper() if found else ""
    if word == "WITH":
        return _WRITE_IN_WITH.search(statement) is not None
    return word not in _WITHOUT_LOCK


# ── who holds the write lock ──────────────────────────────────────────────────────────────────────────────────────────
def refuse_in_own_write(file: str | None, where: str) -> None:
    """Raise `DatabaseUnavailable` when the current task or thread has a write transaction open on `file`.

    A write of onebeat that it waits for could never begin: it needs the lock that this transaction holds. Only engines
    prepared by `configure_sqlite` are known. `file` is a real path; None is a database in memory, which nobody shares.
    """
    if file is None or not _writing:
        return
    for connection in _writing.get(_current_owner(), ()):
        if _is_in_transaction(connection) and real_file(connection.engine.url) == file:
            raise DatabaseUnavailable(
                f"{where} is locked by this caller's own transaction, which has written and is not committed; "
                "pass it (session=…), commit it before you enqueue, or give onebeat a file of its own",
                reason="retry",
            )


def warn_of_deferred_begin(connection: Connection) -> None:
    """Log a warning when the driver of the caller's connection begins transactions that cannot wait for a writer."""
    driver = connection.connection.driver_connection
    level, autocommit = getattr(driver, "isolation_level", None), getattr(driver, "autocommit", None)
    waits = level is None if autocommit is not False else False  # None: the application begins by itself
    if waits or is_autocommit(connection) or str(level).upper() in ("IMMEDIATE", "EXCLUSIVE"):
        return
    log.warning(
        "A session on %s begins its transactions without a lock: one that reads and then writes fails at once "
        "('database is locked') beside another writer. Call onebeat.configure_sqlite(engine) once, before the engine's "
        "first connection.",
        connection.engine.url.render_as_string(),
    )


def real_file(url: Any) -> str | None:
    """Return the file of a URL without symbolic links; None for a database in memory."""
    path = file_of(url)
    return None if path is None else os.path.realpath(path)


def _is_in_transaction(connection: Connection) -> bool:
    if connection.closed or connection.invalidated:
        return False
    return bool(getattr(connection.connection.driver_connection, "in_transaction", False))


def _current_owner() -> Owner:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        task = None
    return task or threading.current_thread()
