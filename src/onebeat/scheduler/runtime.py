"""Runtime: the parts of a scheduler that exist while it is started: database, watcher, heartbeat, worker."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any, Self

from onebeat.engine.heartbeat import Heartbeat
from onebeat.engine.stopping import AFTER_DRAIN, StopPlan, plan_stop
from onebeat.engine.sweeper import RetentionAges, prune
from onebeat.engine.wakeups import Wakeups
from onebeat.engine.worker import Worker, WorkerOptions
from onebeat.errors import NotStarted
from onebeat.model.events import DatabaseCaution
from onebeat.model.info import JobInfo
from onebeat.model.protocols import Carrier, Clock
from onebeat.offload.runners import ProcessRunner, ThreadRunner
from onebeat.scheduler import deferred_sigterm
from onebeat.scheduler.definitions import definition_of
from onebeat.scheduler.hook_tasks import FINISH_WITHIN
from onebeat.scheduler.hooks import EventHooks
from onebeat.scheduler.signals import Signals, StartInterrupted
from onebeat.scheduler.watcher import Watcher
from onebeat.settings import Settings
from onebeat.store.connection.database import Database
from onebeat.store.migrations import prepare
from onebeat.tasks import current_scheduler
from onebeat.tasks.current_scheduler import Enqueuer
from onebeat.tasks.declared_schedule import DeclaredSchedule
from onebeat.tasks.dependencies import Overrides
from onebeat.tasks.registry import Registry
from onebeat.timing.clock import seconds_us

STOPPED_BY_SERVER = 3.0  # seconds from a SIGTERM that nobody handles; a server that ends stops its app by then
SIGNALLED_START = 3.0  # seconds from a signal until a start is given up; one that reaches its database takes less


class Runtime:
    """A scheduler's database, watcher, heartbeat and worker, in the event loop that started them.

    It is started once and stopped once; a scheduler that starts again builds another one. `worker` is None in the role
    `client`. `close_locks` is awaited before the heartbeat and the database close. `stop` stops the whole scheduler:
    it is called after a SIGTERM that nobody else handles. `overrides` tells what the application puts in the place of
    its dependencies.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        database: Database,
        registry: Registry,
        declared: Mapping[str, DeclaredSchedule],
        carrier: Carrier,
        wakeups: Wakeups,
        clock: Clock,
        random: Random,
        announce: EventHooks,
        enqueuer: Enqueuer,
        close_locks: Callable[[], Awaitable[None]],
        stop: Callable[[], Awaitable[None]],
        overrides: Overrides,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self.database = database
        self.users = database.for_users()  # for the calls of users, which the engine's own go ahead of
        self.watcher = Watcher(database, announce)
        self.heartbeat = heartbeat or Heartbeat(
            database, interval=seconds_us(settings.heartbeat), clock=clock, random=random, announce=announce
        )
        self.worker: Worker | None = None
        self.is_open = False
        self.is_asked_to_stop = False  # by the server or the application
        self._home = asyncio.get_running_loop()
        self._process = os.getpid()
        self._settings = settings
        self._registry = registry
        self._declared = declared
        self._carrier = carrier
        self._wakeups = wakeups
        self._clock = clock
        self._random = random
        self._announce = announce
        self._enqueuer = enqueuer
        self._close_locks = close_locks
        self._stop = stop
        self._overrides = overrides
        self._signals = Signals(self._signalled)
        self._unhandled: asyncio.TimerHandle | None = None  # a SIGTERM came that nobody else handles
        self._ending: asyncio.Task[None] | None = None
        self._starting: asyncio.Timeout | None = None

    # ── life ──────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def start(self) -> None:
        """Open the database, migrate it unless told not to, and run the worker; an error leaves everything closed.

        A signal to end the process ends a start that waits for the database.
        """
        self._signals.catch()
        try:
            async with asyncio.timeout(None) as self._starting:
                await self._start()
        except BaseException as error:
            self._signals.leave()
            if isinstance(error, TimeoutError) and self._starting is not None and self._starting.expired():
                raise StartInterrupted(
                    f"SIGTERM or SIGINT came while the start waited for {self.database.where}; nothing was started"
                ) from None
            raise
        finally:
            self._starting = None
        if self.worker is None:
            self._signals.leave()
        else:
            deferred_sigterm.defer(self._on_unhandled_sigterm)

    async def _start(self) -> None:
        await self._open_database()
        self._announce.tasks.open(self._home)
        for caution in self.database.cautions:
            self._announce(DatabaseCaution(database=self.database.where, caution=caution))
        self._unsubscribe = self._wakeups.job_ended.subscribe(self.watcher.ended)
        self.is_open = True
        current_scheduler.running.append(self._enqueuer)
        if self._settings.role == "all":
            try:
                await self._start_worker()
            except BaseException:
                plan = plan_stop(self._clock.monotonic(), 0)
                try:
                    if self.worker is not None and self.worker.id is not None:  # its parts run already
                        await self.worker.drain(plan)
                finally:
                    await self._close(plan)
                raise

    async def _open_database(self) -> None:
        database, settings = self.database, self._settings
        try:
            await database.open(settings.start_timeout)
            await prepare(database, migrate=settings.migrate, app=settings.app)
            await database.measure_offset()
        except BaseException:
            await database.close(AFTER_DRAIN)
            raise

    async def _start_worker(self) -> None:
        self.worker = self._new_worker()
        await self.worker.start()

    def _new_worker(self, **changes: Any) -> Worker:
        """Return a worker with the options that the settings give, and these changes of them."""
        settings = self._settings
        options = _worker_options(settings, one_writer=self.database.dialect.one_writer)
        return Worker(
            options=replace(options, **changes),
            database=self.database,
            registry=self._registry,
            definitions=[definition_of(item, settings.timezone) for item in self._declared.values()],
            carrier=self._carrier,
            runners={"thread": ThreadRunner(settings.slots), "process": ProcessRunner()},
            heartbeat=self.heartbeat,
            wakeups=self._wakeups,
            clock=self._clock,
            random=self._random,
            announce=self._announce,
            hears=self._announce.hears,
            enqueuer=self._enqueuer,
            overrides=self._overrides,
        )

    async def stop(self) -> None:
        """Drain the worker, then close everything, also when the drain fails.

        It ends within `drain` + `AFTER_DRAIN` seconds, whatever the database does; a client has no `drain`.
        """
        self._signals.leave()
        if self._unhandled is not None:
            self._unhandled.cancel()
        plan = plan_stop(self._clock.monotonic(), 0 if self.worker is None else self._settings.drain)
        try:
            if self.worker is not None:
                await self.worker.drain(plan)
        finally:
            try:
                await self._close(plan)
            finally:
                deferred_sigterm.release(self._on_unhandled_sigterm)

    async def _close(self, plan: StopPlan) -> None:
        if not self.is_open:  # stopped while it started
            return
        if self._enqueuer in current_scheduler.running:
            current_scheduler.running.remove(self._enqueuer)
        self._unsubscribe()
        await self._announce.tasks.close(min(FINISH_WITHIN, self._until(plan.released) / 2))
        await self.watcher.close()
        with contextlib.suppress(TimeoutError):  # a lock that could not be given back ends with its lease
            async with asyncio.timeout(self._until(plan.released)):
                await self._close_locks()
        await asyncio.to_thread(self.heartbeat.stop, self._until(plan.closed) / 4)
        self.is_open = False
        await self.database.close(self._until(plan.released))  # what is left until `closed` is for cutting the rest

    def _until(self, moment: float) -> float:
        """Return the seconds that are left until `moment`."""
        return max(0.0, moment - self._clock.monotonic())

    # ── use ───────────────────────────────────────────────────────────────────────────────────────────────────────────
    def check_process(self) -> None:
        """Raise `NotStarted` in a forked child, which has neither the event loop nor the threads of its parent."""
        if self._process != os.getpid():
            raise NotStarted(
                "this scheduler was started in the parent of this process, and a fork takes neither its event loop nor "
                "its threads along; start a scheduler after the fork, or start processes with spawn"
            )

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that started this runtime; synchronous calls from other threads are handed to it."""
        return self._home

    def here(self) -> Self:
        """Return this runtime in the event loop that started it; elsewhere raise `NotStarted`."""
        if asyncio.get_running_loop() is not self.loop:
            raise NotStarted(
                "this scheduler runs in another event loop than this one; enqueue from here with "
                "`await asyncio.to_thread(task.enqueue_sync, …)`, or start a scheduler in this loop"
            )
        return self

    async def stored(self, jobs: list[JobInfo]) -> list[JobInfo]:
        """Return these jobs, which a task has just enqueued; a runtime of tests may run them first."""
        return jobs

    @property
    def worker_id(self) -> str | None:
        """Return the id under which this process holds jobs, None for a client or while it holds no lease."""
        return None if self.worker is None else self.worker.id

    def _signalled(self) -> None:
        """End a start that is still under way soon; let a worker start nothing more. The server ends the process."""
        if self._starting is not None and not self._starting.expired():
            self._starting.reschedule(self._home.time() + SIGNALLED_START)
        self.stop_claiming()

    def _on_unhandled_sigterm(self) -> None:
        """The signal's handler: begin the drain on the event loop; where that is gone, nothing is left to drain."""
        if self._home.is_running():
            self._home.call_soon_threadsafe(self._begin_end)
        else:
            deferred_sigterm.release(self._on_unhandled_sigterm)
            deferred_sigterm.end_process()

    def _begin_end(self) -> None:
        self.stop_claiming()
        if self._unhandled is None and not self.is_asked_to_stop:
            self._unhandled = self._home.call_later(STOPPED_BY_SERVER, self._end_by_itself)

    def _end_by_itself(self) -> None:
        self._ending = asyncio.create_task(self._stop_and_end_process())

    async def _stop_and_end_process(self) -> None:
        await self._stop()
        if not self.is_asked_to_stop:  # else whoever asked ends the process when it is ready
            deferred_sigterm.end_process()

    def stop_claiming(self) -> None:
        """Let this process's worker start nothing more. Safe on the event loop only."""
        if self.worker is not None:
            self.worker.stop_claiming()

    async def prune(self) -> int:
        """Delete what is older than the retention; return the number of jobs deleted."""
        return await prune(self.database, _retention(self._settings))


def _worker_options(settings: Settings, *, one_writer: bool) -> WorkerOptions:
    return WorkerOptions(
        slots=settings.slots,
        queues=settings.queues if isinstance(settings.queues, tuple) else None,
        own_slots=settings.queues if isinstance(settings.queues, dict) else {},
        lease=seconds_us(settings.lease),
        heartbeat=seconds_us(settings.heartbeat),
        default_timeout=seconds_us(settings.default_timeout),
        poll=seconds_us(settings.poll),
        connections=3 if one_writer else settings.pool_size + 1,  # one more for the heartbeat
        retention=_retention(settings),
    )


def _retention(settings: Settings) -> RetentionAges:
    kept = settings.retention
    return RetentionAges(
        succeeded=_age(kept.succeeded),
        failed=_age(kept.failed),
        fires=_age(kept.fires),
        workers=_age(kept.workers),
    )


def _age(seconds: float | None) -> int | None:
    return None if seconds is None else seconds_us(seconds)
