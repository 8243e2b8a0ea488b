"""The lock contract on the blocking form: `with`, in threads and in scripts."""

from __future__ import annotations

import asyncio

import pytest

from onebeat.errors import ConfigurationError, LeaseLost, LockTimeout, NotStarted
from onebeat.testing.lock_support import SHORT, WITHIN, MakeLocks, OpenLocks


class Threads:
    """The same promises for callers without an event loop."""

    async def test_the_blocking_form_excludes_the_other(self, open_locks: OpenLocks) -> None:
        ours, theirs = await open_locks(), await open_locks()

        def in_a_thread() -> int:
            lock = ours.lock("a", wait=0)
            with lock as lease:
                assert theirs.lock("a").try_acquire_sync() is None
                with pytest.raises(LockTimeout, match="not re-entrant"), lock:
                    pytest.fail("two hold it")
                lease.check()
                assert not lease.lost.is_set()
                assert not lease.lost.wait(0.01)
            return lease.fence

        fence = await asyncio.to_thread(in_a_thread)
        async with theirs.lock("a", wait=0) as lease:
            assert lease.fence > fence

            def refused() -> None:
                with pytest.raises(LockTimeout), ours.lock("a", wait=0.1):
                    pytest.fail("two hold it")

            await asyncio.to_thread(refused)
        with pytest.raises(ConfigurationError, match="async with"):
            ours.lock("a").acquire_sync()

    async def test_a_thread_learns_of_the_loss(self, open_locks: OpenLocks) -> None:
        ours, theirs = await open_locks(), await open_locks()
        entered = asyncio.Event()
        loop = asyncio.get_running_loop()

        def in_a_thread() -> None:
            with ours.lock("a", ttl=SHORT) as lease:
                loop.call_soon_threadsafe(entered.set)
                assert lease.lost.wait(WITHIN)
                with pytest.raises(LeaseLost):
                    lease.check()

        thread = asyncio.ensure_future(asyncio.to_thread(in_a_thread))
        await entered.wait()
        await theirs.force_release("a", reason="a test")
        with pytest.raises(LeaseLost):
            await thread

    async def test_a_script_opens_them_without_an_event_loop(self, make_locks: MakeLocks) -> None:
        def script() -> list[int]:
            fences = []
            with make_locks() as locks:
                for _ in range(2):
                    with locks.lock("a", wait=0) as lease:
                        fences.append(lease.fence)
                lease = locks.lock("a").acquire_sync()
                lease.release()
                with pytest.raises(LeaseLost, match="released already"):
                    lease.release()
            return fences

        first, second = await asyncio.to_thread(script)
        assert first < second

    async def test_a_script_that_has_not_opened_them_is_told(self, make_locks: MakeLocks) -> None:
        def script() -> None:
            locks = make_locks()
            with pytest.raises(NotStarted, match="not open"), locks.lock("a"):
                pytest.fail("nothing is open")
            with locks:
                pass
            with pytest.raises(NotStarted, match="not open"):
                locks.lock("a").try_acquire_sync()

        await asyncio.to_thread(script)
