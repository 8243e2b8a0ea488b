"""Compares the database's clock with this process's monotonic clock, and mends the schedules after it was set back."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from onebeat.engine.wakeups import Wakeups
from onebeat.model.events import ClockStepped, Event
from onebeat.model.protocols import Clock
from onebeat.store.connection.database import Database
from onebeat.store.schedules import clock_step

SECOND = 1_000_000
STEP = 30 * SECOND  # the clock was set when it differs by more than this from the time that passed; less is adjustment
QUICK = 5 * SECOND  # a reading that took longer says too little


class ClockWatch:
    """Measures the offset of the database's clock again and again; a step of that clock is announced.

    A step back leaves next fires that lie further ahead than their triggers say: schedules would stand still until the
    clock has caught up. So they are computed anew. The same is done once at start where the tables say that the clock
    was ahead: a step that no running process saw.
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
            moved = await self._mend() if self._stepped < 0 else 0
            self._announce(ClockStepped(seconds=self._stepped / SECOND, moved=moved))
            self._stepped = 0
        elif not self._looked_back:
            moved = await self._mend() if await self._database.read(clock_step.was_ahead) else 0
            if moved:
                self._announce(ClockStepped(seconds=None, moved=moved))
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

    async def _mend(self) -> int:
        """Compute the next fires anew, in short transactions; return how many were moved."""
        await self._database.write(clock_step.shorten_leases)
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
