"""From a call to the job that is stored, and to the snapshot the caller gets without another round trip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onebeat.engine.wakeups import Wakeups
from onebeat.model import payload
from onebeat.model.ids import uuid7
from onebeat.model.info import JobInfo
from onebeat.model.job import JobState, NewJob
from onebeat.model.protocols import Carrier
from onebeat.tasks.task import Call
from onebeat.timing.clock import from_us


def new_job(call: Call[Any], carrier: Carrier, *, now: int, offset: int) -> NewJob:
    """The job of a call at `now`, the local clock; `offset` is the database's clock minus it, both microseconds."""
    task, options = call.task, call.options
    settings = task.settings
    run_at = options.run_at if options.delay is None else now + offset + options.delay
    later = run_at is not None and run_at > now + offset
    retry = options.retry or settings.retry
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
        tags=options.tags,
    )


def announce_stored(wakeups: Wakeups, jobs: Sequence[NewJob]) -> None:
    """Wake the claimer for what may run now, and the promoter for what waits until later."""
    if any(job.state is JobState.QUEUED for job in jobs):
        wakeups.jobs_queued()
    if any(job.state is JobState.SCHEDULED for job in jobs):
        wakeups.jobs_delayed()


def snapshot(job: NewJob, now: int) -> JobInfo:
    """The job as it was just stored; a round trip saved."""
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
