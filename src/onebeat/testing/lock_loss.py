"""The lock contract on renewal and loss: who is told, what is cancelled, and that no cancel is eaten."""

from __future__ import annotations

import asyncio
import time

import pytest

from onebeat.errors import LeaseLost
from onebeat.testing.lock_support import SHORT, WITHIN, OpenLocks, patiently


class Loss:
    """What becomes of a lease while it is held."""

    async def test_a_held_lock_outlives_its_ttl(self, open_locks: OpenLocks) -> None:
        ours, theirs = await open_locks(), await open_locks()

        async def outlives(ttl: float) -> None:
            async with ours.lock("a", ttl=ttl) as lease:
                until = time.monotonic() + 1.5 * ttl
                while time.monotonic() < until:
                    assert await theirs.lock("a").try_acquire() is None or lease.lost.is_set()
                    await asyncio.sleep(0.05)
                await lease.check()

        await patiently(outlives)

    async def test_a_lock_taken_by_force_cancels_its_body(self, open_locks: OpenLocks) -> None:
        ours, theirs = await open_locks(), await open_locks()
        lease = await ours.lock("a", ttl=SHORT).acquire()
        reached = []

        async def work() -> None:
            async with asyncio.timeout(WITHIN), lease:
                assert await theirs.force_release("a", reason="a test")
                async with theirs.lock("a") as later:
                    assert later.fence > lease.fence
                    reached.append("taken")
                    await asyncio.Event().wait()
                reached.append("never")

        with pytest.raises(LeaseLost, match="was lost"):
            await work()
        assert reached == ["taken"]
        assert lease.lost.is_set()
        assert await lease.lost.wait()
        with pytest.raises(LeaseLost):
            await lease.check()

    async def test_check_says_at_once_that_it_was_taken(self, open_locks: OpenLocks) -> None:
        ours, theirs = await open_locks(), await open_locks()
        lease = await ours.lock("a").acquire()
        await lease.check()
        await theirs.force_release("a", reason="a test")
        with pytest.raises(LeaseLost):
            await lease.check()
        assert lease.lost.is_set()
        with pytest.raises(LeaseLost):
            await lease.release()

    async def test_an_outer_cancel_is_never_eaten(self, open_locks: OpenLocks) -> None:
        ours, theirs = await open_locks(), await open_locks()
        entered = asyncio.Event()

        async def work() -> None:
            async with ours.lock("a", ttl=SHORT):
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.ensure_future(work())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with theirs.lock("a", wait=WITHIN):
            pass  # it was released

    async def test_a_cancel_at_any_moment_leaves_no_lock_behind(self, open_locks: OpenLocks) -> None:
        ours, theirs = await open_locks(), await open_locks()

        async def work() -> None:
            async with ours.lock("a", wait=WITHIN):
                await asyncio.sleep(0)

        for moment in range(40):
            task = asyncio.ensure_future(work())
            for _ in range(moment):
                await asyncio.sleep(0 if moment % 2 else 0.0002)  # so many turns of the loop, short and longer ones
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() or task.exception() is None
            async with theirs.lock("a", wait=WITHIN):  # sooner than its lease of half a minute would have ended
                pass

    async def test_an_outer_cancel_beside_a_loss_goes_on(self, open_locks: OpenLocks) -> None:
        ours, theirs = await open_locks(), await open_locks()
        entered = asyncio.Event()
        seen: list[str] = []

        async def work() -> None:
            try:
                async with ours.lock("a", ttl=SHORT) as lease:
                    entered.set()
                    try:
                        await asyncio.Event().wait()
                    finally:
                        await asyncio.shield(lease.lost.wait())
            except BaseException as error:
                seen.append(type(error).__name__)
                raise

        task = asyncio.ensure_future(work())
        await entered.wait()
        task.cancel()
        await theirs.force_release("a", reason="a test")
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(WITHIN):
                await task
        assert seen == ["CancelledError"]

    async def test_an_error_of_the_body_comes_through(self, open_locks: OpenLocks) -> None:
        locks = await open_locks()
        with pytest.raises(ZeroDivisionError):
            async with locks.lock("a"):
                _ = 1 / 0
        lease = await locks.lock("a").try_acquire()
        assert lease is not None
        await lease.release()

    async def test_nothing_is_renewed_for_a_task_that_has_ended(self, open_locks: OpenLocks) -> None:
        ours, theirs = await open_locks(), await open_locks()
        lease = await asyncio.create_task(ours.lock("a", ttl=SHORT).acquire())
        async with theirs.lock("a", wait=WITHIN) as later:
            assert later.fence > lease.fence
        assert lease.lost.is_set()
