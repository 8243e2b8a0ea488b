"""Many locks of one process over a slow connection: they are renewed together, and each loss is told apart."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack

import pytest

from onebeat import Scheduler
from onebeat.locks import DatabaseLocks
from onebeat.store import locks as rows
from onebeat.store.connection.database import Database
from onebeat.timing.clock import SECOND
from tests.conftest import SERVERS
from tests.support.databases import waits_until
from tests.support.proxy import proxy_to

SERVED = pytest.mark.parametrize("database_kind", [kind for kind in ("postgresql", "mariadb") if kind in SERVERS])


async def test_locks_are_renewed_together_and_those_that_ended_are_not(database: Database) -> None:
    held = [(f"lock-{number}", secrets.token_hex(16)) for number in range(5)]
    for name, owner in held:
        await database.write_one(rows.acquire, name, owner, 60 * SECOND, "here")
    every = {owner for _, owner in held}
    before = {row.name: row.expires_us for row in await database.read(rows.held)}
    assert await database.write_one(rows.renew_all, held, 90 * SECOND) == every
    after = {row.name: row.expires_us for row in await database.read(rows.held)}
    assert all(after[name] - before[name] >= 29 * SECOND for name, _ in held)
    await database.write(rows.release, *held[0])
    stranger = (held[1][0], secrets.token_hex(16))
    assert await database.write_one(rows.renew_all, [*held, stranger], 90 * SECOND) == every - {held[0][1]}
    assert await database.write_one(rows.renew_all, [held[0]], 90 * SECOND) == set()
    assert await database.write_one(rows.renew_all, [], 90 * SECOND) == set()


@SERVED
@pytest.mark.parametrize("own", ["locks of a scheduler", "locks on their own"])
async def test_the_renewals_of_many_locks_cost_few_round_trips(database_url: str, own: str) -> None:
    async with proxy_to(database_url) as proxy, AsyncExitStack() as stack:
        if own == "locks on their own":
            locks = await stack.enter_async_context(DatabaseLocks(proxy.url))
        else:
            locks = (await stack.enter_async_context(Scheduler(proxy.url, role="client"))).locks
        leases = [await locks.lock(f"lock-{number}", ttl=6).acquire() for number in range(60)]
        deadlines, before = [lease._hold.deadline for lease in leases], proxy.messages
        await waits_until(lambda: all(lease._hold.deadline > old for lease, old in zip(leases, deadlines, strict=True)))
        assert proxy.messages - before <= 20
        assert not any(lease.lost.is_set() for lease in leases)
        for lease in leases:
            await lease.release()


@SERVED
@pytest.mark.campaign  # the test above
@pytest.mark.parametrize("delay", [0.02, 0.05, 0.1])
async def test_four_hundred_locks_hold_over_a_slow_connection(database_url: str, delay: float) -> None:
    async with proxy_to(database_url) as proxy, Scheduler(proxy.url, role="client") as scheduler:
        leases = [await scheduler.lock(f"lock-{number}", ttl=8).acquire() for number in range(400)]
        proxy.delay = delay
        await asyncio.sleep(9)  # a lease is trusted for 6 s after its last renewal
        assert not any(lease.lost.is_set() for lease in leases)
        proxy.delay = 0
        for lease in leases:
            await lease.release()
