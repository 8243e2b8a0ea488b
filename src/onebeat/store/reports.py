"""Read-only questions of the API, the dashboard and the command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Row, Select, and_, func, or_, select

from onebeat.errors import ConfigurationError, JobNotFound
from onebeat.model import payload
from onebeat.model.fired import fire_time
from onebeat.model.info import AttemptInfo, Fire, JobInfo, Page, QueueInfo, WorkerInfo
from onebeat.model.job import JobState
from onebeat.store.jobs import find
from onebeat.store.sql import RUNNING, padded
from onebeat.store.tx import Tx
from onebeat.store.workers import live
from onebeat.timing.clock import from_us

T = TypeVar("T")


def job(tx: Tx, id: UUID) -> JobInfo:
    """The job as it is now; raises `JobNotFound`."""
    table = tx.tables.jobs
    row = tx.execute(select(table).where(table.c.id == id)).first()
    if row is None:
        raise JobNotFound(f"no job {id}; it may have been pruned (see `retention`)")
    return job_info(row)


def jobs_by_id(tx: Tx, ids: Sequence[UUID]) -> dict[UUID, JobInfo]:
    """Those of the jobs that exist."""
    table = tx.tables.jobs
    return (
        {row.id: job_info(row) for row in tx.execute(select(table).where(table.c.id.in_(padded(ids))))} if ids else {}
    )


def states(tx: Tx, ids: Sequence[UUID]) -> dict[UUID, str]:
    """The state of each of the jobs that exists."""
    table = tx.tables.jobs
    query = select(table.c.id, table.c.state).where(table.c.id.in_(padded(ids)))
    return {row.id: row.state for row in tx.execute(query)} if ids else {}


def jobs(tx: Tx, /, *, limit: int, cursor: str | None, few: bool = True, **wanted: Any) -> Page[JobInfo]:
    """Jobs, newest first, that fit every filter given.

    A page that is not full and has a cursor: so many jobs were looked through that another call has to go on, with
    `few` False. So no statement takes long.
    """
    before = None if cursor is None else _place(cursor, UUID)
    rows, after = find.page(tx, _given(wanted), limit=limit, before=before, few=few)
    return Page(tuple(job_info(row) for row in rows), None if after is None else str(after))


def count_jobs(tx: Tx, /, *, at_most: int | None = None, **wanted: Any) -> int:
    """How many jobs fit every filter given; counting ends at `at_most`."""
    return find.count(tx, _given(wanted), at_most)


def _given(wanted: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in wanted.items() if value is not None}


def jobs_with_arguments(tx: Tx, task: str) -> list[tuple[JobInfo, str]]:
    """All jobs of a task with their stored arguments, oldest first; for the few rows of a test."""
    table = tx.tables.jobs
    query = select(table).where(table.c.task == task).order_by(table.c.created_us, table.c.id)
    return [(job_info(row), str(row.args)) for row in tx.execute(query)]


def attempts(tx: Tx, id: UUID) -> list[AttemptInfo]:
    """The attempts that have ended, in order; a success at the first attempt is read from the job's own row."""
    table, jobs = tx.tables.attempts, tx.tables.jobs
    rows = tx.execute(select(table).where(table.c.job_id == id).order_by(table.c.attempt)).all()
    if not rows and (job := tx.execute(select(jobs).where(jobs.c.id == id)).first()) and job.state == "succeeded":
        return [
            AttemptInfo(
                job_id=id,
                attempt=job.attempt,
                worker=job.worker_id,
                started_at=_moment(job.started_us),
                finished_at=_moment(job.finished_us),
                outcome="succeeded",
                error=None,
                traceback=None,
            )
        ]
    return [
        AttemptInfo(
            job_id=row.job_id,
            attempt=row.attempt,
            worker=row.worker_id,
            started_at=_moment(row.started_us),
            finished_at=_moment(row.finished_us),
            outcome=row.outcome,
            error=row.error,
            traceback=row.traceback,
        )
        for row in rows
    ]


def fires_in_order(tx: Tx, schedule_id: str, decision: str | None) -> list[Fire]:
    """What became of all due instants of a schedule, in order of time; for the few rows of a test."""
    page = fires(tx, schedule_id=schedule_id, decision=decision, start=None, end=None, limit=100_000, cursor=None)
    return list(reversed(page.items))


def fires(
    tx: Tx,
    *,
    schedule_id: str,
    decision: str | None,
    start: int | None,
    end: int | None,
    limit: int,
    cursor: str | None,
) -> Page[Fire]:
    """What became of a schedule's due instants, newest first; `start` ≤ instant < `end`, in microseconds."""
    c = tx.tables.fires.c
    query = _fires(tx).where(c.schedule_id == schedule_id)
    query = query.order_by(c.fire_us.desc(), c.fire_key.desc()).limit(limit + 1)
    if decision is not None:
        query = query.where(c.decision == decision)
    if start is not None:
        query = query.where(c.fire_us >= start)
    if end is not None:
        query = query.where(c.fire_us < end)
    if cursor is not None:
        at, key = _place(cursor, _fire_place)
        query = query.where(or_(c.fire_us < at, and_(c.fire_us == at, c.fire_key < key)))
    rows = tx.execute(query).all()
    last = rows[limit - 1] if len(rows) > limit else None
    return Page(tuple(_fire(row) for row in rows[:limit]), f"{last.fire_us}/{last.fire_key}" if last else None)


def _fires(tx: Tx) -> Select[Any]:
    """Fires with the zone of their schedule; None for those that outlived it, in restored tables."""
    fires, schedules = tx.tables.fires, tx.tables.schedules
    joined = fires.outerjoin(schedules, schedules.c.id == fires.c.schedule_id)
    return select(fires, schedules.c.timezone.label("zone")).select_from(joined)


def _fire_place(cursor: str) -> tuple[int, str]:
    at, slash, key = cursor.partition("/")
    if not slash or re.fullmatch(r"-?[0-9]{1,18}", at) is None or re.fullmatch(r"[\x20-\x7e]{0,400}", key) is None:
        raise ValueError(cursor)
    return int(at), key


def fires_around(tx: Tx, schedule_id: str, at: int) -> list[Fire]:
    """The rows that say something about one instant, oldest first: its own, and gaps that contain it."""
    c = tx.tables.fires.c
    own = _fires(tx).where(c.schedule_id == schedule_id, c.fire_us == at)
    gaps = _fires(tx).where(c.schedule_id == schedule_id, c.until_us >= at, c.fire_us < at)
    rows = [*tx.execute(own), *tx.execute(gaps)]
    return [_fire(row) for row in sorted(rows, key=lambda row: int(row.decided_us))]


def _fire(row: Row[Any]) -> Fire:
    return Fire(
        schedule_id=row.schedule_id,
        fire_time=fire_time(row.fire_us, row.zone),
        key=row.fire_key,
        origin=row.origin,
        decision=row.decision,
        reason=row.reason,
        job_id=row.job_id,
        decided_by=row.decided_by,
        decided_at=from_us(row.decided_us),
        until=None if row.until_us is None else fire_time(row.until_us, row.zone),
        count=row.instants,
    )


def workers(tx: Tx, limit: int = 1000) -> list[WorkerInfo]:
    """Workers of any state, newest first, with the number of jobs each holds; one whose lease ran out has ended."""
    table, c = tx.tables.workers, tx.tables.jobs.c
    held = select(c.worker_id, func.count().label("many")).where(c.state == RUNNING).group_by(c.worker_id).subquery()
    query = (
        select(table, held.c.many, tx.clock.label("now"))
        .select_from(table.outerjoin(held, held.c.worker_id == table.c.id))
        .order_by(table.c.started_us.desc(), table.c.id)
        .limit(limit)
    )
    return [_worker(row) for row in tx.execute(query)]


def _worker(row: Row[Any]) -> WorkerInfo:
    over = row.lease_until_us <= int(row.now)  # the sweeper has not marked it yet
    ends = {"alive": "dead", "leaving": "stopped"} if over else {}
    return WorkerInfo(
        id=row.id,
        host=row.host,
        pid=row.pid,
        state=ends.get(row.state, row.state),
        started_at=from_us(row.started_us),
        heartbeat_at=from_us(row.heartbeat_us),
        lease_until=from_us(row.lease_until_us),
        queues=None if row.queues is None else tuple(payload.decode(row.queues)),
        slots=row.slots,
        running=row.many or 0,
        tasks=tuple(payload.decode(row.tasks)),
        version=row.version,
    )


def queues(tx: Tx) -> list[QueueInfo]:
    """Queues with unfinished jobs or a live worker of their own, by name."""
    counts = find.unfinished_by_queue(tx)
    served = [worker.queues for worker in live(tx)]
    named = {name for names in served for name in names or ()}
    return [
        QueueInfo(name=name, workers=sum(names is None or name in names for names in served), **counts.get(name, {}))
        for name in sorted(named | counts.keys())
    ]


def _place(cursor: str, read: Callable[[str], T]) -> T:
    """Where a page begins; raises `ConfigurationError` for what is no cursor."""
    try:
        return read(cursor)
    except (ValueError, TypeError, AttributeError):
        raise ConfigurationError(
            f"cursor {str(cursor)[:60]!r} is none; give the `cursor` of the page before as it is, or None for the first"
        ) from None


def _moment(us: int | None) -> datetime | None:
    return None if us is None else from_us(us)


def job_info(row: Row[Any]) -> JobInfo:
    return JobInfo(
        id=row.id,
        task=row.task,
        state=JobState(row.state),
        reason=row.reason,
        queue=row.queue,
        priority=-row.rank,
        attempt=row.attempt,
        worker=row.worker_id,
        run_at=from_us(row.run_at_us),
        created_at=from_us(row.created_us),
        started_at=_moment(row.started_us),
        finished_at=_moment(row.finished_us),
        tracking_id=row.tracking_id,
        schedule_id=row.schedule_id,
        fire_time=None if row.fire_us is None else fire_time(row.fire_us, row.fire_zone),
        progress=None if row.progress is None else payload.decode(row.progress),
        tags=() if row.tags is None else tuple(payload.decode(row.tags)),
        value=None if row.value is None else payload.decode(row.value),
        error=row.error,
    )
