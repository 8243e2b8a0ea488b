"""Virtual time: a clock that only moves when a test says so, and the alarms of an engine that ring by it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from uuid import UUID

from onebeat.concurrency.alarm import Alarm
from onebeat.timing.clock import DAY, SECOND, SystemClock

UPKEEP = frozenset({"sweeper", "reconciler", "clock watch"})  # the loops that look after what went wrong
UPKEEP_EACH = 30 * DAY  # microseconds between two looks of them while nothing went wrong
UPKEEP_AFTER_CRASH = 15 * SECOND  # the same after a crash, as in production
LOOK_EACH = 0.02  # seconds of real time between two looks whether a run has ended


class VirtualTime:
    """The clocks of a simulated process and its database: `now`, `boot` and the call show virtual microseconds.

    `monotonic` is real: it limits what really takes time, such as a call of the database. Alarms ring only while the
    time is `open`. All but the clocks belong to the event loop of the engine.
    """

    def __init__(self, now: int, *, patience: float) -> None:
        self._now = now
        self.patience = patience  # real seconds to wait for a run before the time passes beside it
        self._opened = 0
        self._alarms: list[VirtualAlarm] = []
        self._sleepers: list[tuple[int, asyncio.Future[None], UUID | None]] = []
        self._held: set[UUID] = set()  # runs that outlasted the patience
        self._changed = Alarm()
        self._kept_up = now  # when the loops of `UPKEEP` last looked
        self._watch_until = now  # until then they look as often as in production

    # ── clocks ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def now(self) -> int:
        """Wall clock, virtual UTC microseconds since 1970."""
        return self._now

    def boot(self) -> int:
        """The same as `now`: virtual time is never set back."""
        return self._now

    def monotonic(self) -> float:
        """Real seconds."""
        return SystemClock().monotonic()

    def __call__(self) -> int:
        """The clock of the simulated database."""
        return self._now

    # ── alarms and sleeps ─────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def is_open(self) -> bool:
        """Return whether alarms ring."""
        return self._opened > 0

    @contextmanager
    def open(self) -> Iterator[None]:
        """Let the engine do what is due, without moving the time."""
        self._opened += 1
        for alarm in self._alarms:
            alarm.ring_if_set()
        try:
            yield
        finally:
            self._opened -= 1

    def alarm(self, worker: int, name: str) -> Alarm:
        """Return an alarm for the loop of this name in this worker."""
        alarm = VirtualAlarm(self, worker, is_upkeep=name in UPKEEP)
        self._alarms.append(alarm)
        return alarm

    def forget(self, worker: int) -> None:
        """Wait no more for the loops of this worker, which crashed or stopped."""
        self._alarms = [alarm for alarm in self._alarms if alarm.worker != worker]
        self.changed()

    def watch(self, duration: int) -> None:
        """Let the loops of `UPKEEP` look as often as in production for so many virtual microseconds from now."""
        self._watch_until = max(self._watch_until, self._now + duration)

    async def sleep(self, duration: int, job: UUID | None) -> None:
        """Return when so many virtual microseconds have passed; `job` is the run that sleeps."""
        future = asyncio.get_running_loop().create_future()
        entry = (self._now + duration, future, job)
        self._sleepers.append(entry)
        self.changed()
        try:
            await future
        finally:
            self._sleepers.remove(entry)

    def changed(self) -> None:
        """Let whoever waits for the engine look again."""
        self._changed.set()

    # ── the passage of time ───────────────────────────────────────────────────────────────────────────────────────────
    async def settle(self, running: Callable[[], Collection[UUID]], hooks: Callable[[], int]) -> set[UUID]:
        """Return when every loop sleeps and every run has ended, sleeps in virtual time, or outlasted the patience.

        The value is the runs of the last kind. Hooks are waited for with the same patience. One task may wait here.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self.patience
        while True:
            if not all(alarm.is_asleep for alarm in self._alarms):
                await self._changed.wait()
                until = loop.time() + self.patience
                continue
            present = set(running())
            self._held &= present
            asleep = {job for _, future, job in self._sleepers if not future.done()}
            busy = present - asleep - self._held
            left = until - loop.time()
            if not busy and (left <= 0 or not hooks()):
                return set(self._held)
            if left <= 0:
                self._held |= busy
            elif await self._changed.wait(min(left, LOOK_EACH)):
                until = loop.time() + self.patience

    def next_stop(self) -> int | None:
        """Return the next moment at which the engine or a sleeping run wants to go on."""
        stops = [alarm.due for alarm in self._alarms if alarm.due is not None and not alarm.is_upkeep]
        stops += [at for at, future, _ in self._sleepers if not future.done()]
        if self._now < self._watch_until:
            stops.append(self._kept_up + UPKEEP_AFTER_CRASH)
        return min(stops, default=None)

    def move_to(self, moment: int) -> None:
        """Set the clocks, and ring every alarm that is due; `moment` is not before now."""
        assert moment >= self._now, "virtual time only moves forward"
        self._now = moment
        for alarm in self._alarms:
            alarm.ring_if_due(moment)
        for at, future, _ in self._sleepers:
            if at <= moment and not future.done():
                future.set_result(None)
        each = UPKEEP_AFTER_CRASH if moment <= self._watch_until else UPKEEP_EACH
        if moment - self._kept_up >= each:
            self._kept_up = moment
            for alarm in self._alarms:
                alarm.set()


class VirtualAlarm(Alarm):
    """The alarm of one loop: it rings by virtual time, and only while that is open."""

    __slots__ = ("_time", "due", "is_asleep", "is_upkeep", "worker")

    def __init__(self, time: VirtualTime, worker: int, *, is_upkeep: bool) -> None:
        super().__init__()
        self._time = time
        self.worker = worker
        self.is_upkeep = is_upkeep
        self.is_asleep = False
        self.due: int | None = None  # while it sleeps, virtual microseconds

    async def wait(self, seconds: float | None = None) -> bool:
        """As `Alarm.wait`, with virtual seconds."""
        if (self._is_set and self._time.is_open) or (seconds is not None and seconds <= 0):
            await asyncio.sleep(0)
        else:
            self.due = None if seconds is None else self._time.now() + round(seconds * SECOND)
            self._waiter = waiter = asyncio.get_running_loop().create_future()
            self.is_asleep = True
            self._time.changed()
            try:
                await waiter
            finally:
                self._waiter = self.due = None
                self.is_asleep = False
        was_set, self._is_set = self._is_set, False
        return was_set

    def ring_if_set(self) -> None:
        """End the sleep of a loop that was woken while the time was closed."""
        self._release()

    def ring_if_due(self, now: int) -> None:
        """End the sleep when its time has come."""
        if self.due is not None and self.due <= now and not self.is_upkeep:
            self._ring()

    def _release(self) -> None:
        if self._is_set and self._time.is_open:
            self._ring()

    def _ring(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
            self.is_asleep = False
            self.due = None
            self._time.changed()
