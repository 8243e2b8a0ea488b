"""Waiting for a lock: jittered pauses, which a release in this process or a hint cuts short; no order is promised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from onebeat.concurrency.alarm import Alarm
from onebeat.concurrency.forks import ForkSafeLock

FIRST = 0.02  # seconds until the second try
LONGEST = 1.0  # seconds between tries at most


def pause(tries: int, random_part: float) -> float:
    """Return the seconds before the next try after `tries` of them; `random_part` from 0 to 1 spreads half of it.

    >>> [round(pause(n, 1.0), 2) for n in (1, 2, 3, 4, 5, 6, 7, 8)]
    [0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0]
    >>> pause(1, 0.0)
    0.01
    """
    full: float = min(LONGEST, FIRST * 2 ** (min(tries, 10) - 1))
    return full * (0.5 + 0.5 * random_part)


class Waiters:
    """The alarms of those who wait for a lock in this process, by the lock's name."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._mutex = ForkSafeLock()
        self._waiting: dict[str, set[Alarm]] = {}

    @contextmanager
    def waiting(self, name: str) -> Iterator[Alarm]:
        """Enter a waiter for the lock `name`; its alarm is set when the lock may be free."""
        alarm = Alarm()
        with self._mutex:
            self._waiting.setdefault(name, set()).add(alarm)
        try:
            yield alarm
        finally:
            with self._mutex:
                alarms = self._waiting[name]
                alarms.discard(alarm)
                if not alarms:
                    del self._waiting[name]

    def wake_one(self, name: str) -> None:
        """Let one of the waiters for `name` try now; from any thread."""
        with self._mutex:
            alarms = list(self._waiting.get(name, ()))
        if alarms:
            self._random.choice(alarms).set_threadsafe()

    def wake_all(self) -> None:
        """Let every waiter try now, because any lock may be free; from any thread."""
        with self._mutex:
            alarms = [alarm for waiting in self._waiting.values() for alarm in waiting]
        for alarm in alarms:
            alarm.set_threadsafe()
