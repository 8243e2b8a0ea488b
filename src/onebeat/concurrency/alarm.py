"""A sleep on an event loop that other tasks and threads can end early."""

from __future__ import annotations

import asyncio
import contextlib


class Alarm:
    """A flag that one task waits for, at most a given time; setting it before the wait is not lost.

    Only one task waits at a time. The alarm belongs to the event loop of that task and may be made outside of it.

    >>> async def ring() -> bool:
    ...     alarm = Alarm()
    ...     alarm.set()
    ...     return await alarm.wait(seconds=60)
    >>> asyncio.run(ring())
    True
    """

    __slots__ = ("_is_set", "_loop", "_waiter")

    def __init__(self) -> None:
        self._is_set = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_set(self) -> bool:
        """Return whether the next wait ends at once."""
        return self._is_set

    def set(self) -> None:
        """End the present wait, or the next one; to be called on the event loop of the waiting task."""
        if not self._is_set:
            self._is_set = True
            self._release()

    def set_threadsafe(self) -> None:
        """Do as `set`, from any thread; a closed event loop is not woken."""
        self._is_set = True  # before the loop is read: `wait` writes the loop before it reads the flag
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just been closed: nobody waits there
                loop.call_soon_threadsafe(self._release)

    def clear(self) -> None:
        """Forget that the alarm was set."""
        self._is_set = False

    async def wait(self, seconds: float | None = None) -> bool:
        """Return True as soon as the alarm is set, False when `seconds` have passed; None waits without limit.

        The alarm is cleared. Other tasks of the event loop get a turn even when there is nothing to wait for.
        """
        self._loop = loop = asyncio.get_running_loop()
        if self._is_set or (seconds is not None and seconds <= 0):
            await asyncio.sleep(0)
        else:
            self._waiter = waiter = loop.create_future()
            timer = None if seconds is None else loop.call_later(seconds, _complete, waiter)
            try:
                await waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()
        was_set, self._is_set = self._is_set, False
        return was_set

    def _release(self) -> None:
        if self._is_set and self._waiter is not None:
            _complete(self._waiter)


def _complete(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
