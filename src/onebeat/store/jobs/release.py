"""Jobs that wait for another job of their schedule: release the oldest one when no other job holds it."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import case, null, select, update

from onebeat.model.job import JobState
from onebeat.model.schedule import waits_for
from onebeat.store.sql import QUEUED, RUNNING, SCHEDULED, WAITING, padded
from onebeat.store.tx import Tx

HEALED_AT_ONCE = 1000  # schedules in one sweep: one batch stays a short transaction


def release(tx: Tx, schedule_ids: Collection[str]) -> int:
    """Release the oldest waiting job of each schedule that has no scheduled, queued or running job.

    Returns how many jobs were released.
    """
    if not schedule_ids:
        return 0
    c = tx.tables.jobs.c
    keys = [waits_for(id) for id in sorted(schedule_ids)]
    query = select(c.id, c.schedule_id).where(c.state == WAITING, c.waits_for.in_(padded(keys))).order_by(c.id.desc())
    oldest = {row.schedule_id: row.id for row in tx.execute(query)}
    if not oldest:
        return 0
    active = c.state.in_([SCHEDULED, QUEUED, RUNNING])
    held = select(c.schedule_id).where(c.schedule_id.in_(padded(sorted(oldest))), active).distinct()
    for row in tx.execute(held).all():
        del oldest[row.schedule_id]
    if oldest:
        tx.execute(
            update(tx.tables.jobs)
            .where(c.id.in_(padded(list(oldest.values()))), c.state == WAITING)
            .values(
                state=case((c.run_at_us <= tx.clock, str(JobState.QUEUED)), else_=str(JobState.SCHEDULED)),
                waits_for=null(),
            )
        )
    return len(oldest)


def heal_releases(tx: Tx) -> int:
    """Repeat `release` for every schedule that has a waiting job, and return how many jobs were released.

    The sweeper calls it, so that a job whose release was lost waits no longer than until the next sweep.
    """
    c = tx.tables.jobs.c
    waiting = select(c.schedule_id).where(c.state == WAITING, c.schedule_id.is_not(None)).distinct()
    return release(tx, {row.schedule_id for row in tx.execute(waiting.limit(HEALED_AT_ONCE))})
