"""The lock contract on misuse: each mistake is one clear error that says what was found and what would work."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from onebeat.errors import ConfigurationError, LeaseLost, LockTimeout, NotStarted
from onebeat.testing.lock_support import MakeLocks, OpenLocks

NOT_A_NUMBER, ENDLESS = float("nan"), float("inf")
LIMITS = "0.5 to 86400 s"
BAD: list[tuple[str, Any, str]] = [  # what is wrong, its value, and what the error says of it
    ("name", "", "1 to 200"),
    ("name", " ", "1 to 200"),
    ("name", "a b", "'a b' cannot be a lock's name"),
    ("name", "ä", "'ä' cannot be a lock's name"),
    ("name", "a\nb", "1 to 200"),
    ("name", "{a}", "1 to 200"),
    ("name", "x" * 201, "1 to 200"),
    ("name", None, "is text, and this is NoneType"),
    ("name", b"a", "is text, and this is bytes"),
    ("ttl", 0, LIMITS),
    ("ttl", -1, "negative"),
    ("ttl", 0.1, LIMITS),
    ("ttl", 90_000, LIMITS),
    ("ttl", NOT_A_NUMBER, "must be finite"),
    ("ttl", ENDLESS, "must be finite"),
    ("ttl", "30", "give seconds as a number"),
    ("ttl", True, "give seconds as a number"),
    ("ttl", None, "give seconds as a number"),
    ("wait", -1, "negative"),
    ("wait", NOT_A_NUMBER, "must be finite"),
    ("wait", ENDLESS, "None waits without limit"),
    ("wait", "1", "give seconds as a number"),
    ("wait", True, "give seconds as a number"),
]


class Misuse:
    """What cannot work is refused with a reason, and disturbs nobody."""

    @pytest.mark.parametrize(("what", "value", "words"), BAD, ids=lambda each: repr(each)[:20])
    async def test_what_cannot_work_is_refused_before_anything_is_sent(
        self, make_locks: MakeLocks, what: str, value: Any, words: str
    ) -> None:
        locks = make_locks()  # not even open
        with pytest.raises(ConfigurationError, match=what) as refused:
            locks.lock(**{"name": "a", what: value})
        assert words in str(refused.value)
        if what != "name":
            with pytest.raises(ConfigurationError, match=what):
                locks.locked("a", **{what: value})

    async def test_blocking_an_event_loop_is_refused(self, open_locks: OpenLocks, make_locks: MakeLocks) -> None:
        lock = (await open_locks()).lock("a")
        for blocking in (lock, make_locks()):
            with pytest.raises(ConfigurationError, match="use `async with`, or go to a thread"), blocking:
                pytest.fail("the event loop was blocked")
        assert await lock.try_acquire() is not None, "the refused one left nothing behind"

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
