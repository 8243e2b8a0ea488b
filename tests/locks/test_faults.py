"""Memory lost, a clock set back, a server gone: fences never shrink, and a loss is noticed within the lease."""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import delete, make_url

from onebeat.errors import DatabaseUnavailable, LeaseLost
from onebeat.locks import DatabaseLocks, FileLocks, RedisLocks
from onebeat.locks.base import LocksOn
from onebeat.locks.heartbeat import LockHeartbeat
from onebeat.store.connection.database import Database
from onebeat.store.tables import build
from onebeat.store.tx import Tx
from onebeat.testing.lock_support import patiently
from tests.conftest import SERVERS, MakeDatabase
from tests.locks.losing import HOUR, SLOW, TTL, loses, lost_body
from tests.support.databases import waits_until
from tests.support.proxy import proxy_to
from tests.support.virtual import VirtualClock


async def test_an_emptied_table_gives_larger_fences_and_the_loss_is_noticed(
    database_url: str, make_database: MakeDatabase
) -> None:
    third = await make_database(database_url)
    async with DatabaseLocks(database_url) as ours, DatabaseLocks(database_url) as theirs:
        later: list[int] = []

        async def empty() -> None:
            await third.write(lambda tx: tx.execute(delete(tx.tables.locks)) and None)
            async with theirs.lock("a", wait=0) as lease:
                later.append(lease.fence)

        assert await loses(ours, empty) < later[-1]


def _later(clock: Callable[[], int], by: int) -> int:
    return clock() + by


@pytest.mark.parametrize("place", ["database", "redis"])
async def test_a_process_whose_own_clock_is_wrong_takes_and_loses_nothing(
    place: str, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the place decides; a process's own could be hours off, or jump."""
    prefix = f"onebeat-test-{secrets.token_hex(6)}"

    def locks() -> LocksOn[Any]:
        return RedisLocks(redis_url, prefix=prefix) if place == "redis" else DatabaseLocks(database_url)

    async with locks() as ours, locks() as theirs, ours.lock("a") as lease:
        at = time.time_ns
        for ahead in (HOUR, -HOUR):
            wrong = partial(_later, at, ahead * 1_000_000_000)
            monkeypatch.setattr(time, "time_ns", wrong)
            monkeypatch.setattr(time, "time", lambda wrong=wrong: wrong() / 1e9)
            assert await theirs.lock("a").try_acquire() is None
            await lease.check()
            async with theirs.lock("b") as other:
                assert abs(other.fence - lease.fence) < HOUR / 2 * 1_000_000, "the fence came from this clock"


async def test_a_database_clock_set_back_an_hour_costs_nobody_a_lock_or_a_fence(database_url: str) -> None:
    clock = VirtualClock()

    def locks() -> DatabaseLocks:
        return DatabaseLocks(Database(database_url, tables=build(), database_clock=clock))

    async with locks() as ours, locks() as theirs:
        fences = [0]

        async def set_back(ttl: float) -> None:
            async with ours.lock("a", ttl=ttl) as lease:
                clock.advance(-HOUR)
                before = lease._hold.deadline
                await waits_until(lambda: lease._hold.deadline > before)  # a row that needs no change is renewed too
                await lease.check()
                assert await theirs.lock("a").try_acquire() is None
                fences.append(lease.fence)

        await patiently(set_back)
        for _ in range(3):
            async with theirs.lock("a", wait=0) as lease:
                fences.append(lease.fence)
        assert fences == sorted(set(fences))


async def test_a_renewal_while_the_clock_is_behind_shortens_no_lease(
    database_url: str, make_database: MakeDatabase
) -> None:
    """The clock is set back an hour and right again: nobody loses what was granted before."""
    from onebeat.store import locks as rows

    clock = VirtualClock()
    database = await make_database(database_url, database_clock=clock)
    name, owner, ttl = "a", "a" * 32, 30_000_000
    assert await database.write_one(rows.acquire, name, owner, ttl, "us")
    clock.advance(-HOUR)
    assert await database.write_one(rows.renew, name, owner, ttl)
    clock.advance(HOUR)
    assert await database.read(rows.holds, name, owner)
    assert await database.write_one(rows.acquire, name, "b" * 32, ttl, "them") is None


async def test_a_lock_taken_by_force_is_missed_at_the_next_renewal_long_before_the_deadline(database_url: str) -> None:
    async with DatabaseLocks(database_url) as ours, DatabaseLocks(database_url) as theirs:
        lease = await ours.lock("a", ttl=4 * TTL).acquire()  # renewed after a quarter, trusted for two thirds
        with pytest.raises(LeaseLost, match="taken by force"):
            await lost_body(lease, lambda: theirs.force_release("a", reason="a test"))


async def test_a_database_clock_set_forward_is_a_loss_that_is_noticed(database_url: str) -> None:
    clock = VirtualClock()
    async with DatabaseLocks(Database(database_url, tables=build(), database_clock=clock)) as locks:

        async def forward() -> None:
            clock.advance(HOUR)

        await loses(locks, forward)


@pytest.mark.parametrize("database_kind", [kind for kind in ("postgresql", "mariadb") if kind in SERVERS])
async def test_a_database_that_goes_away_ends_the_trust_before_the_lease(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with proxy_to(database_url) as proxy, DatabaseLocks(proxy.url) as locks:
        lease = await locks.lock("a", ttl=TTL).acquire()

        async def cut() -> None:
            proxy.refuse = True
            proxy.cut()
            with pytest.raises(DatabaseUnavailable):
                await lease.check()

        async with locks.lock("b"):  # whose work is done by then: it ends well, and its row with its lease
            begun = time.monotonic()
            with pytest.raises(LeaseLost, match="renewed in time"):
                await lost_body(lease, cut)
            assert time.monotonic() - begun < TTL + SLOW
        assert "'b' could not be released" in caplog.text
        with pytest.raises(DatabaseUnavailable):
            await locks.lock("c").acquire()


@pytest.mark.parametrize("database_kind", ["sqlite"])
async def test_a_file_that_another_program_keeps_locked_ends_the_trust_before_the_lease(database_url: str) -> None:
    other = sqlite3.connect(str(make_url(database_url).database), isolation_level=None, check_same_thread=False)

    async def writes() -> None:
        await asyncio.to_thread(other.execute, "BEGIN IMMEDIATE")

    async with DatabaseLocks(database_url) as locks:
        lease = await locks.lock("a", ttl=TTL).acquire()
        with pytest.raises(LeaseLost, match="renewed in time"):
            await lost_body(lease, writes)
        other.execute("ROLLBACK")
        async with locks.lock("a", wait=SLOW) as later:
            assert later.fence > lease.fence
    other.close()


async def test_a_lease_that_needs_renewal_sooner_wakes_the_thread_that_sleeps_for_another(database_url: str) -> None:
    async with DatabaseLocks(database_url) as locks, locks.lock("long", ttl=HOUR):
        heartbeat = locks._beat
        assert isinstance(heartbeat, LockHeartbeat)
        await waits_until(lambda: heartbeat._asleep_until is not None)
        async with locks.lock("short", ttl=4 * TTL) as lease:
            before = lease._hold.deadline
            await waits_until(lambda: lease._hold.deadline > before)


async def test_a_blocked_event_loop_does_not_lose_the_lock(database_url: str) -> None:
    async with DatabaseLocks(database_url) as locks:

        async def blocked(ttl: float) -> None:
            async with locks.lock("a", ttl=ttl) as lease:
                time.sleep(1.5 * ttl)  # what a careless function does to its event loop
                await lease.check()

        await patiently(blocked)


async def test_names_that_are_not_used_any_more_are_forgotten_and_their_next_fence_is_larger(
    database_url: str, make_database: MakeDatabase
) -> None:
    from onebeat.store import locks as rows

    database = await make_database(database_url)

    def age(tx: Tx) -> None:
        """As if everything had happened more than a month ago."""
        c = tx.tables.locks.c
        tx.execute(
            tx.tables.locks.update().values(
                {each: each - rows.UNUSED - 60_000_000 for each in (c.fence, c.acquired_us)}
            )
        )

    async with DatabaseLocks(database_url) as locks:
        fences = {}
        for name in ("a", "b", "c"):
            async with locks.lock(name) as lease:
                fences[name] = lease.fence
        assert await locks.prune() == 0, "they were used just now"
        await database.write(age)
        held = await locks.lock("c").acquire()
        await database.write(age)  # held for more than a month, and renewed just now
        assert await database.write(lambda tx: rows.prune(tx, limit=1)) == 1
        assert await locks.prune() == 1, "one is left, and one is held"
        await held.check()
        for name in ("a", "b"):
            async with locks.lock(name) as lease:
                assert lease.fence > fences[name]


async def test_a_row_whose_fence_is_ahead_of_the_clock_is_not_forgotten(
    database_url: str, make_database: MakeDatabase
) -> None:
    """The clock was set back: its successor's fence can come from the row alone."""
    from onebeat.store import locks as rows

    database = await make_database(database_url)
    async with DatabaseLocks(database_url) as locks:
        async with locks.lock("a") as lease:
            pass
        await database.write(lambda tx: tx.execute(tx.tables.locks.update().values(acquired_us=0)) and None)
        assert await database.write(rows.prune, HOUR * 1_000_000) == 0
        async with locks.lock("a") as later:
            assert later.fence > lease.fence


async def test_a_forced_release_is_in_the_audit_table(database_url: str, make_database: MakeDatabase) -> None:
    database = await make_database(database_url)
    async with DatabaseLocks(database_url) as locks:
        lease = await locks.lock("a").acquire()
        assert await locks.force_release("a", reason="its holder hangs")

    def look(tx: Tx) -> Any:
        return tx.execute(tx.tables.audit.select()).one()

    row = await database.read(look)
    assert (row.action, row.subject, row.reason) == ("lock.force_release", "a", "its holder hangs")
    assert str(lease.fence) in row.before_json


async def test_a_forced_release_is_written_down_beside_the_files_and_in_redis(tmp_path: Path, redis_url: str) -> None:
    prefix = f"onebeat-test-{secrets.token_hex(6)}"

    def client() -> Any:
        return Redis.from_url(redis_url, decode_responses=True)

    for locks in (FileLocks(tmp_path / "locks"), RedisLocks(client, prefix=prefix)):
        async with locks:
            lease = await locks.lock("a").acquire()
            assert await locks.force_release("a", reason="its holder hangs")
            assert not await locks.force_release("a", reason="again"), "nobody holds it any more"
            if isinstance(locks, FileLocks):
                [line] = (tmp_path / "locks" / "audit.log").read_text().splitlines()
                assert str(lease.fence) in line
            else:
                async with client() as asking:
                    [line] = await asking.lrange(f"{prefix}:audit", 0, -1)
            assert "its holder hangs" in line
            assert f":{os.getpid()} " in line
