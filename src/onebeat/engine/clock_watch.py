"""Compares the database's clock with this process's monotonic clock, and mends what one that was ahead left behind."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from onebeat.engine.wakeups import AT_ONCE, Wakeups
from onebeat.model.events import ClockStepped, Event
from onebeat.model.protocols import Clock
from onebeat.store import clock_ahead
from onebeat.store.connection.database import Database
from onebeat.store.schedules import clock_step

SECOND = 1_000_000
STEP = 30 * SECOND  # the clock was set when it differs by more than this from the time that passed; less is adjustment
QUICK = 5 * SECOND  # a reading that took longer says too little


class ClockWatch:
    """Measures the offset of the database's clock again and again; a step of that clock is announced.

    A step back leaves next fires that lie further ahead than their triggers say: schedules would stand still until the
    clock has caught up. So they are computed anew, and so are the starts of retries and the ends of leases. The same is
    done once at start where the tables say that the clock was ahead: a step that no running process saw.
    """

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        interval: int,
        wakeups: Wakeups,
        random: Random,
        announce: Callable[[Event], None],
    ) -> None:
        self._database = database
        self._clock = clock
        self._interval = interval
        self._wakeups = wakeups
        self._random = random
        self._announce = announce
        self._ahead_of_boot: int | None = None  # the database's clock minus this process's monotonic clock
        self._stepped = 0  # microseconds that are not announced yet
        self._looked_back = False  # whether the tables were asked for a step before this start

    async def tick(self, now: int) -> int | None:
        """Measure once; return when to measure again, with jitter."""
        await self._measure()
        if self._stepped:
            seconds = self._stepped / SECOND
            self._announce(await self._mended(seconds) if seconds < 0 else ClockStepped(seconds=seconds, moved=0))
            self._stepped = 0
        elif not self._looked_back and await self._database.read(clock_ahead.was_ahead):
            event = await self._mended(None)
            if event.moved or event.retries or event.delayed:
                self._announce(event)
        self._looked_back = True
        return now + int(self._interval * (0.9 + 0.2 * self._random.random()))

    async def _measure(self) -> None:
        before = self._clock.boot()
        offset = await self._database.measure_offset()
        after = self._clock.boot()
        if after - before > QUICK:
            return
        ahead = self._clock.now() + offset - after
        if self._ahead_of_boot is not None and abs(ahead - self._ahead_of_boot) > STEP:
            self._stepped += ahead - self._ahead_of_boot
        self._ahead_of_boot = ahead

    async def _mended(self, seconds: float | None) -> ClockStepped:
        """Mend what a clock that was ahead left behind, and return what was done."""
        await self._database.write(clock_ahead.shorten_leases)
        moved, retries = await self._bring_schedules_forward(), await self._bring_retries_forward()
        delayed = len(await self._database.read(clock_ahead.delayed_ahead))
        return ClockStepped(seconds=seconds, moved=moved, retries=retries, delayed=delayed)

    async def _bring_retries_forward(self) -> int:
        retries = 0
        while count := await self._database.write(clock_ahead.bring_retries_forward):
            retries += count
        if retries:
            self._wakeups.jobs_delayed(AT_ONCE)
        return retries

    async def _bring_schedules_forward(self) -> int:
        """Compute the next fires anew, in short transactions; return how many were moved."""
        moved, behind = 0, ""
        while True:
            count, last = await self._database.write(clock_step.bring_forward, behind)
            moved += count
            if last is None:
                break
            behind = last
        if moved:
            self._wakeups.schedules_changed()
        return moved
