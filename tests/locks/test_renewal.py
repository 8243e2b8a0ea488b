"""The heartbeat of locks without a scheduler."""

from __future__ import annotations

from onebeat.locks import LocksOn
from tests.locks.memory_backend import MemoryBackend, MemoryStore
from tests.support.databases import waits_until


async def test_a_renewal_that_fails_in_an_unforeseen_way_is_tried_again() -> None:
    class Stumbles(MemoryBackend):
        stumbled = 0

        async def renew(self, name: str, owner: str, ttl: int) -> bool:
            if not Stumbles.stumbled:
                Stumbles.stumbled += 1
                raise ZeroDivisionError("a mistake in a back end of one's own")
            return await super().renew(name, owner, ttl)

        def twin(self) -> Stumbles:
            return Stumbles(self.store)

    async with LocksOn(Stumbles(MemoryStore())) as locks, locks.lock("a", ttl=4) as lease:
        before = lease._hold.deadline
        await waits_until(lambda: lease._hold.deadline > before)
        assert Stumbles.stumbled
