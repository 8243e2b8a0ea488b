"""From a call to the job that is stored, and to the snapshot that the caller receives without another query."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol
from uuid import UUID

from onebeat.engine.wakeups import AT_ONCE, Wakeups
from onebeat.errors import ConfigurationError, InvalidArguments
from onebeat.model import payload
from onebeat.model.ids import uuid7
from onebeat.model.info import JobInfo, JobVerbs
from onebeat.model.job import JobState, NewJob
from onebeat.model.protocols import Carrier, Clock
from onebeat.model.unique_key import slot_and_text
from onebeat.scheduler.runtime import Runtime
from onebeat.store.connection.after_commit import Callback
from onebeat.store.connection.callers_session import AsyncCaller, SyncCaller, run_in, run_in_sync
from onebeat.store.jobs import unique
from onebeat.tasks.registry import Registry
from onebeat.tasks.task import Call, Task
from onebeat.timing.clock import from_us


class _Owner(Protocol):
    registry: Registry


class JobEnqueuer:
    """Stores the calls of a scheduler's tasks as jobs.

    `scheduler` tells its tasks and its `repr`. `running` returns its runtime or raises `NotStarted`. The returned
    snapshots wait, refresh and cancel through `jobs`. `wakeups` hears of the stored jobs.
    """

    def __init__(
        self,
        scheduler: _Owner,
        *,
        running: Callable[[], Runtime],
        jobs: JobVerbs,
        carrier: Carrier,
        clock: Clock,
        wakeups: Wakeups,
    ) -> None:
        self._scheduler = scheduler
        self._running = running
        self._jobs = jobs
        self._carrier = carrier
        self._clock = clock
        self._wakeups = wakeups

    def __repr__(self) -> str:
        return repr(self._scheduler)

    @property
    def has_tasks(self) -> bool:
        """Return whether the scheduler includes any task."""
        return len(self._scheduler.registry) > 0

    def owns(self, task: Task[Any, Any]) -> bool:
        """Return whether the scheduler includes the task."""
        return task in self._scheduler.registry

    async def enqueue_calls(self, calls: Sequence[Call[Any]]) -> list[JobInfo]:
        """Store the calls in one transaction, and wake what runs or promotes them.

        The transaction is that of the session in the calls' options; then the wake-up waits for its commit.
        """
        session, running = _session_of(calls), self._running()
        if session is None:
            running.here()
        database = running.users
        new, now = self._new_jobs(calls, database.offset_us)
        if not new:
            return []
        if session is not None:
            held = await run_in(session, database, unique.add, new, after_commit=self._wakeup(new))  # type: ignore[arg-type]  # it looks
            return self._infos(new, held, now)
        is_one_row = len(new) == 1 and not new[0].tags and new[0].unique_slot is None
        held = await (database.write_one if is_one_row else database.write)(unique.add, new)
        announce_stored(self._wakeups, new)
        return await running.stored(self._infos(new, held, now))

    def enqueue_calls_sync(self, calls: Sequence[Call[Any]]) -> list[JobInfo]:
        """Store the calls from another thread than the event loop's; blocks for one round trip.

        With a session in the calls' options they are stored in its transaction, on the caller's own thread.
        """
        session, running = _session_of(calls), self._running()
        if session is not None:
            database = running.users
            new, now = self._new_jobs(calls, database.offset_us)
            held = run_in_sync(session, database, unique.add, new, after_commit=self._wakeup(new))  # type: ignore[arg-type]
            return self._infos(new, held, now)
        running.database.refuse_in_own_write()  # asked on this thread, whose transaction it would be
        loop = running.loop
        if _running_loop() is loop:
            raise ConfigurationError(
                "enqueue_sync would block the event loop it waits for; use `await task.enqueue(…)`"
            )
        return asyncio.run_coroutine_threadsafe(self.enqueue_calls(calls), loop).result()

    def _infos(self, new: Sequence[NewJob], held: Mapping[UUID, JobInfo], now: int) -> list[JobInfo]:
        """Return what was stored, and for each job whose key was taken the one that holds it."""
        infos = (replace(held[job.id], duplicate=True) if job.id in held else snapshot(job, now) for job in new)
        return [info.bound(self._jobs) for info in infos]

    def _new_jobs(self, calls: Sequence[Call[Any]], offset: int) -> tuple[list[NewJob], int]:
        """Return the jobs of the calls, and the database's clock in microseconds; `offset`: that clock minus ours."""
        now = self._clock.now()
        jobs = [new_job(call, self._carrier, now=now + place, offset=offset) for place, call in enumerate(calls)]
        return jobs, now + offset

    def _wakeup(self, jobs: Sequence[NewJob]) -> Callback:
        """Return what `announce_stored` does, to be called after the commit of a caller's transaction.

        It is the same object for the same kinds of jobs, so that one transaction of a caller wakes once for all.
        """
        states = {job.state for job in jobs}
        if states == {JobState.QUEUED}:
            return self._wakeups.jobs_queued
        return self._wake_promoter if states == {JobState.SCHEDULED} else self._wake_both

    def _wake_promoter(self) -> None:
        self._wakeups.jobs_delayed(AT_ONCE)

    def _wake_both(self) -> None:
        self._wakeups.jobs_queued()
        self._wake_promoter()


def announce_stored(wakeups: Wakeups, jobs: Sequence[NewJob]) -> None:
    """Wake the claimer for what may run now, and the promoter for what waits until later."""
    if any(job.state is JobState.QUEUED for job in jobs):
        wakeups.jobs_queued()
    if later := [job.run_at or AT_ONCE for job in jobs if job.state is JobState.SCHEDULED]:
        wakeups.jobs_delayed(min(later))


def _session_of(calls: Sequence[Call[Any]]) -> AsyncCaller | SyncCaller | None:
    """Return the session in whose transaction the calls are stored, None for a transaction of onebeat's own."""
    sessions = [call.options.session for call in calls]
    if any(session is not sessions[0] for session in sessions):
        raise InvalidArguments(
            "these calls name different sessions; store those of each session with an enqueue_many of their own"
        )
    return sessions[0] if sessions else None


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def new_job(call: Call[Any], carrier: Carrier, *, now: int, offset: int) -> NewJob:
    """Return the job of a call. `now`: the local clock; `offset`: the database's clock minus it; both microseconds."""
    task, options = call.task, call.options
    settings = task.settings
    run_at = options.run_at if options.delay is None else now + offset + options.delay
    later = run_at is not None and run_at > now + offset
    retry = options.retry or settings.retry
    slot, text = (None, None) if options.unique_key is None else slot_and_text(task.name, options.unique_key)
    tracking_id, carried = carrier.capture()
    return NewJob(
        id=uuid7(now),
        task=task.name,
        args=call.args,
        signature=task.signature.fingerprint,
        state=JobState.SCHEDULED if later else JobState.QUEUED,
        run_at=run_at,
        queue=options.queue or settings.queue,
        priority=settings.priority if options.priority is None else options.priority,
        max_attempts=retry.attempts,
        retry=None if options.retry is None else payload.canonical(options.retry.to_json()),
        timeout=options.timeout or settings.timeout,
        at_most_once=settings.at_most_once,
        tracking_id=options.tracking_id or tracking_id,
        carried=carried,
        unique_slot=slot,
        unique_text=text,
        unique_for=options.unique_for,
        replaces=options.if_exists == "replace",
        tags=options.tags,
    )


def snapshot(job: NewJob, now: int) -> JobInfo:
    """Return the job as it was just stored, without a query. `now`: the database's clock, microseconds."""
    return JobInfo(
        id=job.id,
        task=job.task,
        state=job.state,
        reason=None,
        queue=job.queue,
        priority=job.priority,
        attempt=0,
        worker=None,
        run_at=from_us(now if job.run_at is None else job.run_at),
        created_at=from_us(now),
        started_at=None,
        finished_at=None,
        tracking_id=job.tracking_id,
        tags=job.tags,
    )
