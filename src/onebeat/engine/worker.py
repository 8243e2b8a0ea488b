"""This process: composes the parts; start, drain, stop."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from uuid import UUID

from onebeat.engine.claimer import Claimer
from onebeat.engine.dispatcher import Dispatcher
from onebeat.engine.executor import Executor
from onebeat.engine.heartbeat import Heartbeat, WorkerLease
from onebeat.engine.loop import Loop
from onebeat.engine.promoter import Promoter
from onebeat.engine.reconciler import Reconciler
from onebeat.engine.run_file import RunFile, boot_id
from onebeat.engine.settler import Settler
from onebeat.engine.sweeper import Retention, Sweeper
from onebeat.errors import DatabaseUnavailable
from onebeat.model.definition import Definition
from onebeat.model.events import Event, QueueUnserved, WorkerDraining, WorkerLost, WorkerStarted, WorkerStopped, trouble
from onebeat.model.ids import token
from onebeat.model.protocols import Carrier, Clock, Runner, Tick
from onebeat.store import workers
from onebeat.store.connection.database import Database
from onebeat.store.schedules import declare, rezone
from onebeat.tasks.current_scheduler import Enqueuer
from onebeat.tasks.registry import Registry

SECOND = 1_000_000
SAY_EACH = 5.0  # seconds between two words about what a drain waits for
LAST_WORDS = 10.0  # seconds a stop may take beyond the drain to write what is left


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one worker is told. Durations are microseconds."""

    slots: int
    queues: Sequence[str] | None
    own_slots: Mapping[str, int]
    lease: int
    heartbeat: int
    drain: int
    default_timeout: int
    poll: int
    connections: int = 1
    retention: Retention = field(default_factory=Retention)


class Worker:
    """One process running an engine: fires, claims, runs, settles, beats, sweeps."""

    def __init__(
        self,
        *,
        plan: Plan,
        database: Database,
        registry: Registry,
        definitions: Sequence[Definition],
        carrier: Carrier,
        runners: Mapping[str, Runner],
        heartbeat: Heartbeat,
        clock: Clock,
        announce: Callable[[Event], None],
        enqueuer: Enqueuer | None = None,
    ) -> None:
        self._plan = plan
        self._database = database
        self._registry = registry
        self._definitions = definitions
        self._clock = clock
        self._announce = announce
        self._heartbeat = heartbeat
        self._runners = runners
        self._lease: WorkerLease | None = None
        self._run_file: RunFile | None = None
        self._claiming = False
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self._reviving: asyncio.Task[None] | None = None
        self._last_id = ""
        self._executor = Executor(
            database=database,
            registry=registry,
            carrier=carrier,
            runners=runners,
            slots=plan.slots,
            own_slots=plan.own_slots,
            default_timeout=plan.default_timeout,
            trusted=lambda: self._lease is not None and self._lease.trusted,
            ended=lambda ended, seconds: self._settler.put(ended, seconds),
            unsettled=lambda: self._settler.unsettled,
            awake=lambda: self._reconciling.wake(),
            announce=announce,
            enqueuer=enqueuer,
        )
        self._claimer = Claimer(
            database=database,
            slots=self._executor,
            worker_id=self._acting,
            queues=plan.queues,
            own_slots=plan.own_slots,
            poll=plan.poll,
            holding=self._holding,
        )
        self._settler = Settler(
            database=database,
            worker_id=lambda: self._last_id,
            announce=announce,
            wake=lambda: self._settling.wake(),
            settled=lambda: self._claims.wake(),
        )
        dispatcher = Dispatcher(
            database=database,
            worker_id=self._acting,
            hashes=lambda: self._hashes,
            new_tracking_id=carrier.new_id,
            running=lambda: len(self._executor.running),
            poll=plan.poll,
            announce=announce,
            woken=lambda: self._claims.wake(),
            promoter_woken=lambda: self._promotions.wake(),
        )
        promoter = Promoter(database=database, poll=plan.poll, woken=lambda: self._claims.wake())
        reconciler = Reconciler(
            database=database,
            executor=self._executor,
            worker_id=self._holding,
            unsettled_ids=self._unsettled_ids,
            in_flight=lambda: self._claimer.in_flight,
        )
        self._sweeper = Sweeper(
            database=database,
            worker_id=self._acting,
            interval=plan.heartbeat,
            retention=plan.retention,
            announce=announce,
            woken=self.wake,
            suspects=self._claimer.run_dry,
            tasks=registry.names,
            patience=plan.lease,
        )
        self._hashes = [definition.hash for definition in definitions]
        self._claims = self._loop("claimer", self._claimer.tick)
        self._settling = self._loop("settler", self._settler.tick)
        self._dispatches = self._loop("dispatcher", dispatcher.tick)
        self._promotions = self._loop("promoter", promoter.tick)
        self._reconciling = self._loop("reconciler", reconciler.tick)
        self._sweeps = self._loop("sweeper", self._sweeper.tick)

    def _loop(self, name: str, tick: Tick) -> Loop:
        return Loop(name, tick, clock=self._clock, announce=self._announce)

    @property
    def id(self) -> str | None:
        """This start's random id, None while it holds no lease."""
        return None if self._lease is None else self._lease.worker_id

    @property
    def working(self) -> bool:
        """Whether it fires and claims: neither draining nor without a lease."""
        return self._acting() is not None

    @property
    def executor(self) -> Executor:
        """What runs here."""
        return self._executor

    @property
    def sweeper(self) -> Sweeper:
        """The part that prunes."""
        return self._sweeper

    def _acting(self) -> str | None:
        """The worker id to act under, None when this process may not act."""
        lease = self._lease
        return lease.worker_id if lease is not None and lease.trusted and self._claiming else None

    def _holding(self) -> str | None:
        """The worker id whose jobs run here, also while this process drains."""
        return self._lease.worker_id if self._lease is not None and self._lease.trusted else None

    def _unsettled_ids(self) -> set[UUID]:
        return self._settler.unsettled_ids

    # ── life ──────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def start(self) -> None:
        """Register, declare, beat; then fire and claim."""
        self._event_loop = asyncio.get_running_loop()
        await self._register()
        self._claiming = True
        for loop in self._loops():
            loop.start()
        await self._warn_of_unserved()
        self._announce(
            WorkerStarted(
                worker_id=self._last_id,
                database=self._database.where,
                connections=self._plan.connections,
                tasks=len(self._registry.names()),
                schedules=len(self._definitions),
                slots=self._plan.slots,
            )
        )

    async def _warn_of_unserved(self) -> None:
        """Say which tasks of this code use a queue that no live worker serves."""
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

    def _loops(self) -> list[Loop]:
        return [self._settling, self._claims, self._dispatches, self._promotions, self._reconciling, self._sweeps]

    async def _register(self) -> None:
        """Take a new worker id and its lease; declare the schedules of this code."""
        new = workers.NewWorker(
            id=token(),
            host=socket.gethostname(),
            boot_id=boot_id(),
            pid=os.getpid(),
            tasks=self._registry.names(),
            definitions={definition.id: definition.hash for definition in self._definitions},
            queues=self._plan.queues,
            slots=self._plan.slots,
            version=_version(),
            lease=self._plan.lease,
        )
        run_file = RunFile(new.id)
        run_file.hold()
        sent = self._clock.boot()
        await self._database.write(workers.register, new)
        try:
            await self._database.write(declare.declare, self._definitions)
            await self._database.write(rezone.rezone)
        except BaseException:
            run_file.release()
            await self._database.write(workers.stop, new.id)
            raise
        lost = partial(self._on_lost, new.id)
        lease = WorkerLease(new.id, self._plan.lease, clock=self._clock, lost=lost)
        lease.granted(sent)
        if self._run_file is not None:
            self._run_file.release()
        self._run_file, self._lease, self._last_id = run_file, lease, new.id
        self._heartbeat.add(lease)

    def _on_lost(self, worker_id: str, reason: str) -> None:
        """Called on the heartbeat thread: stop acting at once, then begin anew under another id."""
        assert self._event_loop is not None
        self._announce(WorkerLost(worker_id=worker_id, reason=reason))
        self._event_loop.call_soon_threadsafe(self._begin_anew, worker_id)

    def _begin_anew(self, worker_id: str) -> None:
        if self._lease is None or self._lease.worker_id != worker_id:
            return
        self._executor.stop("lost")
        self._lease = None
        if self._claiming:
            self._reviving = asyncio.create_task(self._revive())

    async def _revive(self) -> None:
        delay = 0.1
        while self._claiming and self._lease is None:
            try:
                await self._register()
            except Exception as error:  # noqa: BLE001 - announced, and tried again
                self._announce(WorkerLost(worker_id=self._last_id, reason=f"cannot register anew yet: {error}"))
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5.0)
        self.wake()

    def wake(self) -> None:
        """Look at once: something may be due."""
        self._claims.wake()
        self._promotions.wake()
        self._dispatches.wake()

    def stop_claiming(self) -> None:
        """The first word of a drain: no more fires, no more claims. Safe on the event loop only."""
        self._claiming = False

    async def drain(self, patience: float | None = None) -> None:
        """Stop as SEMANTICS 8 says: stop claiming, wait, cancel, write everything, mark stopped last.

        `patience`: seconds that running jobs are given; None, the plan's.
        """
        self.stop_claiming()
        if self._reviving is not None:
            self._reviving.cancel()
        for loop in (self._dispatches, self._promotions, self._sweeps, self._claims):
            await loop.stop()
        await self._wait_for_runs(self._plan.drain / SECOND if patience is None else patience)
        self._executor.stop("drain")
        await self._executor.wait_idle(5.0)
        returned = await self._flush()
        await self._reconciling.stop()
        await self._settling.stop()
        for runner in self._runners.values():
            await runner.close()
        await self._mark_stopped()
        self._announce(WorkerStopped(worker_id=self._last_id, returned=returned))

    async def _wait_for_runs(self, drain: float) -> None:
        deadline = time.monotonic() + drain
        while not self._executor.idle and (left := deadline - time.monotonic()) > 0:
            if await self._executor.wait_idle(min(left, SAY_EACH)):
                return
            names = sorted({run.job.task for run in self._executor.running.values()})
            running = len(self._executor.running)
            self._announce(WorkerDraining(worker_id=self._last_id, running=running, waiting_for=tuple(names)))

    async def _flush(self) -> int:
        """Wait until every end is written, within bounds; how many jobs went back."""
        deadline = time.monotonic() + LAST_WORDS
        returned = self._settler.returning
        while self._settler.unsettled and time.monotonic() < deadline:
            self._settling.wake()
            await asyncio.sleep(0.01)
        return returned

    async def _mark_stopped(self) -> None:
        """The last thing: the lease ends. Threads that still run keep it until it runs out by itself."""
        lease = self._lease
        if lease is not None:
            self._heartbeat.remove(lease)
            if self._executor.idle and lease.trusted:
                try:
                    async with asyncio.timeout(LAST_WORDS):
                        await self._database.write(workers.stop, lease.worker_id)
                except Exception as error:  # noqa: BLE001 - announced; the lease runs out by itself
                    self._announce(WorkerLost(worker_id=lease.worker_id, reason=f"could not say goodbye: {error}"))
        if self._run_file is not None and self._executor.idle:
            self._run_file.release()
        self._lease = None


def _version() -> str:
    try:
        return version("onebeat")
    except PackageNotFoundError:
        return "unknown"
