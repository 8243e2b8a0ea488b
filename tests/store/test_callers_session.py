"""A store function in the caller's session: its rows, its callback after the commit, and which database it is."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Session, scoped_session, sessionmaker

from onebeat import configure_sqlite
from onebeat.errors import ConfigurationError, NotStarted
from onebeat.store import migrations
from onebeat.store.connection import after_commit
from onebeat.store.connection.after_commit import run_after_commit
from onebeat.store.connection.callers_session import connection_of, run_in, run_in_sync, tx_of
from onebeat.store.connection.database import Database
from onebeat.store.tables import build
from tests.conftest import SERVERS, MakeDatabase
from tests.store.test_database import add, names
from tests.support.databases import Shelf, migrate, waits_until
from tests.support.servers import PRIVATE, PostgreSQLServer, Server

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "mariadb": "mysql+asyncmy"}


def engine_on(url: str, kind: str, **options: Any) -> AsyncEngine:
    return create_async_engine(make_url(url).set(drivername=DRIVERS[kind]), **options)


@pytest.fixture
async def engine(database_url: str, database_kind: str) -> AsyncIterator[AsyncEngine]:
    """The application's own engine."""
    engine = engine_on(database_url, database_kind)
    if database_kind == "sqlite":
        configure_sqlite(engine)  # without it the driver begins no transaction before a savepoint
    yield engine
    await engine.dispose()


class Callback:
    """Reads the committed names, on onebeat's own connection, each time that it is called."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.reads: list[asyncio.Task[list[str]]] = []

    def __call__(self) -> None:
        self.reads.append(asyncio.ensure_future(self.database.read(names)))

    async def seen(self, calls: int) -> list[list[str]]:
        """Wait for so many calls, and for what each of them read."""
        await waits_until(lambda: len(self.reads) >= calls)
        await self.database.read(names)  # a call too many has time to arrive
        return list(await asyncio.gather(*self.reads))


@pytest.fixture
def callback(database: Database) -> Callback:
    return Callback(database)


async def nothing_came(engine: AsyncEngine, database: Database, callback: Callback) -> bool:
    """Commit another transaction, and look whether only its callback ran."""
    later = Callback(database)
    async with AsyncSession(engine) as session, session.begin():
        await run_in(session, database, add, "later", after_commit=later)
    await later.seen(1)
    return callback.reads == []


# ── commit and rollback ───────────────────────────────────────────────────────────────────────────────────────────────
async def test_the_callback_runs_once_after_the_commit_and_finds_the_row(
    engine: AsyncEngine, database: Database, callback: Callback
) -> None:
    async with AsyncSession(engine) as session:
        assert await run_in(session, database, add, "a", after_commit=callback) == "a"
        assert callback.reads == []
        await session.commit()
        assert await callback.seen(1) == [["a"]]


async def test_a_rollback_and_a_close_without_commit_run_nothing(
    engine: AsyncEngine, database: Database, callback: Callback
) -> None:
    async with AsyncSession(engine) as session:
        await run_in(session, database, add, "a", after_commit=callback)
        await session.rollback()
    async with AsyncSession(engine) as session:
        await run_in(session, database, add, "b", after_commit=callback)
    async with engine.connect() as connection:
        await run_in(connection, database, add, "c", after_commit=callback)
    assert await nothing_came(engine, database, callback)
    assert await database.read(names) == ["later"]


async def test_a_function_that_fails_registers_no_callback(
    engine: AsyncEngine, database: Database, callback: Callback
) -> None:
    async with AsyncSession(engine) as session, session.begin():
        await run_in(session, database, add, "a")
        savepoint = await session.begin_nested()
        with pytest.raises(IntegrityError):
            await run_in(session, database, add, "a", after_commit=callback)
        await savepoint.rollback()
    assert await nothing_came(engine, database, callback)


async def test_each_commit_of_one_session_runs_its_own_callback(
    engine: AsyncEngine, database: Database, callback: Callback
) -> None:
    second = Callback(database)
    async with AsyncSession(engine) as session:
        await run_in(session, database, add, "a", after_commit=callback)
        await session.commit()
        assert await callback.seen(1) == [["a"]]
        await run_in(session, database, add, "b", after_commit=second)
        await session.commit()
        assert await second.seen(1) == [["a", "b"]]
        await session.execute(text("SELECT 1"))
        await session.commit()
    assert len(callback.reads) == len(second.reads) == 1


async def test_a_callback_given_twice_in_a_transaction_runs_once(
    engine: AsyncEngine, database: Database, callback: Callback
) -> None:
    other = Callback(database)
    async with engine.begin() as connection:
        for name in "abc":
            await run_in(connection, database, add, name, after_commit=callback)
        await run_in(connection, database, add, "d", after_commit=other)
    assert await callback.seen(1) == [["a", "b", "c", "d"]]
    assert await other.seen(1) == [["a", "b", "c", "d"]]


# ── savepoints and joined sessions ────────────────────────────────────────────────────────────────────────────────────
async def test_a_released_savepoint_runs_nothing_before_the_commit(
    engine: AsyncEngine, database: Database, callback: Callback
) -> None:
    async with AsyncSession(engine) as session, session.begin():
        async with session.begin_nested():
            await run_in(session, database, add, "a", after_commit=callback)
        await asyncio.sleep(0.02)  # far longer than the first looks
        assert callback.reads == []
    assert await callback.seen(1) == [["a"]]


async def test_a_savepoint_that_is_rolled_back_runs_nothing(
    engine: AsyncEngine, database: Database, callback: Callback
) -> None:
    others = [Callback(database) for _ in range(3)]
    async with AsyncSession(engine) as session, session.begin():
        async with session.begin_nested():  # begun before this engine was listened to
            await run_in(session, database, add, "kept", after_commit=others[0])
        savepoint = await session.begin_nested()
        async with session.begin_nested():
            await run_in(session, database, add, "released inside", after_commit=callback)
        await run_in(session, database, add, "gone", after_commit=callback)
        await run_in(session, database, add, "gone too", after_commit=others[0])
        await savepoint.rollback()
        async with session.begin_nested():
            await run_in(session, database, add, "kept too", after_commit=others[1])
        await run_in(session, database, add, "last", after_commit=others[2])
    for other in others:
        assert await other.seen(1) == [["kept", "kept too", "last"]]
    assert await nothing_came(engine, database, callback)


async def test_a_first_savepoint_that_is_rolled_back_runs_nothing(
    engine: AsyncEngine, database: Database, callback: Callback
) -> None:
    async with AsyncSession(engine) as session, session.begin():
        savepoint = await session.begin_nested()
        async with session.begin_nested():
            await run_in(session, database, add, "gone", after_commit=callback)
        await savepoint.rollback()
    assert await nothing_came(engine, database, callback)


async def test_a_session_joined_to_a_transaction_that_rolls_back_runs_nothing(
    engine: AsyncEngine, database: Database, callback: Callback
) -> None:
    async with engine.connect() as connection:
        outer = await connection.begin()
        async with AsyncSession(bind=connection, join_transaction_mode="create_savepoint") as session:
            await run_in(session, database, add, "a", after_commit=callback)
            async with session.begin_nested():
                await run_in(session, database, add, "b", after_commit=callback)
            await session.commit()
        await outer.rollback()
    assert await nothing_came(engine, database, callback)
    assert await database.read(names) == ["later"]


# ── AUTOCOMMIT ────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_in_driver_autocommit_the_callback_runs_at_once(
    engine: AsyncEngine, database_url: str, database_kind: str, database: Database, callback: Callback
) -> None:
    option = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with option.connect() as connection:
        await run_in(connection, database, add, "a", after_commit=callback)
        assert await callback.seen(1) == [["a"]]
    own = engine_on(database_url, database_kind, isolation_level="AUTOCOMMIT")
    async with AsyncSession(own) as session:
        await run_in(session, database, add, "b", after_commit=callback)
        assert await callback.seen(2) == [["a"], ["a", "b"]]
    await own.dispose()
    assert len(callback.reads) == 2


async def test_an_engine_with_options_of_its_own_is_heard_too(
    engine: AsyncEngine, database: Database, callback: Callback
) -> None:
    async with engine.execution_options(logging_token="shop").begin() as connection:
        await run_in(connection, database, add, "a", after_commit=callback)
    assert await callback.seen(1) == [["a"]]


# ── kinds of sessions ─────────────────────────────────────────────────────────────────────────────────────────────────
async def test_every_asynchronous_kind_is_taken(engine: AsyncEngine, database: Database, callback: Callback) -> None:
    class OwnSession(AsyncSession):
        """As SQLModel has one."""

    scoped = async_scoped_session(async_sessionmaker(engine, class_=OwnSession), scopefunc=asyncio.current_task)
    sessions: list[Any] = [AsyncSession(engine), OwnSession(engine), scoped, engine.connect()]
    for number, session in enumerate(sessions):
        if isinstance(session, AsyncConnection):
            await session.start()
        await run_in(session, database, add, str(number), after_commit=callback)
        await session.commit()
        await session.close()
        await callback.seen(number + 1)
    assert await database.read(names) == ["0", "1", "2", "3"]


async def test_a_tx_inside_run_sync_belongs_to_the_session(
    engine: AsyncEngine, database: Database, callback: Callback
) -> None:
    await migrations.prepare(database)
    async with AsyncSession(engine) as session:
        await session.run_sync(lambda own: add(tx_of(own, database), "a"))
        await session.run_sync(lambda own: run_after_commit(connection_of(own), callback, database.loop))
        await session.commit()
    assert await callback.seen(1) == [["a"]]


@pytest.fixture
def file(shelf: Shelf, tmp_path: Path) -> str:
    return shelf.take("sqlite", tmp_path)


@pytest.fixture
def plain_engine(file: str) -> Iterator[Engine]:
    """A synchronous engine, as in a `def` route or a script."""
    engine = create_engine(file)
    yield engine
    engine.dispose()


async def test_synchronous_sessions_in_threads_wake_the_loop_after_their_commit(
    file: str, plain_engine: Engine, make_database: MakeDatabase
) -> None:
    database = await make_database(file)
    await migrations.prepare(database)
    callback = Callback(database)

    def in_a_thread() -> None:
        with Session(plain_engine) as session:
            run_in_sync(session, database, add, "session", after_commit=callback)
            session.commit()
        scoped = scoped_session(sessionmaker(plain_engine))
        run_in_sync(scoped, database, add, "scoped", after_commit=callback)
        scoped.commit()
        scoped.remove()
        with plain_engine.connect() as connection:
            run_in_sync(connection, database, add, "connection", after_commit=callback)
            connection.commit()
            run_in_sync(connection, database, add, "undone", after_commit=callback)
            connection.rollback()

    await asyncio.to_thread(in_a_thread)
    seen = await callback.seen(3)
    assert len(seen) == 3
    assert seen[-1] == ["connection", "scoped", "session"]


async def test_many_threads_register_at_once(file: str, plain_engine: Engine, make_database: MakeDatabase) -> None:
    database = await make_database(file)
    await migrations.prepare(database)
    callback = Callback(database)

    def in_a_thread(number: int) -> None:
        for count in range(5):
            with plain_engine.begin() as connection:
                run_in_sync(connection, database, add, f"{number}-{count}", after_commit=callback)

    await asyncio.gather(*(asyncio.to_thread(in_a_thread, number) for number in range(8)))
    assert len(await callback.seen(40)) == 40
    assert len(await database.read(names)) == 40


async def test_other_objects_are_refused_with_what_is_taken(
    file: str, plain_engine: Engine, make_database: MakeDatabase
) -> None:
    database = await make_database(file)
    await migrations.prepare(database)
    with pytest.raises(ConfigurationError, match="session is Engine; pass an AsyncSession or AsyncConnection"):
        await run_in(plain_engine, database, add, "a")  # type: ignore[arg-type]  # the mistake itself
    with Session(plain_engine) as session, pytest.raises(ConfigurationError, match="session is Session"):
        await run_in(session, database, add, "a")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="session is NoneType"):
        run_in_sync(None, database, add, "a")  # type: ignore[arg-type]

    class Base(DeclarativeBase):
        pass

    with (
        Session(binds={Base: plain_engine}) as session,
        pytest.raises(ConfigurationError, match=r"no engine of its own.*bind_arguments"),
    ):
        run_in_sync(session, database, add, "a")


async def test_a_database_that_is_not_open_is_said_before_anything_is_written(
    engine: AsyncEngine, database: Database
) -> None:
    async with AsyncSession(engine) as session:
        await run_in(session, database, names)
        await database.close()
        with pytest.raises(NotStarted, match="open the database"):
            await run_in(session, database, add, "a")
        await session.commit()
    closed = Database(database.url, tables=build())
    async with AsyncSession(engine) as session:
        with pytest.raises(NotStarted):
            await run_in(session, closed, add, "a")
        assert (await session.execute(text("SELECT count(*) FROM onebeat_queues"))).scalar_one() == 0


# ── the same database ─────────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_database_without_the_tables_is_named_and_its_transaction_goes_on(
    fresh_database_url: str, database_kind: str, database: Database
) -> None:
    other = engine_on(fresh_database_url, database_kind)
    async with other.begin() as connection:
        await connection.execute(text("CREATE TABLE orders (id INTEGER)"))
    async with AsyncSession(other) as session, session.begin():
        await session.execute(text("INSERT INTO orders VALUES (1)"))
        with pytest.raises(ConfigurationError, match=r"no readable table onebeat_meta.*pass a session") as caught:
            await run_in(session, database, add, "a")
        await session.execute(text("INSERT INTO orders VALUES (2)"))
    assert database.where in str(caught.value)
    assert str(make_url(fresh_database_url).database) in str(caught.value)
    async with other.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM orders"))).scalar_one() == 2
    await other.dispose()


async def test_another_database_with_the_tables_is_refused(
    fresh_database_url: str, database_kind: str, database: Database
) -> None:
    migrate(fresh_database_url)
    other = engine_on(fresh_database_url, database_kind)
    async with AsyncSession(other) as session:
        with pytest.raises(ConfigurationError, match="that of another installation"):
            await run_in(session, database, add, "a")
        assert (await session.execute(text("SELECT count(*) FROM onebeat_queues"))).scalar_one() == 0
    await other.dispose()


async def test_another_kind_of_database_is_refused(
    shelf: Shelf, database: Database, database_kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for kind in set(DRIVERS) & set(SERVERS) - {database_kind}:
        other = engine_on(shelf.take(kind, tmp_path_factory.mktemp(kind)), kind)
        async with other.connect() as connection:
            with pytest.raises(ConfigurationError, match=f"this session is connected to {DRIVERS[kind][:5]}"):
                await run_in(connection, database, add, "a")
        await other.dispose()


async def test_another_name_of_the_same_database_is_the_same(
    database_url: str, database_kind: str, tmp_path: Path, database: Database
) -> None:
    url = make_url(database_url)
    if database_kind == "sqlite":
        link = tmp_path / "link.db"
        link.symlink_to(str(url.database))
        url = url.set(database=str(link))
    else:
        url = url.set(host="localhost")
    other = engine_on(url.render_as_string(hide_password=False), database_kind)
    async with AsyncSession(other) as session, session.begin():
        await run_in(session, database, add, "a")
    await other.dispose()
    assert await database.read(names) == ["a"]


async def test_the_identity_is_read_once_for_an_engine_and_its_options(engine: AsyncEngine, database: Database) -> None:
    statements: list[str] = []

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    for number in range(3):
        async with AsyncSession(engine) as session, session.begin():
            await run_in(session, database, add, f"a{number}")
        async with engine.execution_options(logging_token=str(number)).begin() as connection:
            await run_in(connection, database, add, f"b{number}")
    assert sum("onebeat_meta" in statement for statement in statements) == 1


async def test_a_schema_translate_map_that_leads_elsewhere_is_refused(engine: AsyncEngine, database: Database) -> None:
    async with AsyncSession(engine) as session, session.begin():
        await run_in(session, database, add, "a")
    tenant = engine.execution_options(schema_translate_map={None: "tenant"})
    async with tenant.begin() as connection:
        with pytest.raises(ConfigurationError, match=r"no readable table tenant\.onebeat_meta"):
            await run_in(connection, database, add, "b")
        await connection.execute(text("SELECT 1"))
    assert await database.read(names) == ["a"]


async def test_what_is_known_of_an_engine_goes_with_it(
    database_url: str, database_kind: str, database: Database, callback: Callback
) -> None:
    from onebeat.store.connection import callers_session

    gc.collect()
    known, waiting = len(callers_session._found), len(after_commit._callbacks)
    for number in range(5):
        own = engine_on(database_url, database_kind)
        async with own.begin() as connection:
            await run_in(connection, database, add, str(number), after_commit=callback)
        await own.dispose()
        del own, connection
    await callback.seen(5)
    gc.collect()
    assert len(callers_session._found) <= known + 1  # the last frame may hold one
    assert len(after_commit._callbacks) == waiting


# ── when things go wrong ──────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_callback_that_raises_breaks_neither_the_commit_nor_the_next_callback(
    engine: AsyncEngine, database: Database, callback: Callback
) -> None:
    contexts: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: contexts.append(context))

    def broken() -> None:
        raise LookupError("in the callback")

    async with AsyncSession(engine) as session, session.begin():
        await run_in(session, database, add, "a", after_commit=broken)
        await run_in(session, database, add, "b", after_commit=callback)
    assert await callback.seen(1) == [["a", "b"]]
    assert [type(context["exception"]) for context in contexts] == [LookupError]


async def test_a_handler_that_fails_breaks_no_commit(
    engine: AsyncEngine,
    database: Database,
    callback: Callback,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: Any) -> None:
        raise LookupError("in the handler")

    with monkeypatch.context() as patched, caplog.at_level(logging.ERROR, "onebeat.store"):
        patched.setattr(after_commit, "_schedule", broken)
        async with AsyncSession(engine) as session, session.begin():
            await run_in(session, database, add, "a", after_commit=callback)
    assert "polling finds" in caplog.text
    assert await nothing_came(engine, database, callback)
    assert await database.read(names) == ["a", "later"]


def test_a_closed_loop_is_left_alone(plain_engine: Engine) -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    with plain_engine.begin() as connection:
        run_after_commit(connection, lambda: None, loop)
    with plain_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        run_after_commit(connection, lambda: None, loop)


# ── a COMMIT that takes long, a COMMIT that fails, two phases ─────────────────────────────────────────────────────────
@pytest.fixture(params=[kind for kind in ("postgresql",) if kind in SERVERS])
async def postgresql(request: pytest.FixtureRequest, shelf: Shelf, tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    """The application's engine where a COMMIT can be made to wait or to fail."""
    engine = engine_on(shelf.take(request.param, tmp_path), request.param)
    yield engine
    async with engine.begin() as connection:
        await connection.execute(text("DROP TABLE IF EXISTS slow"))
        await connection.execute(text("DROP FUNCTION IF EXISTS at_commit"))
    await engine.dispose()


async def make_slow_table(engine: AsyncEngine) -> None:
    """A table whose rows make the COMMIT wait half a second, or fail."""
    body = "BEGIN IF NEW.fails THEN RAISE 'refused at commit'; END IF; PERFORM pg_sleep(0.5); RETURN NULL; END"
    function = f"CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $${body}$$"
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE slow (fails BOOLEAN)"))
        await connection.execute(text(function))
        await connection.execute(
            text(
                "CREATE CONSTRAINT TRIGGER later AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION at_commit()"
            )
        )


async def test_the_callback_waits_for_a_commit_that_takes_long(
    postgresql: AsyncEngine, make_database: MakeDatabase
) -> None:
    database = await make_database(postgresql)
    callback = Callback(database)
    await make_slow_table(postgresql)
    async with AsyncSession(postgresql) as session:
        await session.execute(text("INSERT INTO slow VALUES (false)"))
        await run_in(session, database, add, "a", after_commit=callback)
        committing = asyncio.ensure_future(session.commit())
        await asyncio.sleep(0.2)
        assert not committing.done()
        assert callback.reads == []
        assert await callback.seen(1) == [["a"]]
        await committing


async def test_a_commit_that_fails_leaves_the_session_usable(
    postgresql: AsyncEngine, make_database: MakeDatabase
) -> None:
    database = await make_database(postgresql)
    callback, second = Callback(database), Callback(database)
    await make_slow_table(postgresql)
    async with AsyncSession(postgresql) as session:
        await session.execute(text("INSERT INTO slow VALUES (true)"))
        await run_in(session, database, add, "a", after_commit=callback)
        with pytest.raises(DBAPIError, match="refused at commit"):
            await session.commit()
        await session.rollback()
        await run_in(session, database, add, "b", after_commit=second)
        await session.commit()
    assert await second.seen(1) == [["b"]]
    assert await asyncio.gather(*callback.reads) in ([], [[]], [["b"]])  # a hint at most, and one that finds no row


@pytest.fixture(scope="module", params=[kind for kind in ("postgresql", "mariadb") if kind in SERVERS])
def two_phase_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A private server where prepared transactions are allowed (PostgreSQL forbids them by default)."""
    options = {"postgresql": ["-cmax_prepared_transactions=5"], "mariadb": []}
    server: Server = PRIVATE[request.param](*options[request.param])
    server.start()
    yield server
    server.close()


async def test_a_two_phase_commit_and_rollback_are_heard(two_phase_server: Server, make_database: MakeDatabase) -> None:
    kind = "postgresql" if isinstance(two_phase_server, PostgreSQLServer) else "mariadb"
    database = await make_database(two_phase_server.url)
    await migrations.prepare(database)
    engine = engine_on(two_phase_server.url, kind)
    callback = Callback(database)

    def in_two_phases(connection: Connection, name: str, *, prepare: bool, commit: bool) -> None:
        transaction = connection.begin_twophase()
        run_in_sync(connection, database, add, name, after_commit=callback)
        if prepare:
            transaction.prepare()
        if commit:
            transaction.commit()
        else:
            transaction.rollback()

    async with engine.connect() as connection:
        await connection.run_sync(in_two_phases, "undone", prepare=False, commit=False)
        await connection.run_sync(in_two_phases, "undone after prepare", prepare=True, commit=False)
        assert await nothing_came(engine, database, callback)
        await connection.run_sync(in_two_phases, "prepared", prepare=True, commit=True)
        assert await callback.seen(1) == [["later", "prepared"]]
        await connection.run_sync(in_two_phases, "in one", prepare=False, commit=True)
        assert await callback.seen(2) == [["later", "prepared"], ["in one", "later", "prepared"]]
    await engine.dispose()
