"""Memory lost, a clock set back, a server gone: fences never shrink, and a loss is noticed within the lease."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import delete

from onebeat.errors import DatabaseUnavailable, LeaseLost
from onebeat.locks import DatabaseLocks, FileLocks, RedisLocks, redis as redis_locks
from onebeat.locks.base import LocksOn
from onebeat.locks.keeper import Keeper
from onebeat.store.database import Database
from onebeat.store.tables import build
from onebeat.store.transaction import Tx
from onebeat.testing.lock_support import patiently
from tests.conftest import SERVERS, MakeDatabase
from tests.locks.conftest import RedisServer
from tests.support.databases import waits_until
from tests.support.proxy import proxy_to
from tests.support.virtual import VirtualClock

HOUR = 3600
TTL = 1.5  # seconds
SLOW = 10.0  # seconds that a busy machine may add


async def loses(locks: LocksOn[Any], fault: Callable[[], Awaitable[object]]) -> int:
    """Hold a lock, let the fault happen, and be cancelled before the lease would have been over; its fence.

    Where the machine was too busy for a short lease, with a longer one.
    """
    for ttl in (TTL, 4 * TTL, 16 * TTL):
        lease = await locks.lock("a", ttl=ttl, wait=SLOW).acquire()
        begun = time.monotonic()
        happening = asyncio.ensure_future(fault())
        with pytest.raises(LeaseLost):
            await lost_body(lease, asyncio.Event().wait, ttl)
        took = time.monotonic() - begun
        await happening
        if took < ttl:
            return lease.fence
    raise AssertionError(f"the loss of a lease of {ttl} s was noticed after {took} s")


async def lost_body(lease: Any, work: Callable[[], Awaitable[object]], ttl: float = TTL) -> None:
    async with asyncio.timeout(ttl + SLOW), lease:
        await work()
        await asyncio.Event().wait()


@pytest.mark.parametrize("fault", ["flushed", "restarted"])
async def test_a_redis_that_forgets_gives_larger_fences_and_the_loss_is_noticed(
    redis_server: RedisServer, fault: str
) -> None:
    async with RedisLocks(redis_server.url) as ours, RedisLocks(redis_server.url) as theirs:
        later: list[int] = []

        async def forget() -> None:
            if fault == "flushed":
                redis_server.command("FLUSHALL")
            else:
                await asyncio.to_thread(redis_server.kill)
                await asyncio.to_thread(redis_server.start)
            async with theirs.lock("a", wait=SLOW) as lease:
                later.append(lease.fence)

        assert await loses(ours, forget) < later[-1]


async def test_a_redis_clock_set_back_an_hour_gives_larger_fences(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with RedisLocks(redis_url, prefix=f"onebeat-test-{secrets.token_hex(6)}") as locks:
        async with locks.lock("a") as lease:
            before = lease.fence
        monkeypatch.setattr(redis_locks, "NOW", f"{redis_locks.NOW} - {HOUR} * 1000000")
        for _ in range(3):
            async with locks.lock("a", ttl=TTL) as lease:
                assert lease.fence > before
                before = lease.fence
                await lease.check()


async def test_a_redis_that_forgets_while_its_clock_is_behind_is_not_covered(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both at once: docs/locks.md names it. Each alone is covered above."""
    async with RedisLocks(redis_server.url) as locks:
        async with locks.lock("a") as lease:
            before = lease.fence
        redis_server.command("FLUSHALL")
        monkeypatch.setattr(redis_locks, "NOW", f"{redis_locks.NOW} - {HOUR} * 1000000")
        async with locks.lock("a") as lease:
            assert lease.fence < before


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
        return DatabaseLocks(Database(database_url, tables=build(), clock=clock))

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
    database = await make_database(database_url, clock=clock)
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
    async with DatabaseLocks(Database(database_url, tables=build(), clock=clock)) as locks:

        async def forward() -> None:
            clock.advance(HOUR)

        await loses(locks, forward)


async def test_a_lock_directory_that_is_emptied_is_noticed_and_fences_grow(tmp_path: Path) -> None:
    async with FileLocks(tmp_path / "locks") as ours, FileLocks(tmp_path / "locks") as theirs:
        later: list[int] = []

        async def empty() -> None:
            for path in (tmp_path / "locks").iterdir():
                path.unlink()
            async with theirs.lock("a", wait=0) as lease:
                later.append(lease.fence)

        assert await loses(ours, empty) < later[-1]


async def test_a_record_cut_short_by_a_power_cut_is_as_one_that_was_lost(tmp_path: Path) -> None:
    async with FileLocks(tmp_path / "locks") as locks:
        async with locks.lock("a") as lease:
            before = lease.fence
        record = next((tmp_path / "locks").glob("*.json"))
        for content in (b"", record.read_bytes()[:20], b"[]", b'{"what": 1}', b"\xff"):
            record.write_bytes(content)
            assert await locks.list() == []
            async with locks.lock("a", wait=0) as lease:
                assert lease.fence > before
                before = lease.fence


async def test_a_machine_clock_set_back_does_not_shrink_a_files_fence(tmp_path: Path) -> None:
    class Behind:
        def now(self) -> int:
            return time.time_ns() // 1000 - HOUR * 1_000_000

        def boot(self) -> int:
            return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000

    async with FileLocks(tmp_path / "locks") as locks, locks.lock("a") as lease:
        before = lease.fence
    async with FileLocks(tmp_path / "locks", clock=Behind()) as locks, locks.lock("a") as lease:
        assert lease.fence > before


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


async def test_a_redis_that_goes_away_ends_the_trust_before_the_lease(redis_server: RedisServer) -> None:
    async with RedisLocks(redis_server.url) as locks:
        lease = await locks.lock("a", ttl=TTL).acquire()

        async def kill() -> None:
            redis_server.kill()
            with pytest.raises(DatabaseUnavailable, match="is it running"):
                await lease.check()

        begun = time.monotonic()
        with pytest.raises(LeaseLost, match="renewed in time"):
            await lost_body(lease, kill)
        assert time.monotonic() - begun < TTL + SLOW
        with pytest.raises(DatabaseUnavailable):
            await locks.lock("b").acquire()


async def test_a_lease_that_needs_renewal_sooner_wakes_the_thread_that_sleeps_for_another(database_url: str) -> None:
    async with DatabaseLocks(database_url) as locks, locks.lock("long", ttl=HOUR):
        keeper = locks._beat
        assert isinstance(keeper, Keeper)
        await waits_until(lambda: keeper._asleep_until is not None)
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


async def test_a_forked_child_does_not_keep_the_files_lock(tmp_path: Path) -> None:
    async with FileLocks(tmp_path / "locks") as ours, FileLocks(tmp_path / "locks") as theirs:
        lease = await ours.lock("a").acquire()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)  # lives until the parent has looked
            os._exit(0)
        os.close(reader)
        try:
            await lease.release()
            later = await theirs.lock("a", wait=0).acquire()
            await later.release()
        finally:
            os.close(writer)
            os.waitpid(pid, 0)


async def test_a_directory_that_others_may_enter_or_a_link_is_refused(tmp_path: Path) -> None:
    from onebeat.errors import ConfigurationError

    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    (tmp_path / "private").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "private")
    for name in ("open", "link"):
        with pytest.raises(ConfigurationError):
            await FileLocks(tmp_path / name).open()
    async with FileLocks(tmp_path / "private") as locks, locks.lock("a"):
        assert not [path.name for path in (tmp_path / "private").iterdir() if path.name.startswith("a")]
    lock = next((tmp_path / "private").glob("*.lock"))
    lock.unlink()
    lock.symlink_to(tmp_path / "elsewhere")
    async with FileLocks(tmp_path / "private") as locks:
        with pytest.raises(DatabaseUnavailable):
            await locks.lock("a").acquire()
    assert not (tmp_path / "elsewhere").exists()


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
    assert (row.what, row.subject, row.reason) == ("lock.force_release", "a", "its holder hangs")
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


async def test_a_redis_that_accepts_and_says_nothing_is_given_up_on_opening() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    locks = RedisLocks(lambda: Redis(port=port, socket_timeout=None))
    with pytest.raises(DatabaseUnavailable, match=r"did not answer within 0\.3 s"):
        await locks.open(timeout=0.3)
    server.close()
