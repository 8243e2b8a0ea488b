"""Jobs with unique keys: stored where the key is free, else found by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, null, select, update

from onebeat.errors import DatabaseUnavailable
from onebeat.model.info import JobInfo
from onebeat.model.job import JobState, NewJob
from onebeat.store import reports
from onebeat.store.jobs import insert
from onebeat.store.sql import QUEUED, SCHEDULED, WAITING
from onebeat.store.tx import Tx

_UNSTARTED = (JobState.QUEUED, JobState.SCHEDULED, JobState.WAITING)
TRIES = 3  # a key can become free between the insert that found it taken and the look at who has it


def add(tx: Tx, jobs: Sequence[NewJob]) -> dict[UUID, JobInfo]:
    """Store the jobs; return the ids of those whose unique key is taken, each with the job that holds the key.

    Of several calls at the same time with one key, one stores its job. Running it again is harmless, as `insert.add`.
    """
    plain = [job for job in jobs if job.unique_slot is None]
    insert.add(tx, plain)
    held: dict[UUID, JobInfo] = {}
    for job in sorted((job for job in jobs if job.unique_slot is not None), key=lambda job: str(job.unique_slot)):
        holder = _add_or_find(tx, job)
        if holder is not None:
            held[job.id] = holder
    return held


def _add_or_find(tx: Tx, job: NewJob) -> JobInfo | None:
    """Store the job and return None, or return the holder of its key."""
    for _ in range(TRIES):
        if insert.add_unless_taken(tx, job):
            return None
        holder = _holder(tx, job)
        if holder is None:  # the key is free by now, or this job was stored by an earlier try and has ended
            if _exists(tx, job.id):
                return None
            continue
        if holder.id == job.id:
            return None
        if holder.finished_us is not None and _freed(tx, holder, job):
            continue
        if job.replaces and holder.state in _UNSTARTED:  # an update that changes nothing may lock the row all the same
            _move(tx, holder.id, job)
        return reports.job_info(_current(tx, holder.id, job) or holder)
    raise DatabaseUnavailable(
        f"the unique key {job.unique_text!r:.60} of task {job.task!r} was taken and freed {TRIES} times while this job "
        "was stored; try again",
        reason="retry",
    )


def _holder(tx: Tx, job: NewJob) -> Row[Any] | None:
    """Return the row that holds the key now, also where the caller's snapshot is older than it."""
    jobs = tx.tables.jobs
    query = select(jobs.c.id).where(jobs.c.unique_slot == job.unique_slot)
    id = tx.execute(tx.dialect.current_read(query) if tx.is_callers else query).scalar()
    return None if id is None else _current(tx, id, job)


def _current(tx: Tx, id: UUID, job: NewJob) -> Row[Any] | None:
    jobs = tx.tables.jobs
    query = select(jobs).where(jobs.c.id == id)
    row = tx.execute(query).first()
    if tx.is_callers and (row is None or row.unique_slot != job.unique_slot):
        row = tx.execute(tx.dialect.current_read(query)).first()
    return row if row is not None and row.unique_slot == job.unique_slot else None


def _exists(tx: Tx, id: UUID) -> bool:
    jobs = tx.tables.jobs
    return tx.execute(select(jobs.c.id).where(jobs.c.id == id)).first() is not None


def _freed(tx: Tx, holder: Row[Any], job: NewJob) -> bool:
    """Free the key of an ended job whose `unique_for` is over."""
    jobs = tx.tables.jobs
    over = jobs.c.finished_us.is_not(None), jobs.c.unique_until_us <= tx.clock
    free = update(jobs).where(jobs.c.id == holder.id, jobs.c.unique_slot == job.unique_slot, *over)
    return bool(tx.execute(free.values(unique_slot=null())).rowcount)


def _move(tx: Tx, id: UUID, job: NewJob) -> None:
    """Give the holder the arguments and the time of this job, unless it is running or has ended."""
    jobs = tx.tables.jobs
    held = jobs.c.id == id, jobs.c.unique_slot == job.unique_slot
    run_at = tx.clock if job.run_at is None else job.run_at
    values = {"args": job.args, "signature": job.signature, "run_at_us": run_at}
    tx.execute(update(jobs).where(*held, jobs.c.state == WAITING).values(**values))
    moved = update(jobs).where(*held, jobs.c.state.in_([QUEUED, SCHEDULED])).values(**values)
    if job.state is JobState.SCHEDULED:
        tx.execute(moved.values(state=str(JobState.SCHEDULED)))
    else:
        tx.execute(moved.values(state=str(JobState.QUEUED)))
