"""How long a process trusts its lease: counted from before it asked, whatever became of the answer on its way."""

from __future__ import annotations

import asyncio

from onebeat.concurrency.renewal import margin
from onebeat.locks import LocksOn
from onebeat.timing.clock import SECOND, SystemClock
from tests.locks.memory_backend import MemoryBackend, MemoryStore
from tests.support.databases import waits_until


class Jumping(SystemClock):
    """The machine's clock, and how far tests have moved it on."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead = 0

    def boot(self) -> int:
        return super().boot() + self.ahead


class Slow(MemoryBackend):
    """Grants at once; the clock goes on by `late` microseconds before the answer arrives."""

    def __init__(self, backend: MemoryStore, clock: Jumping, late: int) -> None:
        super().__init__(backend)
        self.clock = clock
        self.late = late
        self.asked = 0  # when the last request arrived here

    def twin(self) -> Slow:
        return self

    async def acquire(self, name: str, owner: str, ttl: int, holder: str) -> int | None:
        self.asked = self.clock.boot()
        fence = await super().acquire(name, owner, ttl, holder)
        self.clock.ahead += self.late
        return fence

    async def renew(self, name: str, owner: str, ttl: int) -> bool:
        self.asked = self.clock.boot()
        kept = await super().renew(name, owner, ttl)
        self.clock.ahead += self.late
        return kept


async def test_trust_counts_from_before_the_request_was_sent() -> None:
    clock = Jumping()
    backend = Slow(MemoryStore(), clock, 10 * SECOND)
    async with LocksOn(backend, clock=clock) as locks, locks.lock("a", ttl=30) as lease:
        assert lease._hold.deadline <= backend.asked + 30 * SECOND - margin(30 * SECOND)


async def test_a_renewals_trust_counts_from_before_it_was_sent() -> None:
    clock = Jumping()
    backend = Slow(MemoryStore(), clock, 0)
    async with LocksOn(backend, clock=clock) as locks, locks.lock("a", ttl=3) as lease:
        before, backend.late = lease._hold.deadline, SECOND // 2
        await waits_until(lambda: lease._hold.deadline > before)
        assert lease._hold.deadline <= backend.asked + 3 * SECOND - margin(3 * SECOND)


async def test_a_grant_that_is_heard_of_too_late_is_given_back_and_trusted_by_nobody() -> None:
    clock = Jumping()
    backend = Slow(MemoryStore(), clock, 30 * SECOND)
    async with LocksOn(backend, clock=clock) as locks:
        assert await locks.lock("a", ttl=30).try_acquire() is None
        assert await locks.list() == []


async def test_a_process_that_was_stopped_knows_at_once_that_its_lease_is_over() -> None:
    """The deadline is read, not awaited: no timer and no thread has to run before."""
    clock = Jumping()
    async with LocksOn(MemoryBackend(MemoryStore()), clock=clock) as locks:
        lease = await locks.lock("a", ttl=30).acquire()
        clock.ahead += 26 * SECOND
        assert lease.lost.is_set()
        async with asyncio.timeout(5):
            assert await lease.lost.wait()
