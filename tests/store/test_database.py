"""Transactions: what commits, what does not, and what the caller is told."""

from __future__ import annotations

import asyncio
import time

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from onebeat.errors import NotStarted
from onebeat.store.connection.database import Database
from onebeat.store.tx import Tx
from tests.conftest import MakeDatabase


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
    database = await make_database(database_url, clock=lambda: 1_234)

    def both(tx: Tx) -> tuple[int, int]:
        return tx.now(), tx.execute(select(tx.clock)).scalar_one()

    assert await database.read(both) == (1_234, 1_234)


async def test_the_blocking_verbs_serve_threads(database: Database) -> None:
    def in_a_thread() -> list[str]:
        with database.sync() as blocking:
            blocking.write(add, "a")
            blocking.write_one(add, "b")
            return blocking.read(names)

    assert await asyncio.to_thread(in_a_thread) == ["a", "b"]
    assert await database.read(names) == ["a", "b"]


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
