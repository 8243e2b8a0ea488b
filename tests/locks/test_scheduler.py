"""The locks of a scheduler: its database, its heartbeat thread, its life."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from onebeat import DatabaseUnavailable, LeaseLost, NotStarted, Scheduler
from onebeat.locks import DatabaseLocks
from onebeat.store.tx import Tx
from onebeat.testing.lock_support import patiently
from tests.conftest import SERVERS, MakeDatabase
from tests.support.proxy import proxy_to

WITHIN = 20.0  # seconds


def heartbeats() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "heartbeat" in thread.name]


@pytest.mark.parametrize("role", ["all", "client"])
async def test_a_schedulers_locks_are_renewed_by_its_own_heartbeat(database_url: str, role: Any) -> None:
    scheduler = Scheduler(database_url, role=role)
    before = heartbeats()
    async with scheduler, DatabaseLocks(database_url) as others:

        async def renewed(ttl: float) -> None:
            async with scheduler.lock("a", ttl=ttl) as lease:
                assert sorted(heartbeats()) == sorted([*before, "onebeat-heartbeat"])
                until = time.monotonic() + 1.5 * ttl
                while time.monotonic() < until:
                    assert await others.lock("a").try_acquire() is None or lease.lost.is_set()
                    await asyncio.sleep(0.05)
                await lease.check()
            async with others.lock("a", wait=WITHIN) as later:
                assert later.fence > lease.fence

        await patiently(renewed)


async def test_a_loss_reaches_the_body_through_the_schedulers_heartbeat(database_url: str) -> None:
    scheduler = Scheduler(database_url, role="client")

    async def work() -> None:
        async with asyncio.timeout(WITHIN), scheduler.lock("a", ttl=1):
            await scheduler.locks.force_release("a", reason="a test")
            await asyncio.Event().wait()

    async with scheduler:
        with pytest.raises(LeaseLost, match="was lost"):
            await work()


@pytest.mark.parametrize("database_kind", [kind for kind in ("postgresql", "mariadb") if kind in SERVERS])
async def test_a_database_that_goes_away_costs_a_schedulers_lock_at_its_deadline(database_url: str) -> None:
    async with proxy_to(database_url) as proxy, Scheduler(proxy.url, role="client") as scheduler:

        async def work() -> None:
            async with asyncio.timeout(WITHIN), scheduler.lock("a", ttl=1.5) as lease:
                proxy.refuse = True
                proxy.cut()
                with pytest.raises(DatabaseUnavailable):
                    await lease.check()
                await asyncio.Event().wait()

        with pytest.raises(LeaseLost, match="renewed in time"):
            await work()


async def test_locks_belong_to_a_running_scheduler_and_end_with_it(database_url: str) -> None:
    scheduler = Scheduler(database_url, role="client")
    lock = scheduler.lock("a", wait=0)
    with pytest.raises(NotStarted, match="not running"):
        await lock.acquire()
    for _ in range(2):  # starting again is ordinary
        async with scheduler:
            lease = await lock.acquire()
        assert lease.lost.is_set()
        with pytest.raises(NotStarted):
            await lock.acquire()


async def test_a_plain_function_in_a_thread_uses_with(database_url: str) -> None:
    scheduler = Scheduler(database_url, role="client")

    @scheduler.locked("report-{user}", wait=0)
    def report(user: str) -> int:
        with scheduler.lock("inner") as lease:
            lease.check()
            return lease.fence

    async with scheduler:
        assert await asyncio.to_thread(report, "ann") > 0
        assert await scheduler.locks.list() == []


async def test_a_schedulers_pruning_forgets_names_that_are_not_used_any_more(
    database_url: str, make_database: MakeDatabase
) -> None:
    database = await make_database(database_url)

    def names(tx: Tx) -> list[str]:
        return [row.name for row in tx.execute(tx.tables.locks.select())]

    async with Scheduler(database_url, role="client") as scheduler:
        for name in ("user-1", "user-2"):
            async with scheduler.lock(name):
                pass
        old = {"fence": 1, "acquired_us": 1}
        await database.write(
            lambda tx: (
                tx.execute(tx.tables.locks.update().values(old).where(tx.tables.locks.c.name == "user-1")) and None
            )
        )
        await scheduler.jobs.prune()
        assert await database.read(names) == ["user-2"]


def test_a_script_holds_a_lock_without_an_event_loop(database_url: str) -> None:
    with Scheduler(database_url, role="client") as scheduler, scheduler.lock("a", wait=0) as lease:
        lease.check()
