"""Insert jobs, and move due ones to the queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select, update

from onebeat.model import payload
from onebeat.model.job import JobState, NewJob
from onebeat.store.sql import SCHEDULED, padded
from onebeat.store.tx import Tx

PROMOTED_AT_ONCE = 500  # one batch stays a short transaction


def add(tx: Tx, jobs: Sequence[NewJob]) -> None:
    """Store the jobs. Running it again after a commit whose answer was lost stores nothing twice."""
    table = tx.tables.jobs
    if len(jobs) == 1:
        _add_one(tx, jobs[0])
    elif jobs:
        now = tx.now()
        rows = [_row(job) | {"created_us": now} for job in jobs]
        for row in rows:
            row["run_at_us"] = now if row["run_at_us"] is None else row["run_at_us"]
        tx.execute(tx.dialect.insert_ignore(table), rows)
    _add_tags(tx, jobs)


def add_unless_taken(tx: Tx, job: NewJob) -> bool:
    """Store the job unless its id or its unique key is taken, and return whether it was stored."""
    if not _add_one(tx, job):
        return False
    _add_tags(tx, [job])
    return True


def _add_one(tx: Tx, job: NewJob) -> int:
    row = _row(job) | {"created_us": tx.clock}
    if job.run_at is None:
        row["run_at_us"] = tx.clock
    if job.unique_for is not None:
        row["unique_until_us"] = tx.clock + job.unique_for
    return tx.execute(tx.dialect.insert_ignore(tx.tables.jobs).values(row)).rowcount


def _add_tags(tx: Tx, jobs: Sequence[NewJob]) -> None:
    tags = [{"job_id": job.id, "tag": tag} for job in jobs for tag in dict.fromkeys(job.tags)]
    if tags:
        tx.execute(tx.dialect.insert_ignore(tx.tables.job_tags), tags)


def add_rows(tx: Tx, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    """Store very many new jobs, each the values of `columns`; it fails where an id is taken."""
    tx.insert(tx.tables.jobs, columns, rows)


def _row(job: NewJob) -> dict[str, Any]:
    return {
        "id": job.id,
        "task": job.task,
        "signature": job.signature,
        "args": job.args,
        "queue": job.queue,
        "rank": -job.priority,
        "state": str(job.state),
        "run_at_us": job.run_at,
        "waits_for": job.waits_for,
        "max_attempts": job.max_attempts,
        "retry": job.retry,
        "timeout_us": job.timeout,
        "at_most_once": job.at_most_once,
        "schedule_id": job.schedule_id,
        "fire_us": job.fire_us,
        "fire_zone": job.fire_zone,
        "tracking_id": job.tracking_id,
        "carried": job.carried,
        "unique_slot": job.unique_slot,
        "unique_text": job.unique_text,
        "tags": payload.encode(list(job.tags)) if job.tags else None,
    }


def promote(tx: Tx, limit: int = PROMOTED_AT_ONCE) -> tuple[int, int | None]:
    """Queue up to `limit` scheduled jobs whose time has come; the count, and the earliest `run_at_us` that is left."""
    table = tx.tables.jobs
    due = tx.dialect.skip_locked(
        select(table.c.id)
        .where(table.c.state == SCHEDULED, table.c.run_at_us <= tx.clock)
        .order_by(table.c.run_at_us)
        .limit(limit)
    )
    ids = [row.id for row in tx.execute(due)]
    if ids:
        tx.execute(
            update(table)
            .where(table.c.id.in_(padded(ids)), table.c.state == SCHEDULED)
            .values(state=str(JobState.QUEUED))
        )
    return len(ids), next_run_at(tx)


def next_run_at(tx: Tx) -> int | None:
    """The earliest `run_at_us` of the scheduled jobs."""
    table = tx.tables.jobs
    earliest = select(func.min(table.c.run_at_us)).where(table.c.state == SCHEDULED)
    value: int | None = tx.execute(earliest).scalar()
    return value
