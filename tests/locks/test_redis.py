"""What only Redis promises, and what becomes of locks when it forgets, goes away or has a wrong clock."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis

from onebeat.errors import DatabaseUnavailable, LeaseLost
from onebeat.locks import RedisLocks, redis as redis_locks
from onebeat.testing.lock_support import patiently
from tests.locks.losing import HOUR, SLOW, TTL, loses, lost_body
from tests.support.servers import RedisServer

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "locks.md"


async def test_the_permissions_that_the_guide_names_are_enough(redis_server: RedisServer) -> None:
    found = re.search(r"an ACL with `([^`]+)`", GUIDE.read_text())
    assert found is not None
    redis_server.sql(f"ACL SETUSER app on >word {found[1]}")
    url = redis_server.url.replace(f":{redis_server.password}@", "app:word@")
    async with RedisLocks(url) as locks:

        async def uses(ttl: float) -> None:
            async with locks.lock("a", ttl=ttl) as lease:
                held = await locks._backend.renew("a", lease._hold.owner, lease._hold.ttl)
                assert held
                await lease.check()
                assert [info.name for info in await locks.list()] == ["a"]

        await patiently(uses)
        await locks.lock("b").acquire()
        assert await locks.force_release("b", reason="a test")


@pytest.mark.parametrize("fault", ["flushed", "restarted"])
async def test_a_redis_that_forgets_gives_larger_fences_and_the_loss_is_noticed(
    redis_server: RedisServer, fault: str
) -> None:
    async with RedisLocks(redis_server.url) as ours, RedisLocks(redis_server.url) as theirs:
        later: list[int] = []

        async def forget() -> None:
            if fault == "flushed":
                redis_server.sql("FLUSHALL")
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
        redis_server.sql("FLUSHALL")
        monkeypatch.setattr(redis_locks, "NOW", f"{redis_locks.NOW} - {HOUR} * 1000000")
        async with locks.lock("a") as lease:
            assert lease.fence < before


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
