"""Jobs taken back: from workers that died or stopped under them, and claims that never started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import random
from typing import Any
from uuid import UUID

from sqlalchemy import Row, and_, null, or_, select, update

from onebeat.model.job import FINAL, Ending, Outcome, Settlement, settle as decide, stored_retry
from onebeat.store.jobs.settle import mine, release
from onebeat.store.sql import RUNNING, word
from onebeat.store.tx import Tx
from onebeat.timing.backoff import Retry

RESCUED_AT_ONCE = 200  # one batch stays a short transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescued:
    """A job taken back from a worker that died or stopped under it."""

    id: UUID
    task: str
    attempt: int
    tracking_id: str
    queue: str
    schedule_id: str | None
    from_worker: str
    state: str
    reason: str | None


def rescue(tx: Tx, limit: int = RESCUED_AT_ONCE) -> list[Rescued]:
    """Give the running jobs of dead workers back: by the lease, never by age, and only under the token seen."""
    jobs, workers = tx.tables.jobs, tx.tables.workers
    gone = select(workers.c.id).where(workers.c.state.in_([word("dead"), word("stopped")]))
    query = select(jobs).where(jobs.c.state == RUNNING, jobs.c.worker_id.in_(gone)).order_by(jobs.c.id).limit(limit)
    return _take_back(tx, tx.execute(tx.dialect.skip_locked(query)).all(), Ending.LOST)


def give_back(tx: Tx, claims: Sequence[tuple[UUID, str]]) -> list[Rescued]:
    """Return claimed jobs that never started: id and token of each; their attempt is not counted."""
    if not claims:
        return []
    jobs = tx.tables.jobs
    held = or_(*(and_(jobs.c.id == id, mine(tx, token)) for id, token in claims))
    return _take_back(tx, tx.execute(tx.dialect.lock_rows(select(jobs).where(held))).all(), Ending.RETURNED)


def _take_back(tx: Tx, rows: Sequence[Row[Any]], ending: Ending) -> list[Rescued]:
    taken: list[Rescued] = []
    over: set[str] = set()
    for row in rows:
        outcome = Outcome(ending=ending, error="its worker died" if ending is Ending.LOST else None)
        decision = decide(
            errors=row.errors,
            crashes=row.crashes,
            max_attempts=row.max_attempts,
            at_most_once=bool(row.at_most_once),
            outcome=outcome,
            retry=stored_retry(row.retry, Retry()),
            random=random(),  # noqa: S311 - jitter, not a secret
            cancel_requested=row.cancel_requested_us is not None,
        )
        if _apply(tx, row, decision, outcome.error) and ending is Ending.LOST:
            _remember_loss(tx, row)
        if decision.state in FINAL and row.schedule_id:
            over.add(row.schedule_id)
        taken.append(
            Rescued(
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
        )
    release(tx, over)
    return taken


def _apply(tx: Tx, row: Row[Any], decision: Settlement, error: str | None) -> bool:
    table = tx.tables.jobs
    final = decision.state in FINAL
    values: dict[str, Any] = {
        "state": str(decision.state),
        "reason": decision.reason,
        "errors": decision.errors,
        "crashes": decision.crashes,
        "lease_token": null(),
        "attempt": row.attempt - int(decision.refund),
    }
    if final:
        values |= {"finished_us": tx.clock, "unique_slot": null(), "error": error}
    elif decision.delay:
        values["run_at_us"] = tx.clock + decision.delay
    result = tx.execute(update(table).where(table.c.id == row.id, mine(tx, row.lease_token)).values(**values))
    return bool(result.rowcount)


def _remember_loss(tx: Tx, row: Row[Any]) -> None:
    tx.execute(
        tx.dialect.insert_ignore(tx.tables.attempts).values(
            job_id=row.id,
            attempt=row.attempt,
            worker_id=row.worker_id,
            started_us=row.claimed_us,
            finished_us=tx.now(),
            outcome=str(Ending.LOST),
            error="its worker died",
        )
    )
