"""The suite that every back end of locks passes; subclass it for a back end of your own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any

import pytest
import pytest_asyncio

from onebeat.errors import ConfigurationError, LockTimeout
from onebeat.locks.base import LocksOn
from onebeat.testing.lock_loss import Loss
from onebeat.testing.lock_misuse import Misuse
from onebeat.testing.lock_support import SHORT, WITHIN, LateAnswer, MakeLocks as MakeLocks, OpenLocks
from onebeat.testing.lock_threads import Threads


class LockContract(Loss, Misuse, Threads):
    """What a lock promises, as tests, with pytest and pytest-asyncio. Give it a fixture `make_locks`:

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

    @pytest_asyncio.fixture
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

    # ── owners: what a back end is asked directly, because here the caller knows already ─────────────────────────────
    async def test_a_release_that_comes_too_late_frees_nobody_elses_lock(self, open_locks: OpenLocks) -> None:
        ours, theirs = await open_locks(), await open_locks()
        lease = await ours.lock("a").acquire()
        await theirs.force_release("a", reason="a test")
        async with theirs.lock("a", wait=0) as later:
            assert not await ours._backend.release("a", lease._hold.owner)
            await later.check()
            assert await ours.lock("a").try_acquire() is None

    async def test_a_renewal_that_comes_too_late_takes_nothing_back(self, open_locks: OpenLocks) -> None:
        ours, theirs = await open_locks(), await open_locks()
        lease = await ours.lock("a").acquire()
        owner, ttl = lease._hold.owner, lease._hold.ttl
        await theirs.force_release("a", reason="a test")
        assert not await ours._backend.renew("a", owner, ttl)
        async with theirs.lock("a", wait=0) as later:
            assert not await ours._backend.renew("a", owner, ttl)
            assert not await ours._backend.holds("a", owner)
            await later.check()

    async def test_a_lease_that_ran_out_is_over_for_good(self, open_locks: OpenLocks) -> None:
        if not self.leased:
            return
        locks = await open_locks()
        owner, ttl = "a" * 32, int(SHORT * 1_000_000)
        assert await locks._backend.acquire("a", owner, ttl, "one who died") is not None
        async with asyncio.timeout(WITHIN):
            while await locks.list():  # noqa: ASYNC110 - nobody tells of a lease that runs out
                await asyncio.sleep(0.05)
        assert not await locks._backend.renew("a", owner, ttl)
        assert not await locks._backend.holds("a", owner)
        assert await locks.list() == []

    async def test_a_request_whose_answer_was_lost_is_recognised(self, open_locks: OpenLocks) -> None:
        if not self.leased:
            return  # in one process no answer is lost
        locks = await open_locks()
        owner, ttl = "a" * 32, int(WITHIN * 1_000_000)
        fences = [await locks._backend.acquire("a", owner, ttl, "one who asks twice") for _ in range(2)]
        assert None not in fences
        assert len(await locks.list()) == 1
        for _ in range(2):
            assert await locks._backend.release("a", owner)
        async with locks.lock("a", wait=0) as lease:
            assert lease.fence > max(fence or 0 for fence in fences)

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

    async def test_a_cancelled_waiter_waits_no_more(self, open_locks: OpenLocks) -> None:
        ours, theirs = await open_locks(), await open_locks()
        async with ours.lock("a"):
            waiter = asyncio.ensure_future(theirs.lock("a").acquire())
            await asyncio.sleep(0)
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
        async with asyncio.timeout(WITHIN), ours.lock("a"):
            assert [info.name for info in await theirs.list()] == ["a"]

    async def test_a_waiter_cancelled_before_it_hears_of_its_grant_gives_it_back(self, open_locks: OpenLocks) -> None:
        ours, theirs = await open_locks(), await open_locks()
        late = theirs._backend = LateAnswer(theirs._backend)
        waiter = asyncio.ensure_future(theirs.lock("a").acquire())
        async with asyncio.timeout(WITHIN):
            await late.granted.wait()
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
            late.heard.set()
            async with ours.lock("a"):  # sooner than its lease of half a minute would have ended
                pass

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
