"""Callers that wait for a connection or for a locked file: how long, and who goes first."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from onebeat.errors import DatabaseUnavailable
from onebeat.store import retries
from onebeat.store.connection import server_pool, sqlite_threads
from onebeat.store.connection.turns import Turns
from onebeat.store.tx import Tx
from tests.conftest import MakeDatabase
from tests.store.test_database import add, names
from tests.support.databases import Shelf, kind_of
from tests.support.proxy import Proxy

SLEEP = {"postgresql": "SELECT pg_sleep(:seconds)", "mariadb": "SELECT sleep(:seconds)"}


class Order:
    """Notes the order in which calls run."""

    def __init__(self, url: str = "") -> None:
        self.names: list[str] = []
        self._sleep = text(SLEEP[kind_of(url)]) if url else None

    def note(self, tx: Tx, name: str) -> None:
        self.names.append(name)

    def sleep(self, tx: Tx, name: str, seconds: float) -> None:
        """Occupy the connection, and note the end."""
        assert self._sleep is not None
        tx.execute(self._sleep, {"seconds": seconds})
        self.names.append(name)


async def refused(calls: list[Any]) -> tuple[list[str], float]:
    """Wait for calls that all fail; their reasons, and the seconds until the last one was told."""
    started = time.monotonic()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    seconds = time.monotonic() - started
    errors = [outcome for outcome in outcomes if isinstance(outcome, DatabaseUnavailable)]
    assert len(errors) == len(calls), outcomes
    return sorted({error.reason for error in errors}), seconds


# ── a server ──────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_hundred_callers_of_an_absent_server_are_told_at_the_same_time(
    proxy: Proxy, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "RECONNECT_WITHIN", 0.5)  # one after another, three at a time, that makes 17 s
    database = await make_database(proxy.url)
    proxy.refuse = True
    proxy.cut()
    reasons, seconds = await refused([database.write(add, f"q{number}") for number in range(100)])
    assert set(reasons) <= {"unreachable", "disconnect"}
    assert seconds < 8
    proxy.refuse = False
    assert await database.write(add, "after") == "after"


async def test_callers_wait_for_a_connection_no_longer_than_their_patience(
    served: str, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_pool, "PATIENCE", 0.2)
    database = await make_database(served, pool_size=1)
    order = Order(served)
    busy = asyncio.create_task(database.read(order.sleep, "busy", 0.6))
    await asyncio.sleep(0)
    reasons, _ = await refused([database.write(add, f"q{number}") for number in range(20)])
    assert reasons == ["timeout"]
    assert order.names == [], "they were told while the connection was still in use"
    await busy
    assert await database.write(add, "after") == "after"
    assert await database.read(names) == ["after"], "who was told that nothing was written wrote nothing"


async def test_calls_of_the_engine_go_ahead_of_those_of_users(served: str, make_database: MakeDatabase) -> None:
    database = await make_database(served, pool_size=1)
    users, order = database.for_users(), Order(served)
    calls = [database.read(order.sleep, "busy", 0.2)]
    calls += [users.write(order.note, f"user {number}") for number in range(5)]
    calls += [database.write(order.note, "engine")]
    await asyncio.gather(*calls)
    assert order.names == ["busy", "engine", *(f"user {number}" for number in range(5))]


async def test_long_reads_of_users_leave_a_connection_to_the_engine(served: str, make_database: MakeDatabase) -> None:
    database = await make_database(served, pool_size=2)
    users, order = database.for_users(), Order(served)
    await asyncio.gather(*(database.write(add, name) for name in "ab"))  # so that both connections are open
    long = [asyncio.create_task(users.read(order.sleep, "user", 0.4)) for _ in range(2)]
    await asyncio.sleep(0)
    await database.write(order.note, "engine")
    await asyncio.gather(*long)
    assert order.names == ["engine", "user", "user"]


async def test_a_view_for_users_shares_what_was_measured(served: str, make_database: MakeDatabase) -> None:
    database = await make_database(served, database_clock=lambda: 7)
    users = database.for_users()
    await database.measure_offset()
    assert users.offset_us == database.offset_us != 0
    assert users.loop is database.loop


async def test_a_cancelled_call_gives_its_turn_to_the_next_one() -> None:
    turns = Turns(1)
    await turns.take(0)
    first, second = (asyncio.create_task(turns.take(0)) for _ in range(2))
    await asyncio.sleep(0)
    turns.give_back()  # the first one has it now, and is cancelled before it runs
    first.cancel()
    async with asyncio.timeout(10):
        await second
    third = asyncio.create_task(turns.take(0))
    await asyncio.sleep(0)
    assert not third.done(), "there is one place"
    third.cancel()
    turns.give_back()
    async with asyncio.timeout(10):
        await turns.take(0)


# ── a SQLite file ─────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def file_url(shelf: Shelf, tmp_path: Path) -> str:
    return shelf.take("sqlite", tmp_path)


@pytest.fixture
def holder(file_url: str) -> Iterator[sqlite3.Connection]:
    """Another process's connection, which holds the write lock."""
    path = file_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection


async def test_callers_of_a_locked_file_are_told_at_the_same_time(
    file_url: str, holder: sqlite3.Connection, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = await _opened(file_url, holder, make_database)
    monkeypatch.setattr(sqlite_threads, "PATIENCE", 0.3)
    reasons, seconds = await refused([database.write(add, f"q{number}") for number in range(300)])
    assert reasons == ["retry"]
    assert seconds < 5
    holder.execute("ROLLBACK")
    assert await database.write(add, "after") == "after"
    assert await database.read(names) == ["after"]


async def _opened(url: str, holder: sqlite3.Connection, make_database: MakeDatabase) -> Any:
    """Open the database while the lock is free for a moment, as opening writes."""
    holder.execute("ROLLBACK")
    database = await make_database(url)
    holder.execute("BEGIN IMMEDIATE")
    return database


async def test_a_heartbeat_goes_ahead_of_calls_that_have_waited_for_the_lock(
    file_url: str, holder: sqlite3.Connection, make_database: MakeDatabase
) -> None:
    database, order = await _opened(file_url, holder, make_database), Order()
    waiting = [asyncio.create_task(database.write(order.note, f"q{number}")) for number in range(6)]
    await asyncio.sleep(0.1)  # so that they wait for the lock, and not in the queue
    async with database.heartbeat_database() as heartbeat:
        beat = asyncio.create_task(heartbeat.write(order.note, "beat"))
        await asyncio.sleep(0.1)
        holder.execute("ROLLBACK")
        await asyncio.gather(beat, *waiting)
    assert order.names == ["beat", *(f"q{number}" for number in range(6))]


async def test_the_engine_goes_ahead_of_users_in_the_queue_of_the_writer(
    file_url: str, make_database: MakeDatabase
) -> None:
    database, order, go, holds = await make_database(file_url), Order(), threading.Event(), threading.Event()
    users = database.for_users()

    def hold(tx: Tx) -> None:
        holds.set()
        go.wait(30)

    busy = asyncio.create_task(database.write(hold))
    assert await asyncio.to_thread(holds.wait, 30)
    calls = [asyncio.create_task(users.write(order.note, f"user {number}")) for number in range(300)]
    calls.append(asyncio.create_task(database.write(order.note, "engine")))
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(busy, *calls)
    assert order.names[:2] == ["engine", "user 0"]


async def test_each_call_waits_for_the_lock_as_long_as_its_own_patience(
    file_url: str, holder: sqlite3.Connection, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = await _opened(file_url, holder, make_database)
    monkeypatch.setattr(sqlite_threads, "PATIENCE", 0.2)
    patient = asyncio.create_task(database.exclusive(lambda tx: add(tx, "patient"), patience=60))
    with pytest.raises(DatabaseUnavailable, match=r"within 0\.2 s"):
        await database.write(add, "impatient")
    assert not patient.done()
    holder.execute("ROLLBACK")
    await patient
    assert await database.read(names) == ["patient"]


async def test_a_long_read_of_a_user_does_not_hold_up_the_engine(file_url: str, make_database: MakeDatabase) -> None:
    database, go = await make_database(file_url), threading.Event()
    long = asyncio.create_task(database.for_users().read(lambda tx: go.wait(30)))
    await asyncio.sleep(0)
    try:
        async with asyncio.timeout(10):
            assert await database.read(names) == []
        assert not long.done()
    finally:
        go.set()
        await long


async def test_a_call_that_fails_among_others_costs_them_nothing(file_url: str, make_database: MakeDatabase) -> None:
    database = await make_database(file_url)

    def fail(tx: Tx, name: str) -> None:
        add(tx, name)
        raise LookupError(name)

    calls = [database.write(fail if number % 3 == 0 else add, f"q{number:02}") for number in range(30)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes[::3]] == [LookupError] * 10
    assert await database.read(names) == [f"q{number:02}" for number in range(30) if number % 3]
