"""SimulatedRuntime: the engine of a scheduler in virtual time, with several workers on one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any, Self
from uuid import UUID

from onebeat.engine.heartbeat import Heartbeat
from onebeat.engine.loop import Timers
from onebeat.engine.stopping import plan_stop
from onebeat.engine.sweeper import RetentionAges
from onebeat.engine.wakeups import AT_ONCE
from onebeat.engine.worker import Worker
from onebeat.errors import ConfigurationError, DatabaseUnavailable, InvalidArguments
from onebeat.model.events import DatabaseTrouble, Event, JobSettled, PartFailed, ValueDropped
from onebeat.model.info import JobInfo
from onebeat.model.job import JobState
from onebeat.model.protocols import Renewable
from onebeat.scheduler.hooks import EventHooks
from onebeat.scheduler.runtime import Runtime
from onebeat.scheduler.watcher import Watcher
from onebeat.store import reports, workers
from onebeat.store.connection.database import Database
from onebeat.tasks.context import current
from onebeat.testing.databases import MemoryDatabase, run_on
from onebeat.testing.virtual_time import VirtualTime
from onebeat.timing.clock import DAY, seconds_us

# Microseconds: every wake-up reaches every worker here, so none needs to poll, or to renew its lease.
NEVER = 36_500 * DAY

KEEP_ALL = RetentionAges(succeeded=None, failed=None, fires=None, workers=None)  # a test of a year sees all of it


class SimulatedRuntime(Runtime):
    """A scheduler's database, watcher, heartbeat and workers in virtual time.

    `started` is the number of workers at the start. `inline` runs each job at once where it is enqueued.
    """

    def __init__(self, *, time: VirtualTime, started: int, inline: bool, announce: EventHooks, **parts: Any) -> None:
        self.problems: list[Exception] = []  # what the engine announced, for the test to hear
        self.errors: dict[UUID, BaseException] = {}  # what the last attempt of a job raised
        settings = parts["settings"].model_copy(update={"role": "all", "drain": 0})
        database: Database = parts["database"]
        super().__init__(
            **(parts | {"settings": settings, "random": Random(0)}),  # noqa: S311 - the same jitter in each run
            announce=announce,
            heartbeat=SimulatedHeartbeat(database, interval=seconds_us(settings.heartbeat), clock=parts["clock"]),
        )
        self.watcher = _AnywhereWatcher(self, database, announce)
        self.time = time
        announce.on(Event, self._hear)
        announce.tasks.changed = time.changed
        self.workers: dict[int, Worker] = {}  # those that neither crashed nor stopped, by number
        self._made = 0
        self._moving = asyncio.Lock()  # one caller at a time moves the time
        self._crashed: list[str] = []  # the ids of workers that crashed just now
        self._started = started
        self._inline = inline
        self._ended: dict[UUID, asyncio.Future[None]] = {}  # attempts that an inline enqueue waits for

    def _hear(self, event: Event) -> None:
        if isinstance(event, JobSettled):
            if event.exception is None:
                self.errors.pop(event.job_id, None)
            else:
                self.errors[event.job_id] = event.exception
        elif isinstance(event, ValueDropped):
            self.problems.append(InvalidArguments(f"the value of task {event.task} was not stored: {event.problem}"))
        elif isinstance(event, PartFailed):
            self.problems.append(RuntimeError(f"the {event.part} of onebeat failed:\n{event.problem}"))
        elif isinstance(event, DatabaseTrouble):
            self.problems.append(DatabaseUnavailable(event.problem))

    # ── life ──────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _open_database(self) -> None:
        await super()._open_database()
        if isinstance(self.database, MemoryDatabase) and self.database.memory is not None:
            self.database.memory.keep_tables()

    async def _start_worker(self) -> None:
        self._wakeups.job_ended.subscribe(self._attempt_ended)
        for _ in range(self._started):
            await self.start_worker()
        self.worker = next(iter(self.workers.values()))

    async def start_worker(self) -> int:
        """Start another worker and return its number."""
        number = self._made
        self._made += 1
        timers = Timers(alarm=partial(self.time.alarm, number), longest=NEVER, margin=0)
        options = {"poll": NEVER, "lease": NEVER, "head_start": 0, "doubling": 0, "retention": KEEP_ALL}
        worker = self._new_worker(timers=timers, **options)
        self.workers[number] = worker
        await worker.start()
        return number

    def crash(self, number: int | None) -> int:
        """End a worker without a word and return its number; None: the caller's own, a busy one, or the first.

        Call it on the engine's event loop. Raises `ConfigurationError` for a worker that is not there, and
        `CancelledError` in a job of that worker, whose function so goes no further.
        """
        context = current.get()
        if number is None:
            number = self._likely(None if context is None else context.id)
        worker = self.workers.pop(number, None) if number is not None else None
        if number is None or worker is None:
            there = ", ".join(map(str, self.workers)) or "none"
            raise ConfigurationError(f"worker {number!r} is not there to crash; left are: {there}")
        inside = context is not None and context.id in worker.executor.running
        self._crashed.append(worker.identity.last_id)
        worker.vanish()
        self.time.forget(number)
        self.time.watch(seconds_us(self._settings.lease) + 4 * seconds_us(self._settings.heartbeat))
        if inside:
            raise asyncio.CancelledError
        return number

    def _likely(self, job: UUID | None) -> int | None:
        """Return the worker that runs this job, else one that runs any, else the first."""
        busy = [number for number, worker in self.workers.items() if worker.executor.running]
        own = [number for number in busy if job in self.workers[number].executor.running]
        return next(iter([*own, *busy, *self.workers]), None)

    async def stop(self) -> None:
        """Cancel what runs, end every worker that is left, and close the database."""
        with self.time.open():
            try:
                plan = plan_stop(self._clock.monotonic(), 0)
                await asyncio.gather(*(worker.drain(plan) for worker in self.workers.values()))
            finally:
                await self._close(plan)
                self._announce.off(Event, self._hear)

    # ── use ───────────────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that asks, as all may use this runtime; in a thread without one, the engine's."""
        try:
            return asyncio.get_running_loop()
        except RuntimeError:
            return self._home

    def here(self) -> Self:
        """Return this runtime, which may be used from every event loop."""
        return self

    async def on_engine(self, work: Any) -> Any:
        """Await a coroutine on the engine's event loop, from whichever event loop this runs on."""
        return await run_on(self._home, work)

    def running(self) -> set[UUID]:
        """Return the jobs that run in the workers that are left."""
        return {id for worker in self.workers.values() for id in worker.executor.running}

    async def settle(self) -> set[UUID]:
        """Let the engine do what is due, and return the runs that outlasted the patience; raises its problems."""
        async with self._moving:
            return await self._settle()

    async def _settle(self) -> set[UUID]:
        if not isinstance(self.database, MemoryDatabase):  # others may have written; onebeat's own wake-ups may be late
            self._wakeups.jobs_queued()
            self._wakeups.jobs_delayed(AT_ONCE)
            self._wakeups.schedules_changed()
        with self.time.open():
            held = await self._quiet()
        self.raise_problem()
        return held

    async def _quiet(self) -> set[UUID]:
        return await self.time.settle(self.running, lambda: self._announce.tasks.pending)

    async def move_to(self, moment: int) -> None:
        """Let the time pass until `moment`, with everything that happens on the way."""
        async with self._moving:
            await self._settle()
            while (stop := self.time.next_stop()) is not None and stop <= moment:
                await self._step(max(stop, self.time.now()))
            await self._step(moment)

    async def _step(self, moment: int) -> None:
        heartbeat = self.heartbeat
        assert isinstance(heartbeat, SimulatedHeartbeat)
        lease = seconds_us(self._settings.lease)
        while self._crashed:  # before any time passes: the worker renewed its lease until now, and no more
            await self.database.write(workers.shorten, self._crashed.pop(), lease)
        await heartbeat.renew_until(moment)
        with self.time.open():
            self.time.move_to(moment)
            await self._quiet()
        self.raise_problem()

    def raise_problem(self) -> None:
        """Raise the first of the problems that were announced since the last call."""
        problems, self.problems[:] = list(self.problems), []
        if problems:
            raise problems[0]

    # ── inline ────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def stored(self, jobs: list[JobInfo]) -> list[JobInfo]:
        """With `inline`, run the jobs that are due and return them as they are then; raise what they raised."""
        if not self._inline:
            return jobs
        return list(await self.on_engine(self._run(jobs, nested=current.get() is not None)))

    async def _run(self, jobs: Sequence[JobInfo], *, nested: bool) -> list[JobInfo]:
        with self.time.open():
            if nested:  # the job that enqueues runs itself, so the engine is at work
                await asyncio.gather(*(self._attempt_of(job) for job in jobs if job.state is not JobState.SCHEDULED))
            else:
                async with self._moving:
                    await self._quiet()
        self.raise_problem()
        for job in jobs:
            if (error := self.errors.get(job.id)) is not None:
                raise error
        return [(await self.database.read(reports.job, job.id)).bound(job._verbs()) for job in jobs]

    async def _attempt_of(self, job: JobInfo) -> None:
        future = self._ended.setdefault(job.id, asyncio.get_running_loop().create_future())
        if not (await self.database.read(reports.job, job.id)).finished:
            await future
        self._ended.pop(job.id, None)

    def _attempt_ended(self, id: UUID) -> None:
        future = self._ended.get(id)
        if future is not None and not future.done():
            future.set_result(None)


class _AnywhereWatcher(Watcher):
    """Waits on the engine's event loop, and lets the engine work meanwhile."""

    def __init__(self, runtime: SimulatedRuntime, database: Database, announce: Callable[[Event], None]) -> None:
        super().__init__(database, announce)
        self._runtime = runtime

    async def wait(self, id: UUID, timeout: float | None) -> JobInfo:
        """Return the job when it has ended; see `Watcher.wait`."""
        info: JobInfo = await self._runtime.on_engine(self._wait(id, timeout))
        return info

    async def _wait(self, id: UUID, timeout: float | None) -> JobInfo:
        with self._runtime.time.open():
            return await super().wait(id, timeout)


class SimulatedHeartbeat(Heartbeat):
    """Renews leases whenever virtual time is about to pass them, without a thread."""

    def __init__(self, database: Database, *, interval: int, clock: Any) -> None:
        super().__init__(database, interval=interval, clock=clock)
        self._database = database
        self._leases: list[Renewable] = []

    def add(self, item: Renewable) -> None:
        """Renew this lease from now on."""
        self._leases = [*self._leases, item]

    def remove(self, item: Renewable) -> None:
        """Stop renewing this lease; nothing happens when it is not there."""
        self._leases = [lease for lease in self._leases if lease is not item]

    def stop(self, timeout: float = 5.0) -> None:
        """Stop renewing."""
        self._leases = []

    async def renew_until(self, moment: int) -> None:
        """Renew the leases that end before `moment`, as if the last renewal had been sent then."""
        now = self._now()
        for lease in self._leases:
            if lease.deadline > moment:
                continue
            longer = _Longer(lease, lease.ttl + moment - now)
            if await self._database.write(lease.renewal, [longer]):
                lease.granted(moment)
            else:
                self.remove(lease)
                lease.lost("the database says that the lease ran out or was taken")


class _Longer:
    """A lease that asks for more time than it does by itself."""

    def __init__(self, lease: Renewable, ttl: int) -> None:
        self._lease = lease
        self.ttl = ttl

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lease, name)
