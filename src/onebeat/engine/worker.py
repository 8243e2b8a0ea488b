"""This process's engine: composes the parts; start, drain, stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from uuid import UUID

from onebeat.engine.claimer import Claimer
from onebeat.engine.clock_watch import ClockWatch
from onebeat.engine.dependencies import DependencyResolver
from onebeat.engine.dispatcher import DOUBLING, HEAD_START, Dispatcher
from onebeat.engine.executor import Executor
from onebeat.engine.heartbeat import Heartbeat
from onebeat.engine.identity import WorkerIdentity
from onebeat.engine.loop import Loop, Timers
from onebeat.engine.membership import Membership
from onebeat.engine.promoter import Promoter
from onebeat.engine.reconciler import Reconciler
from onebeat.engine.settler import Settler
from onebeat.engine.stopping import StopPlan
from onebeat.engine.sweeper import RetentionAges, Sweeper
from onebeat.engine.wakeups import Unsubscribe, Wakeups
from onebeat.errors import DatabaseUnavailable
from onebeat.model.definition import Definition
from onebeat.model.events import Event, QueueUnserved, WorkerDraining, WorkerStarted, WorkerStopped, is_heard, trouble
from onebeat.model.protocols import Carrier, Clock, Runner, Tick
from onebeat.store import workers
from onebeat.store.connection.database import Database
from onebeat.tasks.current_scheduler import Enqueuer
from onebeat.tasks.dependencies import Overrides
from onebeat.tasks.registry import Registry

SECOND = 1_000_000
REPORT_EACH = 5.0  # seconds between two reports of what a drain waits for
TICK_WITHIN = 5.0  # seconds that the present tick of a part gets when a drain begins


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """The settings of one worker. Durations are microseconds."""

    slots: int
    queues: Sequence[str] | None
    own_slots: Mapping[str, int]
    lease: int
    heartbeat: int
    default_timeout: int
    poll: int
    connections: int = 1
    retention: RetentionAges = field(default_factory=RetentionAges)
    head_start: int = HEAD_START
    doubling: int = DOUBLING
    timers: Timers = field(default_factory=Timers)


class Worker:
    """One process running an engine: fires, claims, runs, settles, renews its lease, sweeps.

    The parts share no state but `WorkerIdentity` and `Wakeups`. Each does one bounded tick at a time. A `Loop`
    calls it again at the time it asked for, or earlier when something woke it.
    """

    def __init__(
        self,
        *,
        options: WorkerOptions,
        database: Database,
        registry: Registry,
        definitions: Sequence[Definition],
        carrier: Carrier,
        runners: Mapping[str, Runner],
        heartbeat: Heartbeat,
        wakeups: Wakeups,
        clock: Clock,
        random: Random,
        announce: Callable[[Event], None],
        hears: Callable[[type[Event]], bool] = is_heard,
        enqueuer: Enqueuer | None = None,
        overrides: Overrides = dict,
    ) -> None:
        self._options = options
        self._database = database
        self._registry = registry
        self._definitions = definitions
        self._runners = runners
        self._wakeups = wakeups
        self._clock = clock
        self._random = random
        self._announce = announce
        self._subscriptions: list[Unsubscribe] = []
        self.identity = identity = WorkerIdentity()
        self._settler = Settler(
            database=database, identity=identity, wakeups=wakeups, clock=clock, announce=announce, hears=hears
        )
        self._executor = Executor(
            database=database,
            registry=registry,
            carrier=carrier,
            runners=runners,
            slots=options.slots,
            own_slots=options.own_slots,
            default_timeout=options.default_timeout,
            identity=identity,
            settler=self._settler,
            wakeups=wakeups,
            clock=clock,
            random=random,
            announce=announce,
            hears=hears,
            enqueuer=enqueuer,
            resolver=DependencyResolver(overrides),
        )
        self._claimer = Claimer(
            database=database,
            slots=self._executor,
            identity=identity,
            queues=options.queues,
            own_slots=options.own_slots,
            poll=options.poll,
            sweep=options.heartbeat,
            clock=clock,
        )
        self._reconciler = Reconciler(
            database=database,
            identity=identity,
            claimer=self._claimer,
            executor=self._executor,
            settler=self._settler,
        )
        self._sweeper = Sweeper(
            database=database,
            identity=identity,
            interval=options.heartbeat,
            retention=options.retention,
            look_for_suspects=self._claimer.look_for_suspects,
            wakeups=wakeups,
            clock=clock,
            random=random,
            announce=announce,
        )
        dispatcher = Dispatcher(
            database=database,
            identity=identity,
            hashes=[definition.hash for definition in definitions],
            new_tracking_id=carrier.new_id,
            running=lambda: len(self._executor.running),
            poll=options.poll,
            wakeups=wakeups,
            announce=announce,
            head_start=options.head_start,
            doubling=options.doubling,
        )
        clock_watch = ClockWatch(
            database=database,
            clock=clock,
            interval=options.heartbeat,
            wakeups=wakeups,
            random=random,
            announce=announce,
        )
        self._promoter = Promoter(database=database, poll=options.poll, wakeups=wakeups)
        self._membership = Membership(
            database=database,
            identity=identity,
            heartbeat=heartbeat,
            tasks=registry.names,
            definitions=definitions,
            queues=options.queues,
            slots=options.slots,
            lease=options.lease,
            lost=partial(self._executor.stop, "lost"),
            rejoined=self._look_again,
            clock=clock,
            announce=announce,
        )
        self._settling = self._loop("settler", self._settler.tick)
        self._claims = self._loop("claimer", self._claimer.tick)
        self._dispatches = self._loop("dispatcher", dispatcher.tick)
        self._promotions = self._loop("promoter", self._promoter.tick)
        self._reconciling = self._loop("reconciler", self._reconciler.tick)
        self._sweeps = self._loop("sweeper", self._sweeper.tick)
        self._clock_watch = self._loop("clock watch", clock_watch.tick)
        self._loops = (
            self._settling,
            self._claims,
            self._dispatches,
            self._promotions,
            self._reconciling,
            self._sweeps,
            self._clock_watch,
        )

    def _loop(self, name: str, tick: Tick) -> Loop:
        return Loop(
            name,
            tick,
            clock=self._clock,
            random=self._random,
            announce=self._announce,
            timers=self._options.timers,
        )

    @property
    def id(self) -> str | None:
        """This start's random id, None while it holds no lease."""
        return None if self.identity.lease is None else self.identity.lease.worker_id

    @property
    def working(self) -> bool:
        """Whether it fires and claims: neither draining nor without a lease."""
        return self.identity.claimant is not None

    @property
    def executor(self) -> Executor:
        """The part that runs jobs."""
        return self._executor

    # ── wake-ups ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def _subscribe(self) -> None:
        """Say which part looks after which wake-up."""
        wakeups = self._wakeups
        self._subscriptions += [
            wakeups.jobs_queued.subscribe(self._claims.wake),
            wakeups.slots_freed.subscribe(self._slots_freed),
            wakeups.jobs_delayed.subscribe(self._jobs_delayed),
            wakeups.schedules_changed.subscribe(self._dispatches.wake),
            wakeups.run_started.subscribe(self._reconciling.wake),
            wakeups.run_ended.subscribe(self._run_ended),
            wakeups.cancel_requested.subscribe(self._cancel_requested),
        ]

    def _run_ended(self) -> None:
        self._settling.wake()
        if self._claimer.behind:  # the next claim need not wait until the ends are written
            self._claims.wake()

    def _slots_freed(self) -> None:
        self._claimer.settled()
        self._claims.wake()

    def _jobs_delayed(self, run_at: int) -> None:
        if not self._promoter.is_awaited(run_at):
            self._promotions.wake()

    def _cancel_requested(self, id: UUID) -> None:
        if self._reconciler.cancel_requested(id):
            self._reconciling.wake()

    def _look_again(self) -> None:
        """Under a new worker id whatever is due can be taken at once."""
        for loop in (self._claims, self._promotions, self._dispatches):
            loop.wake()

    # ── life ──────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def start(self) -> None:
        """Register, declare, renew the lease; then fire and claim."""
        await self._membership.join()
        self.identity.claiming = True
        self._subscribe()
        for loop in self._loops:
            loop.start()
        await self._warn_of_unserved()
        self._announce(
            WorkerStarted(
                worker_id=self.identity.last_id,
                database=self._database.where,
                connections=self._options.connections,
                tasks=len(self._registry.names()),
                schedules=len(self._definitions),
                slots=self._options.slots,
            )
        )

    async def _warn_of_unserved(self) -> None:
        """Announce which tasks of this code use a queue that no live worker serves."""
        try:
            served = [worker.queues for worker in await self._database.read(workers.live)]
        except DatabaseUnavailable as error:  # a warning is no reason not to start
            self._announce(trouble("worker", error, 0))
            return
        if None in served:
            return
        known = {queue for queues in served for queue in queues or ()}
        for task in self._registry:
            if task.settings.queue not in known:
                self._announce(QueueUnserved(task=task.name, queue=task.settings.queue))

    def stop_claiming(self) -> None:
        """Begin a drain: no more fires and no more claims. Call it on the event loop."""
        self.identity.claiming = False

    async def drain(self, plan: StopPlan) -> None:
        """Stop claiming, wait for what runs, cancel it, write everything, mark the worker stopped last.

        Each step ends when `plan` says, also while the database does not answer.
        """
        self.stop_claiming()
        self._membership.stop_rejoining()
        # A claim may be in flight: its jobs go back when its answer comes, so it is awaited as long as running jobs.
        ending = [asyncio.create_task(self._claims.stop(self._until(plan.cancelled)))]
        ending += [
            asyncio.create_task(loop.stop(min(TICK_WITHIN, self._until(plan.cancelled))))
            for loop in (self._dispatches, self._promotions, self._sweeps, self._clock_watch)
        ]
        await self._wait_for_runs(plan.runs)
        self._executor.stop("drain")
        await self._executor.wait_idle(self._until(plan.cancelled))
        await asyncio.wait(ending)
        returned = await self._flush(plan.written)
        await asyncio.gather(*(loop.stop(self._until(plan.written)) for loop in (self._reconciling, self._settling)))
        for unsubscribe in self._subscriptions:
            unsubscribe()
        await self._close_runners(plan.left)
        await self._membership.leave(idle=self._executor.idle, within=self._until(plan.left))
        self._announce(WorkerStopped(worker_id=self.identity.last_id, returned=returned))

    def vanish(self) -> None:
        """End as a killed process does: nothing is written any more, and the lease runs out. For simulations.

        What runs is cancelled; a thread is only asked to end.
        """
        self.identity.claiming = False
        self._membership.vanish()
        for unsubscribe in self._subscriptions:
            unsubscribe()
        for loop in self._loops:
            loop.vanish()
        self._executor.stop("lost")

    def _until(self, moment: float) -> float:
        """Return the seconds that are left until `moment`."""
        return max(0.0, moment - self._clock.monotonic())

    async def _wait_for_runs(self, deadline: float) -> None:
        while not self._executor.idle and (left := self._until(deadline)) > 0:
            if await self._executor.wait_idle(min(left, REPORT_EACH)):
                return
            names = sorted({run.job.task for run in self._executor.running.values()})
            running = len(self._executor.running)
            self._announce(WorkerDraining(worker_id=self.identity.last_id, running=running, waiting_for=tuple(names)))

    async def _flush(self, deadline: float) -> int:
        """Wait until every outcome is written, at most until `deadline`; return how many jobs went back."""
        returned = self._settler.returning
        while self._settler.unsettled and self._until(deadline):
            self._settling.wake()
            await asyncio.sleep(0.01)
        return returned

    async def _close_runners(self, deadline: float) -> None:
        """Close the pools of threads and child processes; what takes longer ends on a thread of its own."""
        closing = [asyncio.create_task(runner.close()) for runner in self._runners.values()]
        _, late = await asyncio.wait(closing, timeout=self._until(deadline))
        for task in late:
            task.cancel()
