"""Transactions: what commits, what does not, and what the caller is told."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from sqlalchemy import create_engine, func, make_url, select
from sqlalchemy.exc import IntegrityError

from onebeat.errors import NotStarted
from onebeat.store.connection.backend import ConnectionBackend, Rank
from onebeat.store.connection.database import Database
from onebeat.store.connection.sqlite_file import file_of
from onebeat.store.retries import CommitLost, CommitUnknown, Retries
from onebeat.store.tx import TransactionRunner, Tx
from tests.conftest import MakeDatabase
from tests.support.databases import Shelf

R = TypeVar("R")


def add(tx: Tx, name: str) -> str:
    tx.execute(tx.tables.queues.insert().values(name=name))
    return name


def names(tx: Tx) -> list[str]:
    return list(tx.execute(select(tx.tables.queues.c.name).order_by(tx.tables.queues.c.name)).scalars())


async def test_a_write_is_committed_and_its_value_returned(database: Database) -> None:
    assert await database.write(add, "a") == "a"
    assert await database.write_one(add, "b") == "b"
    assert await database.read(names) == ["a", "b"]


async def test_a_write_that_raises_leaves_nothing_behind(database: Database) -> None:
    def half(tx: Tx) -> None:
        add(tx, "a")
        raise LookupError("in the middle")

    with pytest.raises(LookupError, match="in the middle"):
        await database.write(half)
    assert await database.read(names) == []


async def test_calls_that_commit_together_fail_alone(database: Database) -> None:
    await database.write(add, "taken")
    calls = [*(f"n{i:03}" for i in range(50)), "taken", *(f"m{i:03}" for i in range(50)), "taken"]
    outcomes = await asyncio.gather(*(database.write(add, name) for name in calls), return_exceptions=True)
    for name, outcome in zip(calls, outcomes, strict=True):
        if name == "taken":
            assert isinstance(outcome, IntegrityError)
        else:
            assert outcome == name
    assert len(await database.read(names)) == 101


async def test_the_deciding_now_is_read_once_and_is_the_databases(database: Database) -> None:
    def twice(tx: Tx) -> tuple[int, int, int]:
        first = tx.now()
        tx.execute(select(func.count()).select_from(tx.tables.jobs))
        return first, tx.now(), tx.execute(select(tx.clock)).scalar_one()

    before = time.time_ns() // 1000
    first, second, inside = await database.write(twice)
    after = time.time_ns() // 1000
    assert first == second
    assert first <= inside
    assert before - 1_000_000 <= first <= after + 1_000_000
    assert isinstance(inside, int)


async def test_a_virtual_clock_decides_instead(database_url: str, make_database: MakeDatabase) -> None:
    database = await make_database(database_url, database_clock=lambda: 1_234)

    def both(tx: Tx) -> tuple[int, int]:
        return tx.now(), tx.execute(select(tx.clock)).scalar_one()

    assert await database.read(both) == (1_234, 1_234)


async def test_a_heartbeat_beats_from_another_threads_loop(database: Database) -> None:
    def beat() -> str:
        async def work() -> str:
            async with database.heartbeat_database() as own:
                return await own.write(add, "beat")

        return asyncio.run(work())

    assert await asyncio.to_thread(beat) == "beat"
    assert await database.read(names) == ["beat"]


async def test_using_it_closed_says_what_to_do(database: Database) -> None:
    await database.close()
    with pytest.raises(NotStarted, match="open the database"):
        await database.write(add, "a")


# ── another backend ───────────────────────────────────────────────────────────────────────────────────────────────────
class OneConnection:
    """A backend that runs every call at once, on one connection to a SQLite file and in the caller's own thread."""

    def __init__(self, path: str, transactions: TransactionRunner) -> None:
        self.transactions = transactions
        self.engine = create_engine(f"sqlite:///{path}", connect_args={"isolation_level": None})
        self.calls: list[tuple[bool, bool, bool]] = []  # write, single, urgent

    async def open(self) -> list[str]:
        self.connection = self.engine.connect()
        return ["it is a simulation"]

    async def run(
        self,
        call: Callable[[Tx], R],
        *,
        write: bool,
        single: bool,
        patience: float | None = None,
        limit: float | None = None,
        flushed: bool = True,
        rank: Rank = Rank.ENGINE,
    ) -> R:
        self.calls.append((write, single, rank is Rank.HEARTBEAT))
        return self.transactions.run_transaction(self.connection, call, write=write)

    async def close(self, within: float | None = None) -> None:
        self.connection.close()
        self.engine.dispose()


async def test_a_third_backend_serves_every_verb_and_every_sibling(
    shelf: Shelf, tmp_path: Any, make_database: MakeDatabase
) -> None:
    made: list[OneConnection] = []

    def make_backend(transactions: TransactionRunner) -> ConnectionBackend:
        made.append(OneConnection(str(file_of(database_url)), transactions))
        return made[-1]

    database_url = make_url(shelf.take("sqlite", tmp_path))
    database = await make_database(database_url, make_backend=make_backend)
    assert database.cautions == ["it is a simulation"]
    await database.write(add, "a")
    await database.write_one(add, "b")
    await database.write_unflushed(add, "c")
    await database.exclusive(lambda tx: add(tx, "d"), patience=1)
    async with database.heartbeat_database() as sibling:
        await sibling.write(add, "e")
    assert await database.read(names) == ["a", "b", "c", "d", "e"]
    assert len(made) == 1
    assert made[0].calls == [
        (True, False, False),
        (True, True, False),
        (True, True, False),
        (True, False, False),
        (True, False, True),
        (False, True, False),
    ]


# ── time and chance ───────────────────────────────────────────────────────────────────────────────────────────────────
class SteppedClock:
    """A local clock that a test moves on."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def now(self) -> int:
        return round(self.seconds * 1_000_000)

    def boot(self) -> int:
        return self.now()

    def monotonic(self) -> float:
        return self.seconds


async def test_the_offset_is_measured_with_the_clock_that_was_given(
    database_url: str, make_database: MakeDatabase
) -> None:
    database = await make_database(database_url, database_clock=lambda: 1_000_000_007, clock=SteppedClock())
    assert await database.measure_offset() == 7
    assert database.offset_us == 7


async def test_tries_end_by_the_clock_that_was_given(database: Database) -> None:
    clock = SteppedClock()
    retries = Retries(database.dialect, clock=clock, random=random.Random(5), patience=30)
    again = Retries(database.dialect, clock=clock, random=random.Random(5), patience=30)
    lost = CommitLost("no answer")
    assert retries.pause(lost) == 0  # the first new connection is made at once
    pause = retries.pause(lost)
    assert pause is not None
    assert 0.05 <= pause <= 0.5
    assert (again.pause(lost), again.pause(lost)) == (0, pause)  # chance is an argument
    clock.seconds += 2.0
    assert retries.pause(lost) is None
    assert isinstance(retries.final(lost, "here"), CommitUnknown)
