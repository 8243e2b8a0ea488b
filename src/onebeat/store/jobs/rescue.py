"""Jobs taken back from workers that died or stopped, and claims returned before they started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any
from uuid import UUID

from sqlalchemy import Row, Update, and_, case, exists, null, select, update

from onebeat.model.job import SUSPECT_CRASHES, Ending, JobState, Outcome, Settlement, settle as decide, stored_retry
from onebeat.store.jobs.each import Value, update_each
from onebeat.store.jobs.finish import FinishedJob, after_end, final_values
from onebeat.store.jobs.settle import claim_holds
from onebeat.store.sql import RUNNING, number, padded, word
from onebeat.store.tx import Tx
from onebeat.timing.backoff import Retry

RESCUED_AT_ONCE = 200  # one batch stays a short transaction
LOST = Outcome(ending=Ending.LOST, error="its worker died")
DRAINED = Outcome(ending=Ending.DRAINED, error="its worker stopped before the job ended")
BESIDE_SUSPECT = Outcome(ending=Ending.DRAINED, error="its worker died beside a job that may have been the cause")
RETURNED = Outcome(ending=Ending.RETURNED)

Decided = tuple[Row[Any], Outcome, Settlement]  # a job's row, how its attempt ended, and what becomes of the job


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescued:
    """A job taken back from a worker that died or stopped before the job ended."""

    id: UUID
    task: str
    attempt: int
    tracking_id: str
    queue: str
    schedule_id: str | None
    from_worker: str
    state: str
    reason: str | None


def rescue(tx: Tx, *, random: Random, limit: int = RESCUED_AT_ONCE) -> list[Rescued]:
    """Take up to `limit` running jobs back from dead and stopped workers, and return them.

    The worker's lease decides, never the age of the job. Only the jobs of a dead worker count as lost; those of a
    stopped one are drained, and so are those that ran beside a suspect, which is taken for the cause of the death.
    `random` spreads the delays of jobs that are retried later.
    """
    jobs, workers = tx.tables.jobs, tx.tables.workers
    gone = select(workers.c.id).where(workers.c.state.in_([word("dead"), word("stopped")]))
    stopped = exists().where(workers.c.id == jobs.c.worker_id, workers.c.state == word("stopped"))
    other = jobs.alias("other")
    same_worker = other.c.worker_id == jobs.c.worker_id, other.c.state == RUNNING
    suspect = other.c.crashes >= number(SUSPECT_CRASHES)
    beside = and_(jobs.c.crashes < number(SUSPECT_CRASHES), exists().where(*same_worker, suspect))
    query = (
        select(jobs, stopped.label("worker_stopped"), beside.label("beside_suspect"))
        .where(jobs.c.state == RUNNING, jobs.c.worker_id.in_(gone))
        .order_by(jobs.c.crashes, jobs.c.id)  # suspects last: those beside them are recognised by their rows
        .limit(limit)
    )
    rows = tx.execute(tx.dialect.skip_locked(query)).all()
    outcomes = [(row, _outcome(row)) for row in rows]
    taken = _take_back(tx, [(row, outcome, _decision(row, outcome, random.random())) for row, outcome in outcomes])
    _record_attempts(tx, taken)
    return [_rescued(row, decision) for row, _, decision in taken]


def _outcome(row: Row[Any]) -> Outcome:
    if row.worker_stopped:
        return DRAINED
    return BESIDE_SUSPECT if row.beside_suspect else LOST


def give_back(tx: Tx, claims: Sequence[tuple[UUID, str]]) -> list[Rescued]:
    """Return claimed jobs that never started to the queue, without counting the attempt.

    `claims` holds the id and the lease token of each job. Returns the jobs whose claim still held.
    """
    if not claims:
        return []
    jobs = tx.tables.jobs
    query = select(jobs).where(jobs.c.id.in_(padded([id for id, _ in claims])), jobs.c.state == RUNNING)
    held = set(claims)
    rows = [row for row in tx.execute(tx.dialect.lock_rows(query)) if (row.id, row.lease_token) in held]
    jitter = 0.0  # of no effect, because a returned job is queued without a delay
    taken = _take_back(tx, [(row, RETURNED, _decision(row, RETURNED, jitter)) for row in rows])
    return [_rescued(row, decision) for row, _, decision in taken]


def _decision(row: Row[Any], outcome: Outcome, jitter: float) -> Settlement:
    return decide(
        errors=row.errors,
        crashes=row.crashes,
        max_attempts=row.max_attempts,
        at_most_once=bool(row.at_most_once),
        outcome=outcome,
        retry=stored_retry(row.retry, Retry()),
        random=jitter,
        cancel_requested=row.cancel_requested_us is not None,
    )


def _take_back(tx: Tx, jobs: Sequence[Decided]) -> Sequence[Decided]:
    """Write the decisions on these locked rows, with what follows, and return them."""
    final = [item for item in jobs if item[2].final]
    again = [item for item in jobs if not item[2].final]
    if final:
        update_each(tx, _end, [_values(row, decision) | {"error": outcome.error} for row, outcome, decision in final])
    if again:
        update_each(tx, _requeue, [_values(row, decision) | {"delay": decision.delay} for row, _, decision in again])
    after_end(
        tx,
        [FinishedJob(id=row.id, previous=JobState.RUNNING, schedule_id=row.schedule_id) for row, _, _ in final],
    )
    return jobs


def _end(tx: Tx, value: Value) -> Update:
    """Build the statement for a job that is not run again."""
    values = final_values(tx, state=value("state"), reason=value("reason"), error=value("error"), **_taken(tx, value))
    return update(tx.tables.jobs).where(claim_holds(tx, value("lease_token"))).values(values)


def _requeue(tx: Tx, value: Value) -> Update:
    """Build the statement that queues a job again: at its old place, or after a delay."""
    delay = value("delay")
    run_at = case((delay.is_(None), tx.tables.jobs.c.run_at_us), else_=tx.clock + delay)
    values = {"state": value("state"), "reason": value("reason"), "run_at_us": run_at, **_taken(tx, value)}
    return update(tx.tables.jobs).where(claim_holds(tx, value("lease_token"))).values(values)


def _taken(tx: Tx, value: Value) -> dict[str, Any]:
    return {
        "errors": value("errors"),
        "crashes": value("crashes"),
        "lease_token": null(),
        "attempt": tx.tables.jobs.c.attempt - value("refund"),
    }


def _values(row: Row[Any], decision: Settlement) -> dict[str, Any]:
    return {
        "id": row.id,
        "lease_token": row.lease_token,
        "state": str(decision.state),
        "reason": decision.reason,
        "errors": decision.errors,
        "crashes": decision.crashes,
        "refund": int(decision.refund),
    }


def _record_attempts(tx: Tx, jobs: Sequence[Decided]) -> None:
    if not jobs:
        return
    now = tx.now()
    attempts = [
        {
            "job_id": row.id,
            "attempt": row.attempt,
            "worker_id": row.worker_id,
            "started_us": row.claimed_us,
            "finished_us": now,
            "outcome": str(outcome.ending),
            "error": outcome.error,
        }
        for row, outcome, _ in jobs
    ]
    tx.execute(tx.dialect.insert_ignore(tx.tables.attempts), attempts)


def _rescued(row: Row[Any], decision: Settlement) -> Rescued:
    return Rescued(
        id=row.id,
        task=row.task,
        attempt=row.attempt,
        tracking_id=row.tracking_id,
        queue=row.queue,
        schedule_id=row.schedule_id,
        from_worker=row.worker_id,
        state=str(decision.state),
        reason=decision.reason,
    )
