"""What a database clock that was ahead left behind when it was set back: leases, retries and first starts."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import and_, func, select, update

from onebeat.store.sql import SCHEDULED, word
from onebeat.store.tx import Tx
from onebeat.timing.clock import DAY, HOUR, SECOND

AHEAD = 30 * SECOND  # what was written at a moment so far ahead was written before the clock was set back
LONGEST_OF_WORKERS = HOUR  # no worker has a longer lease
LONGEST_OF_LOCKS = DAY  # nor a lock a longer `ttl`
RETRIES_AT_ONCE = 200  # in one transaction
NAMED = 1_000  # first starts that are named at once


def was_ahead(tx: Tx) -> bool:
    """Return whether a worker was seen, or a fire was decided, at a moment that still lies ahead."""
    fires, workers = tx.tables.fires, tx.tables.workers
    ahead = tx.now() + AHEAD
    latest = tx.execute(select(func.max(fires.c.decided_us))).scalar()
    if latest is not None and latest > ahead:
        return True
    seen = select(workers.c.id).where(workers.c.heartbeat_us > ahead).limit(1)
    return tx.execute(seen).first() is not None


def shorten_leases(tx: Tx) -> int:
    """Let leases of workers and locks end as long after now as they were given for; return how many were cut.

    What was written while the clock was ahead says how long a lease is: at most from the last beat of a worker, or from
    the moment at which a lock was taken, to its end. Other leases end within the longest there is. So none ends before
    its owner stops trusting it, and none of a dead owner stands until the former time is reached.
    """
    workers, locks = tx.tables.workers, tx.tables.locks
    present = workers.c.state.in_([word("alive"), word("leaving")])
    return _shortened(
        tx, workers.c.heartbeat_us, workers.c.lease_until_us, present, longest=LONGEST_OF_WORKERS
    ) + _shortened(tx, locks.c.acquired_us, locks.c.expires_us, locks.c.expires_us > 0, longest=LONGEST_OF_LOCKS)


def _shortened(tx: Tx, begin: Any, end: Any, wanted: Any, *, longest: int) -> int:
    table, now = begin.table, tx.now()
    own = update(table).where(wanted, begin > now + AHEAD, end > begin)
    # In this order: MySQL computes each value from the columns as the former ones left them.
    known = tx.execute(own.ordered_values((end, now + end - begin), (begin, now))).rowcount
    others = tx.execute(update(table).where(wanted, end > now + longest).values({end: now + longest})).rowcount
    return int(known + others)


def bring_retries_forward(tx: Tx) -> int:
    """Let up to `RETRIES_AT_ONCE` retries wait as long as they were to wait, from now on; return how many were moved.

    The delay of a retry or snooze is the time from the end of its attempt to its start. Both were written by the clock
    that was ahead, so the difference is right. The attempt moves too, and is not found again.
    """
    jobs, attempts = tx.tables.jobs, tx.tables.attempts
    now = tx.now()
    ended = and_(attempts.c.job_id == jobs.c.id, attempts.c.attempt == jobs.c.attempt)
    query = (
        select(jobs.c.id, jobs.c.attempt, jobs.c.run_at_us, attempts.c.started_us, attempts.c.finished_us)
        .join(attempts, ended)
        .where(jobs.c.state == SCHEDULED, jobs.c.run_at_us > now + AHEAD, attempts.c.finished_us > now + AHEAD)
        .limit(RETRIES_AT_ONCE)
    )
    rows = tx.execute(tx.dialect.skip_locked(query)).all()
    for row in rows:
        ahead = row.finished_us - now
        moved = {"run_at_us": max(now, row.run_at_us - ahead)}
        tx.execute(update(jobs).where(jobs.c.id == row.id, jobs.c.state == SCHEDULED).values(moved))
        times = {"finished_us": now, "started_us": None if row.started_us is None else row.started_us - ahead}
        this = attempts.c.job_id == row.id, attempts.c.attempt == row.attempt
        tx.execute(update(attempts).where(*this).values(times))
    return len(rows)


def delayed_ahead(tx: Tx) -> list[UUID]:
    """Return up to `NAMED` jobs that wait for their first start and were stored while the clock was ahead.

    Where they were given `delay`, they start too late; where they were given `run_at`, they start when they should.
    The row does not say which.
    """
    c, ahead = tx.tables.jobs.c, tx.now() + AHEAD
    waiting = c.state == SCHEDULED, c.attempt == 0, c.run_at_us > ahead, c.created_us > ahead
    return list(tx.execute(select(c.id).where(*waiting).order_by(c.run_at_us).limit(NAMED)).scalars())
