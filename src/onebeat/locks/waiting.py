"""Waiting for a lock: jittered pauses that a release nearby, or a hint, cuts short; no order is promised."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

FIRST = 0.02  # seconds until the second try
LONGEST = 1.0  # seconds between tries at most


def pause(tries: int, random_part: float) -> float:
    """Seconds before the next try after `tries` of them; `random_part` from 0 to 1 spreads half of it.

    >>> [round(pause(n, 1.0), 2) for n in (1, 2, 3, 4, 5, 6, 7, 8)]
    [0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0]
    >>> pause(1, 0.0)
    0.01
    """
    full: float = min(LONGEST, FIRST * 2 ** (min(tries, 10) - 1))
    return full * (0.5 + 0.5 * random_part)


def jittered(tries: int) -> float:
    """`pause` with a random part of its own."""
    return pause(tries, random.random())  # noqa: S311 - jitter, not a secret


class Bell:
    """One waiter; it may ring before anybody sleeps."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake the waiter, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._rung.set)
        except RuntimeError:  # its loop is closed
            return

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds, or at once when rung since the last sleep."""
        timer = self._loop.call_later(max(seconds, 0), self._rung.set)
        try:
            await self._rung.wait()
        finally:
            timer.cancel()
        self._rung.clear()


class Bells:
    """Who waits for which lock in this process."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: dict[str, set[Bell]] = {}

    @contextmanager
    def waiting(self, name: str) -> Iterator[Bell]:
        """A bell that rings when `name` may be free."""
        bell = Bell()
        with self._mutex:
            self._waiting.setdefault(name, set()).add(bell)
        try:
            yield bell
        finally:
            with self._mutex:
                bells = self._waiting[name]
                bells.discard(bell)
                if not bells:
                    del self._waiting[name]

    def ring(self, name: str) -> None:
        """One of the waiters for `name` may try now."""
        with self._mutex:
            bells = list(self._waiting.get(name, ()))
        if bells:
            random.choice(bells).ring()  # noqa: S311 - fairness, not a secret

    def ring_all(self) -> None:
        """A hint came, from which nothing is known but that it is worth a look."""
        with self._mutex:
            bells = [bell for waiting in self._waiting.values() for bell in waiting]
        for bell in bells:
            bell.ring()
