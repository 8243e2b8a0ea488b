"""Runs a tick again and again: sleep, early wake, back-off after errors, stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from onebeat.concurrency.alarm import Alarm
from onebeat.model.events import DatabaseBack, Event, trouble
from onebeat.model.protocols import Clock, Tick

SECOND = 1_000_000
LONGEST_SLEEP = 5 * SECOND  # timers count no suspended time; a bounded sleep notices a clock that jumped
LONGEST_BACKOFF = 5.0  # seconds: the database may be back any moment
STEP = SECOND // 10  # a change of the wall clock against the one that never steps; corrections of drift are smaller
MARGIN = 500  # microseconds to sleep longer, so that a wake-up is not a hair too early


@dataclass(frozen=True, slots=True, kw_only=True)
class Timers:
    """How loops sleep. The defaults are real time; a simulation makes alarms that ring in its own time.

    `alarm` makes the alarm of the loop with this name. `longest` and `margin` are microseconds.
    """

    alarm: Callable[[str], Alarm] = lambda name: Alarm()
    longest: int = LONGEST_SLEEP
    margin: int = MARGIN


class Loop:
    """Calls the tick of one part of the engine whenever it is due, woken, or to be retried after an error."""

    def __init__(
        self,
        name: str,
        tick: Tick,
        *,
        clock: Clock,
        random: Random,
        announce: Callable[[Event], None],
        timers: Timers | None = None,
    ) -> None:
        self.name = name
        self._tick = tick
        self._clock = clock
        self._announce = announce
        self._random = random
        self._timers = timers or Timers()
        self._alarm = self._timers.alarm(name)
        self._stopping = False
        self._failures = 0
        self._failing_since = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start ticking, with the first tick at once."""
        self._task = asyncio.create_task(self._run(), name=f"onebeat-{self.name}")

    def wake(self) -> None:
        """End the present sleep, or skip the next one; calling it again changes nothing."""
        self._alarm.set()

    async def stop(self, timeout: float = 5.0) -> None:
        """Wait for the present tick and start no other; cancel one that takes longer than `timeout` seconds."""
        self._stopping = True
        self.wake()
        if self._task is not None:
            _, hanging = await asyncio.wait({self._task}, timeout=timeout)
            if hanging:
                self._task.cancel()
                await asyncio.wait(hanging)

    def vanish(self) -> None:
        """End in the middle of whatever it does, as in a process that was killed."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while not self._stopping:
            self._alarm.clear()
            now, began = self._clock.now(), self._clock.boot()
            try:
                at = await self._tick(now)
            except Exception as error:  # noqa: BLE001 - one failed step must not end the part; it is announced
                await self._sleep(self._clock.boot() + self._after_failure(error), now - began)
            else:
                self._after_success()
                await self._sleep(None if at is None else began + at - now, now - began)

    async def _sleep(self, until: int | None, wall: int) -> None:
        """Return at `until` on the clock that never steps (None: never), when woken, or after a step of the wall clock.

        `wall`: how far the wall clock was ahead of the other one when the tick began.
        """
        while not self._stopping:
            longest, margin = self._timers.longest, self._timers.margin
            left = longest if until is None else min(until - self._clock.boot() + margin, longest)
            woken = await self._alarm.wait(0.0 if left <= margin else left / SECOND)
            if woken or (until is not None and self._clock.boot() >= until):
                return
            if abs(self._clock.now() - self._clock.boot() - wall) > STEP:
                return

    def _after_failure(self, error: Exception) -> int:
        """Announce the error and return the microseconds until the next try."""
        self._failing_since = self._failing_since or self._clock.boot()
        self._failures += 1
        longest = min(LONGEST_BACKOFF, 0.1 * 2 ** min(self._failures, 10))
        delay = longest * (0.5 + self._random.random() / 2)
        self._announce(trouble(self.name, error, delay))
        self._alarm.clear()  # a wake that came during the outage must not turn the back-off into a busy loop
        return int(delay * SECOND)

    def _after_success(self) -> None:
        if self._failures:
            self._announce(DatabaseBack(part=self.name, after=(self._clock.boot() - self._failing_since) / SECOND))
            self._failures = 0
            self._failing_since = 0
