"""Claim queued jobs for a worker, and find out which ones it holds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import starmap
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, Select, Update, and_, bindparam, exists, not_, select, update
from sqlalchemy.sql.dml import ReturningUpdate

from onebeat.model.job import SUSPECT_CRASHES, Claimed, JobState
from onebeat.store.sql import QUEUED, padded, word
from onebeat.store.tx import Tx

Shape = tuple[bool, bool, bool]  # of a claim's statement: only these queues, all but these, suspects


def alive(tx: Tx, worker_id: ColumnElement[str] | str) -> ColumnElement[bool]:
    """The worker's row says that it may claim: alive, and its lease has not run out by the database's clock."""
    workers = tx.tables.workers
    return exists().where(
        workers.c.id == worker_id, workers.c.state == word("alive"), workers.c.lease_until_us > tx.clock
    )


def claim(
    tx: Tx,
    *,
    worker_id: str,
    token: str,
    limit: int,
    tasks: Sequence[str],
    queues: Sequence[str] | None = None,
    excluded: Sequence[str] = (),
    suspects: bool = False,
) -> list[Claimed]:
    """Claim up to `limit` queued jobs for this worker under one lease token; two workers never receive the same job.

    `queues` None: every queue but the `excluded`. `suspects`: only jobs that were running when a worker died, twice.
    A worker that is not alive in the database receives nothing.
    """
    shape, values = _wanted(tasks, queues, excluded, suspects)
    values |= {"b_worker": worker_id, "b_limit": limit}
    claim_rows = _claim_in_one if tx.dialect.update_returning else _claim_in_steps
    return claim_rows(tx, shape, values, token)


def any_claimable(
    tx: Tx,
    *,
    tasks: Sequence[str],
    queues: Sequence[str] | None = None,
    excluded: Sequence[str] = (),
    suspects: bool = False,
) -> bool:
    """Whether a job is queued that `claim` would take; it locks nothing, so it hides no job from another's claim."""
    shape, values = _wanted(tasks, queues, excluded, suspects)
    return tx.execute(tx.prepared(_any_claimable, shape), values).first() is not None


def _wanted(
    tasks: Sequence[str], queues: Sequence[str] | None, excluded: Sequence[str], suspects: bool
) -> tuple[Shape, dict[str, Any]]:
    values: dict[str, Any] = {"b_tasks": padded(tasks or [""])}
    if queues is not None:
        values["b_queues"] = padded(queues)
    elif excluded:
        values["b_excluded"] = padded(excluded)
    return (queues is not None, bool(excluded) and queues is None, suspects), values


def _order(job: Claimed) -> tuple[int, int, UUID]:
    return job.rank, job.run_at_us, job.id


def _claimable(tx: Tx, shape: Shape, *columns: ColumnElement[Any]) -> Select[Any]:
    """What to claim, in order, locked: these columns of it."""
    c = tx.tables.jobs.c
    query = select(*columns).where(_waiting(tx, shape), alive(tx, bindparam("b_worker")))
    return tx.dialect.skip_locked(query.order_by(c.rank, c.run_at_us, c.id).limit(bindparam("b_limit")))


def _any_claimable(tx: Tx, shape: Shape) -> Select[Any]:
    return select(tx.tables.jobs.c.id).where(_waiting(tx, shape)).limit(1)


def _waiting(tx: Tx, shape: Shape) -> ColumnElement[bool]:
    only, excluding, suspects = shape
    c = tx.tables.jobs.c
    condition = and_(
        c.state == QUEUED,
        tx.dialect.among(c.task, "b_tasks"),
        c.crashes >= SUSPECT_CRASHES if suspects else c.crashes < SUSPECT_CRASHES,
    )
    if only:
        condition = and_(condition, tx.dialect.among(c.queue, "b_queues"))
    if excluding:
        condition = and_(condition, not_(tx.dialect.among(c.queue, "b_excluded")))
    return condition


def _claim_in_one(tx: Tx, shape: Shape, values: dict[str, Any], token: str) -> list[Claimed]:
    rows = tx.execute(tx.prepared(_claim_returning, shape), values | {"b_token": token}).all()
    return sorted(starmap(Claimed, rows), key=_order)


def _claim_returning(tx: Tx, shape: Shape) -> ReturningUpdate[Any]:
    table = tx.tables.jobs
    chosen = (
        _claimable(tx, shape, table.c.id).cte("chosen").prefix_with("MATERIALIZED")
    )  # a sub-query may be run again for each row, and lock more than the limit
    return (
        update(table).where(table.c.id.in_(select(chosen.c.id))).values(_taken(tx, tx.clock)).returning(*_columns(tx))
    )


def _claim_in_steps(tx: Tx, shape: Shape, values: dict[str, Any], token: str) -> list[Claimed]:
    """Where an update cannot return rows: lock and read them, then write what follows from that and the time."""
    rows = tx.execute(tx.prepared(_claimable_now, shape), values).all()
    if not rows:
        return []
    now = rows[0].now_us
    taken = {"b_ids": padded([row.id for row in rows]), "b_now": now, "b_worker": values["b_worker"], "b_token": token}
    tx.execute(tx.prepared(_take), taken)
    return [
        Claimed._make(row[:-2])._replace(
            attempt=row.attempt + 1, lease_token=token, fence=row.new_fence, claimed_us=now
        )
        for row in rows
    ]


def _claimable_now(tx: Tx, shape: Shape) -> Select[Any]:
    return _claimable(tx, shape, *_columns(tx), tx.clock.label("now_us"), next_fence(tx, tx.clock).label("new_fence"))


def _take(tx: Tx) -> Update:
    table = tx.tables.jobs
    return (
        update(table)
        .where(tx.dialect.among(table.c.id, "b_ids"), table.c.state == QUEUED)
        .values(_taken(tx, bindparam("b_now", type_=table.c.fence.type)))
    )


def _taken(tx: Tx, now: ColumnElement[int]) -> dict[str, Any]:
    """What a claim writes."""
    return {
        "state": str(JobState.RUNNING),
        "attempt": tx.tables.jobs.c.attempt + 1,
        "worker_id": bindparam("b_worker"),
        "lease_token": bindparam("b_token"),
        "fence": next_fence(tx, now),
        "claimed_us": now,
        "started_us": now,
    }


def next_fence(tx: Tx, now: ColumnElement[int]) -> ColumnElement[int]:
    """Grows with every claim and never falls behind the clock, so that it survives deletion and restored back-ups."""
    return tx.dialect.greatest(tx.tables.jobs.c.fence + 1, now)


def _columns(tx: Tx) -> list[ColumnElement[Any]]:
    """In the order of `Claimed`'s fields."""
    return [tx.tables.jobs.c[name] for name in Claimed._fields]


def held_by(tx: Tx, worker_id: str) -> list[Row[Any]]:
    """What the database says this worker is running: id, lease_token, cancel_requested_us."""
    c = tx.tables.jobs.c
    query = select(c.id, c.lease_token, c.cancel_requested_us).where(
        c.worker_id == worker_id, c.state == word(JobState.RUNNING)
    )
    return list(tx.execute(query).all())


def suspects_wait(tx: Tx, tasks: Sequence[str], older_than: int) -> bool:
    """Whether a job that may kill its worker has waited longer than `older_than` microseconds to be run alone."""
    c = tx.tables.jobs.c
    query = (
        select(c.id)
        .where(
            c.state == QUEUED,
            c.crashes >= SUSPECT_CRASHES,
            c.task.in_(padded(tasks or [""])),
            c.run_at_us <= tx.clock - older_than,
        )
        .limit(1)
    )
    return tx.execute(query).first() is not None
