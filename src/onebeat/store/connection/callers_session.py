"""The caller's session: a store function runs in the transaction that the application begins and ends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, TypeGuard, TypeVar, TypeVarTuple
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Pool, Select, select
from sqlalchemy.exc import DBAPIError, UnboundExecutionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from onebeat.errors import ConfigurationError, NotStarted, SchemaOutOfDate
from onebeat.store.connection.addresses import show_address
from onebeat.store.connection.after_commit import Callback, run_after_commit
from onebeat.store.connection.autocommit import is_autocommit
from onebeat.store.connection.callers_sqlite import warn_of_deferred_begin
from onebeat.store.connection.database import Database
from onebeat.store.dialects.by_url import dialect_for
from onebeat.store.faults import Fault
from onebeat.store.tables import Tables
from onebeat.store.tx import Tx

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

AsyncCaller: TypeAlias = AsyncSession | AsyncConnection | async_scoped_session[Any]
SyncCaller: TypeAlias = Session | Connection | scoped_session[Any]


async def run_in(
    session: AsyncCaller,
    database: Database,
    fn: Callable[[Tx, *Ts], R],
    *args: *Ts,
    after_commit: Callback | None = None,
) -> R:
    """Run `fn(tx, *args)` in the transaction of `session`, which stays open; return its value.

    `after_commit` runs on the event loop of `database` once the caller's commit has made the rows visible, and not
    after a rollback; see `run_after_commit` for what that promises. `fn` runs once: a deadlock or a serialisation
    failure reaches the caller, as for any other statement of that session.

    Raises `NotStarted` when `database` is not open, `ConfigurationError` for a session of another database.
    """
    if database.instance_id is None:
        database.instance_id = await database.read(_read_instance_id)
    work = partial(_run_on, database=database, fn=fn, args=args, after_commit=after_commit)
    return await run_on_connection(session, work)


def run_in_sync(
    session: SyncCaller,
    database: Database,
    fn: Callable[[Tx, *Ts], R],
    *args: *Ts,
    after_commit: Callback | None = None,
) -> R:
    """Do the same as `run_in` for a `Session` or a `Connection`, on any thread."""
    return _run_on(connection_of(session), database=database, fn=fn, args=args, after_commit=after_commit)


def tx_of(session: SyncCaller, database: Database) -> Tx:
    """Return a `Tx` of `database` in the transaction of `session`, after a check that both are one database.

    Use it inside `run_sync` of an asynchronous session. Raises as `run_in`.
    """
    return _tx_on(connection_of(session), database)


def _run_on(
    connection: Connection,
    *,
    database: Database,
    fn: Callable[..., R],
    args: tuple[Any, ...],
    after_commit: Callback | None,
) -> R:
    loop = database.loop
    result = fn(_tx_on(connection, database), *args)
    if after_commit is not None:
        run_after_commit(connection, after_commit, loop)
    return result


def _tx_on(connection: Connection, database: Database) -> Tx:
    _require_same_database(connection, database)
    return database.transactions.tx(connection, is_callers=True)


# ── sessions and their connections ────────────────────────────────────────────────────────────────────────────────────
def is_async(session: object) -> TypeGuard[AsyncCaller]:
    """Return whether `session` is one of the asynchronous kinds, whose verbs are awaited."""
    return isinstance(session, AsyncSession | AsyncConnection | async_scoped_session)


async def run_on_connection(session: AsyncCaller, fn: Callable[[Connection], R]) -> R:
    """Run `fn` on the synchronous connection of the transaction of `session`; it may not await."""
    if not is_async(session):
        raise _wrong_kind(session)
    own: AsyncSession | AsyncConnection = session() if isinstance(session, async_scoped_session) else session
    return await own.run_sync(lambda inner: fn(connection_of(inner)))


def connection_of(session: SyncCaller) -> Connection:
    """Return the connection of the transaction of `session`; a session without a transaction begins one.

    Raises `ConfigurationError` for other objects, and for a session whose engine depends on the mapped class.
    """
    if isinstance(session, Connection):
        return session
    if not isinstance(session, Session | scoped_session):
        raise _wrong_kind(session)
    try:
        return session.connection()
    except UnboundExecutionError as error:
        raise ConfigurationError(
            "this session has no engine of its own (it has one for each mapped class); pass the connection of the "
            "engine that leads to onebeat's tables, for example session.connection(bind_arguments={'mapper': Order})"
        ) from error


def _wrong_kind(session: object) -> ConfigurationError:
    return ConfigurationError(
        f"session is {type(session).__name__}; pass an AsyncSession or AsyncConnection to the call that you await, "
        "and a Session or Connection to the one that you do not await"
    )


# ── the same database ─────────────────────────────────────────────────────────────────────────────────────────────────
# What each connection pool was found to lead to: schema, name of the table `meta`, instance id. A pool and not an
# engine, because `engine.execution_options()` makes a new engine on the same pool, in some applications per request.
_found: WeakKeyDictionary[Pool, set[tuple[str | None, str, str]]] = WeakKeyDictionary()


def _require_same_database(connection: Connection, database: Database) -> None:
    """Raise `ConfigurationError` unless the tables that this connection sees are those of `database`."""
    expected, tables = database.instance_id, database.tables
    if expected is None:
        raise NotStarted("the database was opened without a look at its tables; start the scheduler first")
    schema = _schema_seen(connection, tables)
    key = (schema, tables.meta.name, expected)
    pool = connection.engine.pool
    if key in _found.get(pool, ()):
        return
    seen = _instance_id_seen(connection, database)
    if seen != expected:
        raise _other_database(connection, database, schema, seen)
    if database.dialect.one_writer and pool not in _found:
        warn_of_deferred_begin(connection)
    _found.setdefault(pool, set()).add(key)


def _schema_seen(connection: Connection, tables: Tables) -> str | None:
    translated = connection.get_execution_options().get("schema_translate_map") or {}
    schema: str | None = translated.get(tables.schema, tables.schema)
    return schema


def _instance_id_seen(connection: Connection, database: Database) -> str | None:
    """Read the id in the caller's transaction, which goes on unharmed where there is no such table."""
    dialect, statement = database.dialect, _select_instance_id(database.tables)
    try:
        if type(dialect_for(connection.engine.url)) is not type(dialect):
            return None
        if dialect.error_aborts_transaction and not is_autocommit(connection):
            with connection.begin_nested():
                return connection.execute(statement).scalar_one_or_none()
        return connection.execute(statement).scalar_one_or_none()
    except ConfigurationError:  # a kind of database that onebeat does not know
        return None
    except DBAPIError as error:
        if dialect.classify(error) in (Fault.MISSING_TABLE, Fault.MISSING_DATABASE, Fault.PERMISSION):
            return None
        raise


def _select_instance_id(tables: Tables) -> Select[Any]:
    return select(tables.meta.c.value).where(tables.meta.c.key == "instance_id")


def _read_instance_id(tx: Tx) -> str:
    found = tx.execute(_select_instance_id(tx.tables)).scalar_one_or_none()
    if found is None:
        raise SchemaOutOfDate(
            f"{tx.tables.meta.fullname} has no instance_id, by which onebeat recognises a session's database; "
            "run `onebeat migrate`"
        )
    return str(found)


def _other_database(
    connection: Connection, database: Database, schema: str | None, seen: str | None
) -> ConfigurationError:
    name = database.tables.meta.name if schema is None else f"{schema}.{database.tables.meta.name}"
    what = f"which has no readable table {name}" if seen is None else f"whose {name} is that of another installation"
    return ConfigurationError(
        f"this session is connected to {show_address(connection.engine.url)}, {what}, and onebeat keeps its tables in "
        f"{database.where}; pass a session of that database, or leave the session out to commit separately, "
        "or give onebeat the database of this session"
    )
