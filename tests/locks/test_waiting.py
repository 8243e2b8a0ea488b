"""Waiting: a release nearby or a hint cuts the pause short; who is not told looks again by itself."""

from __future__ import annotations

import asyncio

import pytest

from onebeat.errors import LockTimeout
from onebeat.locks import LocksOn, base
from tests.locks.memory_backend import MemoryBackend, MemoryStore
from tests.support.databases import waits_until

WITHIN = 20.0  # seconds
FOR_EVER = 3600.0  # seconds between two looks: nobody gets there without being told


@pytest.fixture
def sleepy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who wait would not look again by themselves."""
    monkeypatch.setattr(base, "pause", lambda tries, random_part: FOR_EVER)


async def waits(locks: LocksOn[MemoryBackend], times: int = 1) -> list[asyncio.Task[int]]:
    """So many tasks that have tried once and wait."""

    async def turn() -> int:
        async with locks.lock("a", wait=None) as lease:
            return lease.fence

    tasks = [asyncio.create_task(turn()) for _ in range(times)]
    await waits_until(lambda: len(locks._waiters._waiting.get("a", ())) == times)
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


@pytest.mark.usefixtures("sleepy")
async def test_a_release_in_the_same_process_wakes_one_after_the_other() -> None:
    async with LocksOn(MemoryBackend(MemoryStore())) as locks:
        async with locks.lock("a"):
            waiting = await waits(locks, 5)
        async with asyncio.timeout(WITHIN):
            fences = await asyncio.gather(*waiting)
        assert len(set(fences)) == 5


@pytest.mark.usefixtures("sleepy")
async def test_a_hint_from_another_process_wakes_those_who_wait_here() -> None:
    place = MemoryStore()
    async with LocksOn(MemoryBackend(place)) as ours, LocksOn(MemoryBackend(place)) as theirs:
        ours.on_release = theirs.look  # what carries it is not the locks' business; it names no lock
        async with ours.lock("a"):
            [waiting] = await waits(theirs)
            theirs.look()  # a hint that is wrong harms nobody
            await asyncio.sleep(0.05)
            assert not waiting.done()
        async with asyncio.timeout(WITHIN):
            await waiting


async def test_who_is_not_told_looks_again_by_itself() -> None:
    place = MemoryStore()
    async with LocksOn(MemoryBackend(place)) as ours, LocksOn(MemoryBackend(place)) as theirs:
        async with ours.lock("a"):
            [waiting] = await waits(theirs)
        async with asyncio.timeout(WITHIN):
            await waiting


@pytest.mark.usefixtures("sleepy")
async def test_a_wait_ends_in_time_although_the_pause_is_longer() -> None:
    place = MemoryStore()
    async with LocksOn(MemoryBackend(place)) as ours, LocksOn(MemoryBackend(place)) as theirs:
        async with ours.lock("a"):
            with pytest.raises(LockTimeout, match=r"waited 0\.1 s"):
                async with asyncio.timeout(WITHIN):
                    await theirs.lock("a", wait=0.1).acquire()
        async with theirs.lock("a", wait=0):
            pass
