"""Callers that are cancelled in the middle of a transaction leave no connection and no lock."""

from __future__ import annotations

import asyncio
import random

import pytest
from sqlalchemy import select

from onebeat.store.tx import Tx
from tests.conftest import MakeDatabase
from tests.store.test_database import add, names
from tests.support.databases import ADMINS, waits_until


async def test_a_thousand_cancels_leave_no_connection_and_no_lock(
    database_kind: str, database_url: str, make_database: MakeDatabase
) -> None:
    database = await make_database(database_url, pool_size=3)
    await database.write(lambda tx: tx.execute(tx.tables.limits.insert().values(name="n", kind="task")))
    dice = random.Random(7)

    def up(tx: Tx) -> None:
        limits = tx.tables.limits
        tx.execute(tx.dialect.lock_rows(select(limits.c.tokens).where(limits.c.name == "n"))).scalar_one()
        tx.execute(limits.update().where(limits.c.name == "n").values(tokens=limits.c.tokens + 1))

    finished = 0
    for _ in range(100):
        tasks = [asyncio.create_task(database.write(up)) for _ in range(10)]
        for _ in range(dice.randrange(12)):
            await asyncio.sleep(0)
        await asyncio.sleep(dice.random() * 0.003)
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        finished += sum(outcome is None for outcome in outcomes)
        assert all(outcome is None or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)

    await asyncio.wait_for(database.write(up), 10)  # the row is not locked by anybody
    used = await database.read(lambda tx: tx.execute(select(tx.tables.limits.c.tokens)).scalar_one())
    assert finished + 1 <= used <= 1001
    if database_kind != "sqlite":
        sessions = ADMINS[database_kind].sessions(str(database.url.database))
        assert 1 <= sessions <= 3
    await database.close()
    if database_kind != "sqlite":
        name = str(database.url.database)
        await waits_until(lambda: ADMINS[database_kind].sessions(name) == 0)


async def test_a_cancel_in_mid_transaction_lets_it_end_by_itself(served: str, make_database: MakeDatabase) -> None:
    database = await make_database(served)
    loop, held, go = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def slow(tx: Tx) -> None:
        from sqlalchemy.util import await_only

        add(tx, "a")
        loop.call_soon(held.set)
        await_only(go.wait())

    task = asyncio.create_task(database.write(slow))
    await held.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()
    await database.close()  # waits for it
    reopened = await make_database(served)
    assert await reopened.read(names) == ["a"]
