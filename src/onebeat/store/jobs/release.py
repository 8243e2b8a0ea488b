"""Jobs that wait for another job of their schedule: release the oldest one when no other job holds it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    FromClause,
    ScalarSelect,
    Select,
    bindparam,
    case,
    func,
    literal,
    null,
    select,
    update,
)

from onebeat.model.job import JobState
from onebeat.model.schedule import waits_for
from onebeat.store.sql import WAITING, padded, unindexed
from onebeat.store.tx import Tx

LOOKED_AT = 1_000  # schedules in one look for lost releases
_FIRST = waits_for("")  # sorts before the keys of all schedules
_LAST = _FIRST[:-1] + chr(ord(_FIRST[-1]) + 1)  # sorts after them


def release(tx: Tx, ids: Collection[UUID]) -> int:
    """Release the oldest waiting job of each schedule that no scheduled, queued or running job of it holds.

    The schedules are those of the jobs `ids`, which may have ended. Returns how many jobs were released.
    """
    if not ids:
        return 0
    rows = tx.execute(tx.prepared(_oldest_waiting), {"b_ids": padded(sorted(ids))})
    oldest = sorted({row.oldest for row in rows if row.holder is None})
    if oldest:
        c = tx.tables.jobs.c
        tx.execute(
            update(tx.tables.jobs)
            .where(c.id.in_(padded(oldest)), unindexed(c.state) == WAITING)
            .values(
                state=case((c.run_at_us <= tx.clock, str(JobState.QUEUED)), else_=str(JobState.SCHEDULED)),
                waits_for=null(),
            )
        )
    return len(oldest)


def lost_releases(tx: Tx, after: str = "", limit: int = LOOKED_AT) -> tuple[list[UUID], str | None]:
    """Find jobs that wait though no job of their schedule holds them; `release` takes them.

    Looks at `limit` schedules after the one of the key `after`; returns the jobs and the key to go on from, None at the
    end. It changes nothing, so it needs no lock.
    """
    values = {"b_after": max(after, _FIRST), "b_limit": limit}
    rows = tx.execute(tx.prepared(_waiting_schedules), values).all()
    lost = [row.oldest for row in rows if row.holder is None]
    return lost, rows[-1].waits_for if len(rows) == limit else None


def _oldest_waiting(tx: Tx) -> Select[Any]:
    ended = tx.tables.jobs.alias("ended")
    key = literal(_FIRST).concat(ended.c.schedule_id)
    found = (
        select(ended.c.schedule_id, _first_waiting(tx, ended, key).label("oldest"))
        .where(tx.dialect.among(ended.c.id, "b_ids"))
        .subquery("found")
    )
    holder = _holder(tx, found, found.c.schedule_id).label("holder")
    return select(found.c.oldest, holder).where(found.c.oldest.is_not(None))


def _waiting_schedules(tx: Tx) -> Select[Any]:
    c = tx.tables.jobs.c
    keys = (
        select(c.waits_for)
        .where(c.state == WAITING, c.waits_for > bindparam("b_after"), c.waits_for < _LAST)
        .distinct()
        .order_by(c.waits_for)
        .limit(bindparam("b_limit"))
        .subquery("keys")
    )
    oldest = _first_waiting(tx, keys, keys.c.waits_for).label("oldest")
    holder = _holder(tx, keys, func.substr(keys.c.waits_for, len(_FIRST) + 1, type_=c.schedule_id.type)).label("holder")
    return select(keys.c.waits_for, oldest, holder).order_by(keys.c.waits_for)


def _first_waiting(tx: Tx, outer: FromClause, key: ColumnElement[str]) -> ScalarSelect[UUID]:
    """The oldest job that waits for the key: the first entry of an index, however many wait."""
    waiting = tx.tables.jobs.alias("waiting")
    query = select(waiting.c.id).where(waiting.c.state == WAITING, waiting.c.waits_for == key)
    return query.order_by(waiting.c.id).limit(1).correlate(outer).scalar_subquery()


def _holder(tx: Tx, outer: FromClause, schedule_id: ColumnElement[str]) -> ScalarSelect[UUID]:
    """A scheduled, queued or running job of the schedule; the order is that of the index on unfinished jobs."""
    holder = tx.tables.jobs.alias("holder")
    c = holder.c
    unfinished = c.schedule_id == schedule_id, c.finished_us.is_(None)
    query = select(c.id).where(*unfinished, unindexed(c.state) != WAITING).order_by(c.finished_us, c.fire_us)
    return query.limit(1).correlate(outer).scalar_subquery()
