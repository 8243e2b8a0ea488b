"""The suite that every back end of locks passes; subclass it for a back end of your own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any

import pytest

from onebeat.errors import ConfigurationError, LeaseLost, LockTimeout, NotStarted
from onebeat.locks.base import LocksOn

MakeLocks = Callable[[], LocksOn[Any]]
OpenLocks = Callable[[], Awaitable[LocksOn[Any]]]
SHORT = 1.0  # seconds: the lease of locks that are to run out or to be renewed
LONGER = (SHORT, 4.0, 12.0)  # seconds: where a machine is too busy to renew the shorter ones in time
WITHIN = 20.0  # seconds for anything that must come about; machines that run tests are slow


async def patiently(work: Callable[[float], Awaitable[None]]) -> None:
    """Do what needs a renewed lease of so many seconds; with longer ones where the machine was too slow for that."""
    for ttl in LONGER[:-1]:
        try:
            return await work(ttl)
        except LeaseLost:
            continue
    return await work(LONGER[-1])


class LockContract:
    """What a lock promises, as tests. Give it a fixture `make_locks`:

    ```python
    class TestEtcdLocks(LockContract):
        @pytest.fixture
        def make_locks(self, etcd_url):
            return lambda: LocksOn(EtcdBackend(etcd_url))
    ```

    Each call makes locks that share nothing with the others but the place: as another process would.
    `leased = False` says that the back end's locks never run out while their process lives.
    """

    leased = True
    pytestmark = pytest.mark.asyncio

    @pytest.fixture
    def make_locks(self) -> MakeLocks:
        """Returns new, unopened locks at one place at each call."""
        raise NotImplementedError("a LockContract needs a fixture make_locks that returns a function")

    @pytest.fixture
    async def open_locks(self, make_locks: MakeLocks) -> AsyncIterator[OpenLocks]:
        """Opens locks, and closes them at the end of the test."""
        async with AsyncExitStack() as stack:

            async def open_one() -> LocksOn[Any]:
                locks: LocksOn[Any] = await stack.enter_async_context(make_locks())
                return locks

            yield open_one

    # ── exclusion and fences ──────────────────────────────────────────────────────────────────────────────────────────
    async def test_only_one_holds_it(self, open_locks: OpenLocks) -> None:
        ours, theirs = await open_locks(), await open_locks()
        async with ours.lock("a") as lease:
            assert await theirs.lock("a").try_acquire() is None
            assert await ours.lock("a").try_acquire() is None
            other = await theirs.lock("b").try_acquire()
            assert other is not None
            await other.release()
            await lease.check()
        again = await theirs.lock("a").try_acquire()
        assert again is not None
        await again.release()

    async def test_fences_grow_whoever_acquires(self, open_locks: OpenLocks) -> None:
        places = [await open_locks(), await open_locks()]
        fences = []
        for turn in range(8):
            async with places[turn % 2].lock("a") as lease:
                fences.append(lease.fence)
        assert all(before < after for before, after in pairwise(fences)), fences

    async def test_many_tasks_take_turns(self, open_locks: OpenLocks) -> None:
        places = [await open_locks(), await open_locks()]
        inside, most, turns = 0, 0, []

        async def work(locks: LocksOn[Any]) -> None:
            nonlocal inside, most
            for _ in range(3):
                async with locks.lock("a") as lease:
                    inside += 1
                    most = max(most, inside)
                    turns.append(lease.fence)
                    await asyncio.sleep(0)
                    inside -= 1

        async with asyncio.timeout(60):
            await asyncio.gather(*(work(places[n % 2]) for n in range(8)))
        assert most == 1
        assert turns == sorted(set(turns))
        assert len(turns) == 24

    async def test_names_are_compared_letter_by_letter(self, open_locks: OpenLocks) -> None:
        locks = await open_locks()
        async with locks.lock("Backup"):
            for name in ("backup", "Backup.", "BACKUP"):
                other = await locks.lock(name).try_acquire()
                assert other is not None, name
                await other.release()

    # ── waiting ───────────────────────────────────────────────────────────────────────────────────────────────────────
    async def test_wait_says_how_long(self, open_locks: OpenLocks) -> None:
        ours, theirs = await open_locks(), await open_locks()
        async with ours.lock("a"):
            for wait in (0, 0.2):
                before = time.monotonic()
                with pytest.raises(LockTimeout, match="held by somebody else"):
                    async with theirs.lock("a", wait=wait):
                        pytest.fail("two hold it")
                assert wait <= time.monotonic() - before < WITHIN

    async def test_a_waiter_gets_it_after_the_release(self, open_locks: OpenLocks) -> None:
        ours, theirs = await open_locks(), await open_locks()
        lease = await ours.lock("a").acquire()
        waiter = asyncio.ensure_future(theirs.lock("a", wait=WITHIN).acquire())
        await asyncio.sleep(0)
        await lease.release()
        later = await waiter
        assert later.fence > lease.fence
        await later.release()

    async def test_a_cancelled_waiter_leaves_nothing_behind(self, open_locks: OpenLocks) -> None:
        ours, theirs = await open_locks(), await open_locks()
        for turn in range(20):
            waiter = asyncio.ensure_future(theirs.lock("a").acquire())
            await asyncio.sleep(turn * 0.0005)
            waiter.cancel()
            try:
                await (await waiter).release()  # it was quicker
            except asyncio.CancelledError:
                pass
            async with asyncio.timeout(WITHIN), ours.lock("a"):
                pass

    # ── renewal and loss ──────────────────────────────────────────────────────────────────────────────────────────────
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

    # ── misuse ────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def test_releasing_twice_says_so(self, open_locks: OpenLocks) -> None:
        locks = await open_locks()
        lease = await locks.lock("a").acquire()
        await lease.release()
        with pytest.raises(LeaseLost, match="released already"):
            await lease.release()
        with pytest.raises(LeaseLost, match="was released"):
            await lease.check()

    async def test_a_nested_acquire_is_refused_instead_of_waiting_for_ever(self, open_locks: OpenLocks) -> None:
        locks = await open_locks()
        lock = locks.lock("a")
        async with lock:
            with pytest.raises(LockTimeout, match="not re-entrant"):
                async with lock:
                    pytest.fail("two hold it")
            assert await lock.try_acquire() is None
        async with lock:
            pass  # the refused one has not disturbed it

    @pytest.mark.parametrize("name", ["", " ", "a b", "ä", "a\nb", "{a}", "x" * 201, None])
    async def test_a_bad_name_is_refused_before_anything_is_sent(self, make_locks: MakeLocks, name: Any) -> None:
        with pytest.raises(ConfigurationError, match="name"):
            make_locks().lock(name)

    @pytest.mark.parametrize("ttl", [0, -1, 0.1, float("nan"), float("inf"), 90_000, "30", True])
    async def test_a_bad_ttl_is_refused(self, make_locks: MakeLocks, ttl: Any) -> None:
        with pytest.raises(ConfigurationError, match="ttl"):
            make_locks().lock("a", ttl=ttl)

    async def test_a_bad_wait_is_refused(self, make_locks: MakeLocks) -> None:
        with pytest.raises(ConfigurationError, match="wait"):
            make_locks().lock("a", wait=-1)

    async def test_use_before_opening_and_after_closing_says_so(self, make_locks: MakeLocks) -> None:
        locks = make_locks()
        with pytest.raises(NotStarted, match="open"):
            async with locks.lock("a"):
                pytest.fail("nothing is open")
        async with locks:
            pass
        with pytest.raises(NotStarted, match="open"):
            await locks.lock("a").try_acquire()

    async def test_use_from_another_event_loop_says_so(self, open_locks: OpenLocks) -> None:
        locks = await open_locks()
        lease = await locks.lock("a").acquire()

        async def elsewhere() -> None:
            with pytest.raises(NotStarted, match="another event loop"):
                await locks.lock("b").acquire()
            with pytest.raises(NotStarted, match="event loop"):
                await lease.release()
            with pytest.raises(NotStarted, match="event loop"):
                await lease.check()

        await asyncio.to_thread(asyncio.run, elsewhere())
        await lease.release()

    async def test_closing_gives_back_what_is_held(self, make_locks: MakeLocks, open_locks: OpenLocks) -> None:
        theirs = await open_locks()
        async with make_locks() as ours:
            lease = await ours.lock("a").acquire()
        assert lease.lost.is_set()
        later = await theirs.lock("a").try_acquire()
        assert later is not None
        await later.release()

    # ── the rest of the interface ─────────────────────────────────────────────────────────────────────────────────────
    async def test_the_list_names_what_is_held(self, open_locks: OpenLocks) -> None:
        ours, theirs = await open_locks(), await open_locks()
        assert await theirs.list() == []
        async with ours.lock("b"), ours.lock("a") as lease:
            found = await theirs.list()
            assert [info.name for info in found] == ["a", "b"]
            assert found[0].fence == lease.fence
            assert found[0].holder
            assert found[0].acquired_at is not None
            assert (found[0].expires_at is not None) == self.leased
        assert await theirs.list() == []

    async def test_force_release_of_a_free_lock_says_so(self, open_locks: OpenLocks) -> None:
        locks = await open_locks()
        assert not await locks.force_release("a", reason="a test")
        with pytest.raises(ConfigurationError, match="reason"):
            await locks.force_release("a", reason=" ")
        with pytest.raises(ConfigurationError, match="name"):
            await locks.force_release("a b", reason="a test")

    async def test_a_decorated_function_holds_the_lock_its_arguments_name(self, open_locks: OpenLocks) -> None:
        ours, theirs = await open_locks(), await open_locks()

        @ours.locked("mail-{user_id}")
        async def mail(user_id: int, *, words: str = "hi") -> list[str]:
            return [info.name for info in await theirs.list()]

        assert await mail(7) == ["mail-7"]
        assert await mail(user_id=8, words="no") == ["mail-8"]
        assert await theirs.list() == []

    # ── the blocking form ─────────────────────────────────────────────────────────────────────────────────────────────
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
