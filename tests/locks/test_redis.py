"""What only Redis promises."""

from __future__ import annotations

import re
from pathlib import Path

from onebeat.locks import RedisLocks
from onebeat.testing.lock_support import patiently
from tests.locks.conftest import RedisServer

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "locks.md"


async def test_the_permissions_that_the_guide_names_are_enough(redis_server: RedisServer) -> None:
    found = re.search(r"an ACL with `([^`]+)`", GUIDE.read_text())
    assert found is not None
    redis_server.command("ACL", "SETUSER", "app", "on", ">word", *found[1].split())
    url = redis_server.url.replace("redis://", "redis://app:word@")
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
