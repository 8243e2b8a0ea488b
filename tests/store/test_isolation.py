"""Transactions of two callers: the isolation level, the compare-and-set, and deadlocks."""

from __future__ import annotations

import asyncio

from sqlalchemy import select, text

from onebeat.store.tx import Tx
from tests.conftest import MakeDatabase
from tests.store.conftest import Private
from tests.support.servers import PostgreSQLServer


async def test_the_level_is_read_committed_whatever_the_servers_default(
    running: Private, make_database: MakeDatabase
) -> None:
    database = await make_database(running.url)
    if isinstance(running, PostgreSQLServer):
        assert running.sql("SHOW default_transaction_isolation") == "serializable"
        ask, durable, expected = text("SHOW transaction_isolation"), text("SHOW synchronous_commit"), "read committed"
    else:
        assert running.sql("SELECT @@GLOBAL.tx_isolation") == "SERIALIZABLE"
        ask, durable, expected = text("SELECT @@SESSION.tx_isolation"), text("SELECT 'on'"), "READ-COMMITTED"
        assert "innodb_flush_log_at_trx_commit is 2" in database.cautions[0]

    def level(tx: Tx) -> tuple[str, str]:
        return tx.execute(ask).scalar_one(), tx.execute(durable).scalar_one()

    assert await database.write(level) == (expected, "on")
    assert await database.write_one(level) == (expected, "on")
    assert await database.read(level) == (expected, "on")


async def test_a_compare_and_set_that_waited_sees_the_winners_row(
    running: Private, make_database: MakeDatabase
) -> None:
    """In the server's own SERIALIZABLE the second one would raise; in READ COMMITTED it loses with a row count of 0."""
    database = await make_database(running.url)
    await database.write(lambda tx: tx.execute(tx.tables.limits.insert().values(name="n", kind="task")))
    loop, held, go = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def move(tx: Tx, wait: bool) -> int:
        from sqlalchemy.util import await_only

        limits = tx.tables.limits
        moved = tx.execute(limits.update().where(limits.c.name == "n", limits.c.tokens == 0).values(tokens=1)).rowcount
        if wait:
            loop.call_soon(held.set)
            await_only(go.wait())
        return moved

    first = asyncio.create_task(database.write(move, True))
    await held.wait()
    second = asyncio.create_task(database.write(move, False))
    await asyncio.sleep(0.2)
    assert not second.done()
    go.set()
    assert (await first, await second) == (1, 0)


async def test_a_deadlock_is_tried_again_and_both_succeed(served: str, make_database: MakeDatabase) -> None:
    database = await make_database(served)
    await database.write(lambda tx: tx.execute(tx.tables.limits.insert(), [{"name": n, "kind": "task"} for n in "ab"]))
    both, arrived, runs = asyncio.Event(), 0, 0
    loop = asyncio.get_running_loop()

    def cross(tx: Tx, order: tuple[str, str]) -> None:
        from sqlalchemy.util import await_only

        nonlocal arrived, runs
        runs += 1
        limits = tx.tables.limits
        for position, name in enumerate(order):
            tx.execute(limits.update().where(limits.c.name == name).values(tokens=limits.c.tokens + 1))
            if position == 0 and arrived < 2:
                arrived += 1
                if arrived == 2:
                    loop.call_soon(both.set)
                await_only(both.wait())

    await asyncio.gather(database.write(cross, ("a", "b")), database.write(cross, ("b", "a")))
    used = await database.read(lambda tx: list(tx.execute(select(tx.tables.limits.c.tokens)).scalars()))
    assert used == [2, 2]
    assert runs == 3  # one of them was the victim and ran again
