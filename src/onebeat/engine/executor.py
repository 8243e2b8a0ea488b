"""One claimed job in, one outcome out: context, dependencies, limits of time."""

from __future__ import annotations

import asyncio
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any, cast
from uuid import UUID

from onebeat.engine.attempt import MAX_TRACEBACK, Run, StopCause, StopReason, replacement, retry_in_force, shown
from onebeat.engine.claimer import is_suspect
from onebeat.engine.completion import JobCompletion
from onebeat.engine.dependencies import DependencyResolver
from onebeat.engine.identity import WorkerIdentity
from onebeat.engine.progress import ProgressWriter
from onebeat.engine.settler import Settler
from onebeat.engine.wakeups import Wakeups
from onebeat.errors import DatabaseUnavailable, UnknownTask
from onebeat.model.events import Event, JobStarted, StopIgnored, ThreadOverran, ValueDropped, about, is_heard, trouble
from onebeat.model.fired import fire_time
from onebeat.model.job import Claimed, Ending, Outcome, settle
from onebeat.model.protocols import Carrier, Clock, Runner, Unit
from onebeat.store.connection.database import Database
from onebeat.store.jobs import control
from onebeat.store.jobs.settle import CANCEL_IGNORED, Ended
from onebeat.tasks.context import JobContext
from onebeat.tasks.current_scheduler import Enqueuer, active
from onebeat.tasks.registry import Registry
from onebeat.tasks.task import Task
from onebeat.timing.backoff import Retry
from onebeat.timing.clock import from_us

SECOND = 1_000_000
SUSPECT_ALONE = 60.0  # seconds for which nothing else starts beside a suspect; a longer one must not stop its worker


class Executor:
    """Runs claimed jobs; hands each end to the settler."""

    def __init__(
        self,
        *,
        database: Database,
        registry: Registry,
        carrier: Carrier,
        runners: Mapping[str, Runner],
        slots: int,
        own_slots: Mapping[str, int],
        default_timeout: int,
        identity: WorkerIdentity,
        settler: Settler,
        wakeups: Wakeups,
        clock: Clock,
        random: Random,
        announce: Callable[[Event], None],
        hears: Callable[[type[Event]], bool] = is_heard,
        enqueuer: Enqueuer | None = None,
        resolver: DependencyResolver | None = None,
    ) -> None:
        self._database = database
        self._registry = registry
        self._carrier = carrier
        self._runners = runners
        self._slots = slots
        self._own_slots = own_slots
        self._default_timeout = default_timeout
        self._identity = identity
        self._settler = settler
        self._wakeups = wakeups
        self._clock = clock
        self._random = random
        self._announce = announce
        self._hears = hears
        self._enqueuer = enqueuer
        self._resolver = resolver or DependencyResolver(dict)
        self._runs: dict[UUID, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._by_queue: Counter[str] = Counter()
        self._suspects = 0
        self._suspect_began = 0.0
        self._notes: set[asyncio.Task[Any]] = set()
        self._dropping: set[str] = set()  # tasks whose values could not be stored: one warning a task is enough

    # ── what the claimer asks ─────────────────────────────────────────────────────────────────────────────────────────
    @property
    def free(self) -> int:
        """How many jobs could start now; none in a suspect's first minute, and few while settlements pile up."""
        if self._suspects and self._clock.monotonic() - self._suspect_began < SUSPECT_ALONE:
            return 0
        return max(0, min(self._slots - len(self._runs), 2 * self._slots + 100 - self._settler.unsettled))

    def free_in(self, queue: str) -> int:
        """How many jobs of a queue with slots of its own could start now."""
        return self._own_slots[queue] - self._by_queue[queue]

    @property
    def few(self) -> bool:
        """Whether less than half of the slots are free, and ends of runs are being written."""
        return self._settler.unsettled > 0 and self.free < self._slots // 2

    @property
    def idle(self) -> bool:
        """Whether nothing is running."""
        return not self._runs

    @property
    def accepts_suspect(self) -> bool:
        """Whether nothing is running that a suspect could harm for good, and no other suspect."""
        return not self._suspects and not any(run.job.at_most_once for run in self._runs.values())

    def startable(self, limit: int) -> Sequence[tuple[Sequence[str], int]]:
        """Names of the tasks that could start now, and how many of them: `limit`, or the free processes if fewer.

        What has fewer places comes first: a backlog of the others must not keep it from its own. Beside a suspect no
        task starts whose jobs start only once.
        """
        used = {task.runs_in for task in self._registry}
        places = {kind: runner.free for kind, runner in self._runners.items() if kind in used}
        narrow = {kind: free for kind, free in places.items() if free < limit}
        if not narrow and not self._suspects:
            return [(self._registry.names(), limit)]
        groups = [(self._names({kind}), free) for kind, free in narrow.items() if free > 0]
        groups.append((self._names(used - narrow.keys()), limit))
        return [(names, most) for names, most in groups if names]

    def _names(self, kinds: Collection[str]) -> Sequence[str]:
        tasks = [task for task in self._registry if task.runs_in in kinds]
        if self._suspects:
            tasks = [task for task in tasks if not task.settings.at_most_once]
        return tuple(sorted(name for task in tasks for name in (task.name, *task.aliases)))

    @property
    def oldest(self) -> float:
        """Seconds since the oldest run here began; 0 when nothing runs."""
        first = next(iter(self._runs.values()), None)
        return 0.0 if first is None else self._clock.monotonic() - first.started

    @property
    def running(self) -> Mapping[UUID, Run]:
        """What runs here now."""
        return self._runs

    # ── work ──────────────────────────────────────────────────────────────────────────────────────────────────────────
    def start(self, job: Claimed) -> None:
        """Run a claimed job in an asyncio task of its own; one that makes no sense here fails, and harms no other."""
        try:
            run = self._prepare(job)
        except Exception as error:  # noqa: BLE001 - whatever its row holds, the rest of the batch must start
            words = shown(f"what is stored of the job cannot be read: {type(error).__name__}: {error}")
            self._end(job, Outcome(ending=Ending.UNDECODABLE, error=words, exception=error), Retry(), 0.0)
            return
        if not self._runs:
            self._wakeups.run_started()
        self._runs[job.id] = run
        self._by_queue[job.queue] += 1
        if is_suspect(job):
            self._suspects += 1
            self._suspect_began = self._clock.monotonic()
        self._tasks.add(asyncio.create_task(self._drive(run)))

    def stop(self, reason: StopReason, ids: Sequence[UUID] | None = None) -> None:
        """Ask runs to end: these, or all."""
        for run in [self._runs[id] for id in (list(self._runs) if ids is None else ids) if id in self._runs]:
            run.stop(reason)

    async def wait_idle(self, timeout: float) -> bool:
        """Whether every run ended within `timeout` seconds."""
        deadline = self._clock.monotonic() + timeout
        while (alive := {task for task in self._tasks if not task.done()}) and (
            left := deadline - self._clock.monotonic()
        ) > 0:
            await asyncio.wait(alive, timeout=left)
        return not alive

    def _prepare(self, job: Claimed) -> Run:
        task: Task[Any, Any] | None
        try:
            task = self._registry.get(job.task)
        except UnknownTask:
            task = None  # claimed under an old name list; it goes back unstarted
        own_timeout = None if task is None else task.settings.timeout
        timeout = (job.timeout_us or own_timeout or self._default_timeout) / SECOND
        now = self._clock.monotonic()
        context = JobContext(
            id=job.id,
            attempt=job.attempt,
            task=job.task,
            tracking_id=job.tracking_id,
            fence=job.fence,
            schedule_id=job.schedule_id,
            fire_time=None if job.fire_us is None else fire_time(job.fire_us, job.fire_zone),
            deadline=now + timeout,
            monotonic=self._clock.monotonic,
            owned=partial(self._owned, job),
            reports=partial(ProgressWriter, self._database, job, clock=self._clock, trouble=self._trouble),
            completion=partial(
                JobCompletion,
                self._database,
                job,
                worker_id=self._identity.last_id,
                dropped=partial(self._value_dropped, job),
            ),
        )
        return Run(
            job,
            task,
            context,
            retry=retry_in_force(task, job),
            started=now,
            timeout=timeout,
            runner=None if task is None or task.runs_in == "loop" else self._runners[task.runs_in],
            observer=self,
            resolver=self._resolver,
        )

    async def _drive(self, run: Run) -> None:
        job = run.job
        try:
            outcome = await self._attempt(run)
        except asyncio.CancelledError:
            outcome = Outcome(ending=Ending.DRAINED)
        except GeneratorExit:  # the event loop is gone, and this coroutine is thrown away
            raise
        except BaseException as error:  # noqa: BLE001 - an attempt without an end would be started for ever
            trace = shown("".join(traceback.format_exception(error)), MAX_TRACEBACK)
            words = shown(f"{type(error).__name__}: {error}")
            outcome = Outcome(ending=Ending.ERROR, error=words, traceback=trace, exception=error)
        finally:
            self._forget(run)
            self._tasks.discard(cast(asyncio.Task[None], asyncio.current_task()))  # a callback costs a turn of the loop
        if outcome.ending is Ending.LOST or run.replaced:
            return  # the job is someone else's by now, or has ended without this run
        self._end(job, outcome, run.retry, self._clock.monotonic() - run.started)

    def _end(self, job: Claimed, outcome: Outcome, retry: Retry, seconds: float) -> None:
        settlement = settle(
            errors=job.errors,
            crashes=job.crashes,
            max_attempts=job.max_attempts,
            at_most_once=job.at_most_once,
            outcome=outcome,
            retry=retry,
            random=self._random.random(),
        )
        self._settler.put(Ended(job, outcome, settlement), seconds)

    async def _attempt(self, run: Run) -> Outcome:
        job = run.job
        if not self._identity.trusted:
            return Outcome(ending=Ending.RETURNED)  # the lease may be over: the database will say what becomes of it
        unit = Unit(
            kind="job",
            id=str(job.id),
            task=job.task,
            attempt=job.attempt,
            queue=job.queue,
            schedule_id=job.schedule_id,
            fire_time=None if job.fire_us is None else from_us(job.fire_us).isoformat(),
        )
        active.set(self._enqueuer)
        with self._carrier.restore(job.tracking_id, job.carried, unit):
            if self._hears(JobStarted):
                self._announce(JobStarted(**about(job)))
            outcome = await run.outcome()
            if run.context._reports is not None:
                await run.context._reports.write_last()
            return outcome

    def _forget(self, run: Run) -> None:
        run.over()
        if self._runs.get(run.job.id) is run:
            del self._runs[run.job.id]
        self._by_queue[run.job.queue] -= 1
        self._suspects -= is_suspect(run.job)

    # ── what a run tells ──────────────────────────────────────────────────────────────────────────────────────────────
    async def _owned(self, job: Claimed) -> bool:
        return self._identity.trusted and await self._database.read(control.owned, job.id, job.lease_token)

    def overran(self, run: Run) -> None:
        """A thread runs past its timeout: say so, and replace it where the task asks for that."""
        job = run.job
        self._announce(ThreadOverran(**about(job), timeout=run.timeout))
        self._replace_or_note(run, "timeout")

    def stop_ignored(self, run: Run, cause: StopCause, seconds: float) -> None:
        """The run was told to end `seconds` ago and goes on: say so, and replace it where the task asks for that."""
        if run.stop_reason in ("drain", "lost"):
            return  # a drain says itself what it waits for, and a lost job is told already
        replaces = _is_replaced_on_overrun(run)
        self._announce(StopIgnored(**about(run.job), cause=cause, seconds=seconds, replaced=replaces))
        self._replace_or_note(run, cause)

    def _replace_or_note(self, run: Run, cause: StopCause) -> None:
        """End the job without its run, which goes on and can write nothing any more; or note on its row what it does.

        The run keeps its slot until it ends. The settlement goes by the claim, as that of every end.
        """
        if _is_replaced_on_overrun(run):
            if not run.replaced:
                run.replaced = True
                self._settler.put(replacement(run, cause), self._clock.monotonic() - run.started)
                run.stop("lost")
            return
        note = asyncio.create_task(self._note_overrun(run.job, "timeout" if cause == "timeout" else CANCEL_IGNORED))
        self._notes.add(note)
        note.add_done_callback(self._notes.discard)

    async def _note_overrun(self, job: Claimed, reason: str) -> None:
        try:
            await self._database.write(control.note_overrun, job.id, job.lease_token, reason)
        except DatabaseUnavailable as error:  # the row will say `running` alone; the outcome comes when the thread ends
            self._trouble(error)

    def _trouble(self, error: Exception) -> None:
        self._announce(trouble("executor", error, 0))

    def dropped(self, run: Run, problem: str) -> None:
        """What the function returned cannot be stored: warn once a task."""
        self._value_dropped(run.job, problem)

    def _value_dropped(self, job: Claimed, problem: str) -> None:
        self._announce(ValueDropped(**about(job), problem=problem, again=job.task in self._dropping))
        self._dropping.add(job.task)


def _is_replaced_on_overrun(run: Run) -> bool:
    return run.task is not None and run.task.settings.on_overrun == "replace"
