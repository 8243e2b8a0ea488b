"""Leases that another task leaves, that are lost, or that nobody gives back."""

from __future__ import annotations

import asyncio

import pytest

from onebeat.errors import LeaseLost
from onebeat.locks import LocksOn
from tests.locks.memory_backend import MemoryBackend, MemoryStore


async def test_a_lock_that_another_task_leaves_is_given_back() -> None:
    async with LocksOn(MemoryBackend(MemoryStore())) as locks:
        lock = locks.lock("a", wait=0)
        await lock.__aenter__()
        await asyncio.create_task(lock.__aexit__(None, None, None))
        assert await locks.list() == []
        with pytest.raises(LeaseLost, match="was not entered"):
            await lock.__aexit__(None, None, None)


async def test_a_lock_may_be_taken_again_inside_a_body_that_lost_it() -> None:
    async with LocksOn(MemoryBackend(MemoryStore())) as locks:
        lock = locks.lock("a")

        async def work() -> None:
            async with lock as lease:
                await locks.force_release("a", reason="a test")
                with pytest.raises(LeaseLost):
                    await lease.check()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    async with lock as later:
                        assert later.fence > lease.fence

        with pytest.raises(LeaseLost):
            await work()
        assert await locks.list() == []


async def test_a_lease_that_is_lost_and_never_given_back_leaves_nothing_behind() -> None:
    async with LocksOn(MemoryBackend(MemoryStore())) as locks:
        lease = await locks.lock("a").acquire()
        lease._hold.lost("a test took it")
        assert not locks._held
