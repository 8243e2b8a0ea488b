"""The application's own SQLite engine beside onebeat: when it takes the write lock, and what holds nothing."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from onebeat import DatabaseUnavailable, Scheduler, configure_sqlite
from onebeat.errors import ConfigurationError
from onebeat.store.connection import sqlite_threads
from onebeat.store.connection.callers_sqlite import Begin
from tests.scheduler.arrange import do_nothing, scheduler_on

INSERT = text("INSERT INTO orders (name) VALUES (:name)")
COUNT = text("SELECT count(*) FROM orders")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, name TEXT)")
    return path


@pytest.fixture
def other(path: Path) -> Iterator[sqlite3.Connection]:
    """Another writer, which fails at once where it would have to wait."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as connection:
        yield connection


def engine_on(path: Path, begin: Begin = "write") -> Engine:
    engine = create_engine(f"sqlite:///{path}")
    configure_sqlite(engine, begin=begin)
    return engine


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    engine = engine_on(path)
    yield engine
    engine.dispose()


@pytest.fixture
async def async_engine(path: Path) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    configure_sqlite(engine)
    yield engine
    await engine.dispose()


def write(connection: sqlite3.Connection, name: str = "other") -> None:
    connection.execute("INSERT INTO orders (name) VALUES (?)", [name])


# ── the write lock ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_transaction_that_has_only_read_holds_no_lock(engine: Engine, other: sqlite3.Connection) -> None:
    with Session(engine) as session:
        assert session.scalar(COUNT) == 0
        write(other)
        assert session.scalar(COUNT) == 1, "each statement sees what is committed"


async def test_an_async_session_that_has_only_read_holds_no_lock(
    async_engine: AsyncEngine, other: sqlite3.Connection
) -> None:
    async with AsyncSession(async_engine) as session:
        assert await session.scalar(COUNT) == 0
        write(other)
        await session.execute(INSERT, {"name": "mine"})
        with pytest.raises(sqlite3.OperationalError, match="database is locked"):
            write(other)
        await session.commit()
        assert await session.scalar(COUNT) == 2
        write(other)


def test_a_transaction_that_reads_and_then_writes_is_not_refused_for_what_others_wrote_meanwhile(
    engine: Engine, other: sqlite3.Connection
) -> None:
    with Session(engine) as session:
        session.scalar(COUNT)
        write(other)
        session.execute(INSERT, {"name": "mine"})
        with pytest.raises(sqlite3.OperationalError, match="database is locked"):
            write(other)
        session.commit()
        assert session.scalar(COUNT) == 2


def test_begin_immediate_takes_the_lock_before_the_first_read(path: Path, other: sqlite3.Connection) -> None:
    engine = engine_on(path, begin="immediate")
    with Session(engine) as session:
        session.scalar(COUNT)
        with pytest.raises(sqlite3.OperationalError, match="database is locked"):
            write(other)
    write(other)
    engine.dispose()


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO orders (name) VALUES ('a')",
        "insert or ignore into orders (name) values ('a')",
        "  /* route: SELECT */ -- more\n INSERT INTO orders (name) VALUES ('a')",
        "WITH new(name) AS (SELECT 'a') INSERT INTO orders (name) SELECT name FROM new",
        "REPLACE INTO orders (id, name) VALUES (7, 'a')",
        "CREATE TABLE more (id INTEGER)",
    ],
)
def test_whatever_writes_is_undone_by_a_rollback(path: Path, engine: Engine, statement: str) -> None:
    with engine.connect() as connection:
        connection.execute(text(statement))
        connection.rollback()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'more'").fetchone() == (0,)


def test_a_released_savepoint_is_undone_with_its_transaction(engine: Engine, other: sqlite3.Connection) -> None:
    with Session(engine) as session:
        with session.begin_nested():
            session.execute(INSERT, {"name": "mine"})
        assert other.execute("SELECT count(*) FROM orders").fetchone() == (0,)
        session.rollback()
        assert session.scalar(COUNT) == 0


def test_a_pragma_and_a_vacuum_run_outside_of_a_transaction(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("PRAGMA foreign_keys = ON"))  # has no effect inside a transaction
        assert connection.execute(text("PRAGMA foreign_keys")).scalar_one() == 1
        connection.execute(text("VACUUM"))  # is refused inside a transaction


# ── configuration ─────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(("options", "synchronous"), [({}, 2), ({"synchronous": "normal"}, 1)])
def test_the_engine_has_the_wal_a_timeout_and_the_synchronous_asked_for(
    path: Path, options: dict[str, str], synchronous: int
) -> None:
    engine = create_engine(f"sqlite:///{path}")
    configure_sqlite(engine, **options)  # type: ignore[arg-type]  # mypy takes each value for each keyword
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
        assert connection.execute(text("PRAGMA busy_timeout")).scalar_one() == 5000
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == synchronous
    engine.dispose()


def test_driver_autocommit_stays_as_it_is(engine: Engine, other: sqlite3.Connection) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(INSERT, {"name": "mine"})
        write(other)
    with engine.connect() as connection:  # the same connection of the pool, back from autocommit
        assert connection.scalar(COUNT) == 2
        connection.execute(INSERT, {"name": "undone"})
        connection.rollback()
        assert connection.scalar(COUNT) == 2


def test_another_kind_of_engine_and_unknown_values_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"postgresql\+asyncpg; it is for SQLite only"):
        configure_sqlite(create_async_engine("postgresql+asyncpg://h/d"))
    with pytest.raises(ConfigurationError, match="FULL, NORMAL, EXTRA"):
        configure_sqlite(create_engine("sqlite://"), synchronous="OFF")
    with pytest.raises(ConfigurationError, match="give 'write' or 'immediate'"):
        configure_sqlite(create_engine("sqlite://"), begin="deferred")  # type: ignore[arg-type]  # the mistake


async def test_an_async_engine_and_onebeat_write_side_by_side(
    path: Path, async_engine: AsyncEngine, scheduler: Scheduler
) -> None:
    async def application() -> None:
        for number in range(50):
            async with AsyncSession(async_engine) as session:
                await session.scalar(COUNT)
                await session.execute(INSERT, {"name": str(number)})
                await session.commit()

    async def onebeat() -> None:
        for _ in range(50):
            await scheduler.registry.get("mail").enqueue()

    await asyncio.gather(application(), onebeat())
    assert await scheduler.jobs.count() == 50
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (50,)


# ── an enqueue in mid-transaction ─────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
async def scheduler(path: Path) -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(f"sqlite:///{path}", poll=0.05)
    scheduler.task(name="mail")(do_nothing)
    async with scheduler:
        yield scheduler


@pytest.fixture
def never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """An enqueue that had to wait for the lock would wait for a minute, and its test would fail."""
    monkeypatch.setattr(sqlite_threads, "PATIENCE", 60.0)


@pytest.mark.usefixtures("never_waits")
async def test_an_enqueue_over_the_same_tasks_own_write_fails_at_once(
    scheduler: Scheduler, async_engine: AsyncEngine
) -> None:
    mail = scheduler.registry.get("mail")
    async with asyncio.timeout(30), AsyncSession(async_engine) as session:
        await session.execute(INSERT, {"name": "mine"})
        with pytest.raises(DatabaseUnavailable, match=r"this caller's own transaction.*commit it before") as caught:
            await mail.enqueue()
        assert caught.value.reason == "retry"
        await session.commit()
        await session.scalar(COUNT)
        assert (await (await mail.enqueue()).wait(30)).state == "succeeded"
    assert await scheduler.jobs.count() == 1


@pytest.mark.usefixtures("never_waits")
async def test_an_enqueue_over_the_same_threads_own_write_fails_at_once(scheduler: Scheduler, engine: Engine) -> None:
    mail = scheduler.registry.get("mail")

    def in_a_thread() -> None:
        with Session(engine) as session:
            session.execute(INSERT, {"name": "mine"})
            with pytest.raises(DatabaseUnavailable, match="this caller's own transaction"):
                mail.enqueue_sync()
            session.rollback()
            mail.enqueue_sync()

    async with asyncio.timeout(30):
        await asyncio.to_thread(in_a_thread)
        with Session(engine) as session:  # a session without `await`, in the event loop's thread
            session.execute(INSERT, {"name": "mine"})
            with pytest.raises(DatabaseUnavailable, match="this caller's own transaction"):
                await mail.enqueue()
    assert await scheduler.jobs.count() == 1


async def test_an_enqueue_over_another_tasks_write_waits_for_its_commit(
    scheduler: Scheduler, async_engine: AsyncEngine
) -> None:
    mail = scheduler.registry.get("mail")
    async with AsyncSession(async_engine) as session:
        await session.execute(INSERT, {"name": "mine"})
        waiting = asyncio.create_task(mail.enqueue())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await session.commit()
        assert (await waiting).state == "queued"


async def test_a_refused_enqueue_names_the_ways_out(
    scheduler: Scheduler, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(sqlite_threads, "PATIENCE", 0.2)
        with pytest.raises(DatabaseUnavailable, match=r"app\.db.*commit.*before you enqueue.*file of its own"):
            await scheduler.registry.get("mail").enqueue()


async def test_a_write_to_another_file_is_no_obstacle(
    scheduler: Scheduler, async_engine: AsyncEngine, tmp_path: Path
) -> None:
    elsewhere: Any = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'other.db'}")
    configure_sqlite(elsewhere)
    async with elsewhere.begin() as connection:
        await connection.execute(text("CREATE TABLE orders (name TEXT)"))
        await scheduler.registry.get("mail").enqueue()
    await elsewhere.dispose()


def test_two_plain_writers_still_collide_without_configure_sqlite(path: Path, other: sqlite3.Connection) -> None:
    """The trap that the tests above are about: without this contrast they would show nothing."""
    plain = create_engine(f"sqlite:///{path}", connect_args={"timeout": 5})
    event.listen(plain, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    with plain.connect() as connection:
        connection.scalar(COUNT)
        write(other)
        with pytest.raises(OperationalError, match="database is locked"):
            connection.execute(INSERT, {"name": "mine"})
    plain.dispose()


async def test_an_engine_whose_transactions_cannot_wait_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = scheduler_on(tmp_path)
    task = scheduler.task(do_nothing)
    plain, prepared = (create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}") for _ in range(2))
    own_begin = create_engine(f"sqlite:///{tmp_path / 'app.db'}", connect_args={"isolation_level": "IMMEDIATE"})
    configure_sqlite(prepared)
    async with scheduler:
        for engine in (prepared, plain, plain):
            async with AsyncSession(engine) as session, session.begin():
                await task.options(session=session).enqueue()
        with Session(own_begin) as own, own.begin():
            task.options(session=own).enqueue_sync()
    warned = [record.getMessage() for record in caplog.records if "configure_sqlite" in record.getMessage()]
    assert len(warned) == 1
    assert "app.db" in warned[0]
    await plain.dispose()
    await prepared.dispose()
    own_begin.dispose()
