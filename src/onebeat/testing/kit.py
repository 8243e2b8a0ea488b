"""TestScheduler: a scheduler in virtual time, for tests with and without an event loop."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Self

from onebeat.errors import ConfigurationError
from onebeat.scheduler.scheduler import Scheduler
from onebeat.testing.questions import Questions
from onebeat.testing.simulation import DatabaseChoice, Simulation, instant
from onebeat.timing.clock import seconds_us

PATIENCE = 2.0  # seconds of real time that a run may take before the virtual time passes beside it


class TestScheduler(Questions):
    """Runs a scheduler in virtual time: schedules, delays, retries and leases pass as fast as the test says.

    The decisions are those of the real engine. The database is an empty one in memory, unless `database="own"` names
    the scheduler's. Nothing happens by itself: jobs run in `advance`, `run_until_idle`, and while a job is waited for
    (`job.wait()`, `job.result()`). An application that starts the scheduler meanwhile, as `TestClient(app)` does,
    starts no second engine.

    Args:
        scheduler: the application's; it must not run yet.
        now: when the virtual time begins: an aware `datetime` or its ISO 8601 text; by default the present second.
        workers: how many workers share the database.
        database: "memory", or "own" for the scheduler's, where the application's tables are.
        inline: whether `enqueue` runs the job at once and raises what it raises. A job with a delay waits for it.
        patience: seconds of real time that `advance` and `run_until_idle` wait for a run; then time passes beside it.

    >>> import asyncio
    >>> from onebeat import Scheduler
    >>> scheduler = Scheduler()
    >>> @scheduler.cron("0 9 * * *", timezone="Europe/Berlin")
    ... async def report() -> None: ...
    >>> async def test_report() -> int:
    ...     async with TestScheduler(scheduler, now="2026-03-28T12:00:00+01:00") as beat:
    ...         await beat.advance(days=2)  # the clocks go forward on the way
    ...         return len(beat.fired("report"))
    >>> asyncio.run(test_report())
    2
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        now: datetime | str | None = None,
        workers: int = 1,
        database: DatabaseChoice = "memory",
        inline: bool = False,
        patience: float = PATIENCE,
    ) -> None:
        super().__init__(
            Simulation(scheduler, now=now, workers=workers, database=database, inline=inline, patience=patience)
        )

    async def __aenter__(self) -> Self:
        simulation = self._simulation
        simulation.start_thread()
        try:
            await simulation.submit(simulation.open)
        except BaseException:
            simulation.stop_thread()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._simulation.submit(self._simulation.close)
        finally:
            self._simulation.stop_thread()

    def __enter__(self) -> SyncTestScheduler:
        """Start for a test without an event loop: `with TestScheduler(scheduler) as beat: beat.advance(hours=1)`."""
        simulation = self._simulation
        simulation.start_thread()
        try:
            simulation.run(simulation.open)
        except BaseException:
            simulation.stop_thread()
            raise
        return SyncTestScheduler(simulation)

    def __exit__(self, *_: object) -> None:
        try:
            self._simulation.run(self._simulation.close)
        finally:
            self._simulation.stop_thread()

    async def advance(
        self,
        duration: float | timedelta = 0,
        *,
        to: datetime | str | None = None,
        weeks: float = 0,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
    ) -> None:
        """Let so much time pass, or all until the instant `to`; what is due then, and on the way, happens in order.

        A day has 24 hours here, also where the clocks change; `to=` takes wall times. Raises `ConfigurationError` for
        a step back, and what the engine reports: a value that cannot be stored, or a defect.
        """
        step = timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)
        await self._simulation.submit(self._simulation.advance, _moment(self._simulation, duration, step, to))

    async def run_until_idle(self) -> None:
        """Run everything that is due now, and what follows from it, without moving the time.

        A run that outlasts the patience is left to itself, with a warning that names it.
        """
        await self._simulation.submit(self._simulation.run_until_idle)

    async def start_worker(self) -> int:
        """Start another worker, as after a crash, and return its number."""
        return await self._simulation.submit(self._simulation.start_worker)

    async def sleep(
        self, duration: float | timedelta = 0, *, hours: float = 0, minutes: float = 0, seconds: float = 0
    ) -> None:
        """Return when so much virtual time has passed: in a job, a run that takes long and costs the test no time."""
        step = timedelta(hours=hours, minutes=minutes, seconds=seconds)
        await self._simulation.sleep(_duration(duration) + _duration(step))


class SyncTestScheduler(Questions):
    """What `with TestScheduler(…) as beat:` gives a test without an event loop: the same verbs, which block."""

    def advance(
        self,
        duration: float | timedelta = 0,
        *,
        to: datetime | str | None = None,
        weeks: float = 0,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
    ) -> None:
        """Let time pass; see `TestScheduler.advance`."""
        step = timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)
        self._simulation.run(self._simulation.advance, _moment(self._simulation, duration, step, to))

    def run_until_idle(self) -> None:
        """Run everything that is due now; see `TestScheduler.run_until_idle`."""
        self._simulation.run(self._simulation.run_until_idle)

    def start_worker(self) -> int:
        """Start another worker and return its number."""
        return self._simulation.run(self._simulation.start_worker)

    async def sleep(
        self, duration: float | timedelta = 0, *, hours: float = 0, minutes: float = 0, seconds: float = 0
    ) -> None:
        """Let a job sleep in virtual time; see `TestScheduler.sleep`."""
        step = timedelta(hours=hours, minutes=minutes, seconds=seconds)
        await self._simulation.sleep(_duration(duration) + _duration(step))


def _moment(simulation: Simulation, duration: float | timedelta, step: timedelta, to: datetime | str | None) -> int:
    """Return where to move the time, microseconds."""
    now, by = simulation.time.now(), _duration(duration) + _duration(step)
    if to is None:
        return now + by
    moment = instant(to, "to")
    if by:
        raise ConfigurationError("advance(…) takes a duration or to=, not both")
    if moment < now:
        raise ConfigurationError(f"to={to!s} lies in the past; virtual time only moves forward")
    return moment


def _duration(value: float | timedelta) -> int:
    try:
        return seconds_us(value)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
