"""Ends of attempts: write what becomes of their jobs, where the worker's claim still holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, Update, and_, bindparam, case, delete, func, null, select, update
from sqlalchemy.dialects.postgresql import ARRAY

from onebeat.model.job import Claimed, Ending, JobState, Outcome, Settlement
from onebeat.store.dialects.base import Dialect
from onebeat.store.jobs.each import Value, update_each
from onebeat.store.jobs.finish import FinishedJob, after_end, final_values, releases_others, unless_cancelled
from onebeat.store.sql import RUNNING, padded, unindexed, use_index
from onebeat.store.tx import Tx

SNOOZES = 100  # of a job that stay in its history, at least; a job may be put off for years
CANCEL_IGNORED = "cancel ignored"  # the reason on a job that succeeded although its cancel was requested


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt that ended in this process, with the decision on its job."""

    job: Claimed
    outcome: Outcome
    settlement: Settlement

    @property
    def is_plain_success(self) -> bool:
        """Whether the job succeeded without a value and without a reason to store."""
        return self.settlement.state is JobState.SUCCEEDED and self.outcome.value is None and not self.settlement.reason

    @property
    def fits_one_statement(self) -> bool:
        """Whether the job's own row is all there is to write: no history of attempts, and no job to release."""
        return self.is_plain_success and self.job.attempt == 1 and not releases_others(self.job)


def claim_holds(tx: Tx, token: ColumnElement[str] | str) -> ColumnElement[bool]:
    """Return the condition that a job, found by its id, is still running under this lease token."""
    c = tx.tables.jobs.c
    return and_(unindexed(c.state) == RUNNING, c.lease_token == token)


def settle(tx: Tx, ended: Sequence[Ended], *, worker_id: str) -> dict[UUID, JobState]:
    """Write the ends of attempts whose claim still holds.

    Returns the state of each job that was written; the others lost their claim. A retry is cancelled instead where that
    was requested meanwhile. A job that an earlier call wrote under the same lease token is among them, because the
    answer of that call may have been lost. The state `running` says that another transaction holds a lock on the job's
    unique key: that end was not written, so that it holds up no other.
    """
    aside = _locked_keys(tx, ended)
    kept: dict[UUID, JobState] = dict.fromkeys(aside, JobState.RUNNING)
    ended = [item for item in ended if item.job.id not in aside]
    successes: dict[str, list[UUID]] = {}
    for item in ended:
        if item.is_plain_success:
            successes.setdefault(item.job.lease_token, []).append(item.job.id)
    for token, ids in successes.items():
        kept |= _succeed(tx, token, ids)
    if others := [item for item in ended if not item.is_plain_success]:
        kept |= _write(tx, others)
    settled = [item for item in ended if item.job.id in kept and not was_completed(item, kept[item.job.id])]
    record_attempts(tx, settled, worker_id)
    after_end(
        tx,
        [
            FinishedJob(id=item.job.id, previous=JobState.RUNNING, schedule_id=item.job.schedule_id)
            for item in settled
            if releases_others(item.job) and (item.settlement.final or kept[item.job.id] is JobState.CANCELLED)
        ],
    )
    return kept


def _locked_keys(tx: Tx, ended: Sequence[Ended]) -> set[UUID]:
    """Return the jobs that this call would have to wait for; lock the others that free a unique key.

    On MySQL and MariaDB a caller who met the taken key in a transaction keeps a lock on it until that ends.
    """
    if not tx.dialect.insert_locks_taken_keys:
        return set()
    slots = {item.job.id: item.job.unique_slot for item in ended if item.settlement.final and item.job.unique_slot}
    if not slots:
        return set()
    jobs = tx.tables.jobs
    query = select(jobs.c.id).where(jobs.c.unique_slot.in_(padded(sorted(slots.values()))))
    free = {row.id for row in tx.execute(tx.dialect.skip_locked(use_index(query, jobs, "unique")))}
    missing = sorted(slots.keys() - free)
    if not missing:
        return set()
    running = select(jobs.c.id).where(jobs.c.id.in_(padded(missing)), jobs.c.state == RUNNING)
    return {row.id for row in tx.execute(running)}


def was_completed(ended: Ended, state: JobState) -> bool:
    """Return whether the function had ended its job as succeeded before it ended in another way itself.

    `state` is the job's state after `settle`: nothing but `complete` makes it succeed under the claim of such a run.
    """
    return state is JobState.SUCCEEDED and ended.settlement.state is not JobState.SUCCEEDED


def one_statement(dialect: Dialect, ended: Sequence[Ended]) -> bool:
    """Return whether `succeed` can write these ends.

    Each fits one statement, and all were claimed under one lease token unless the dialect has arrays.
    """
    if dialect.insert_locks_taken_keys and any(item.job.unique_slot for item in ended):
        return False
    return all(item.fits_one_statement for item in ended) and (
        dialect.arrays or len({item.job.lease_token for item in ended}) == 1
    )


def succeed(tx: Tx, ended: Sequence[Ended]) -> dict[UUID, JobState]:
    """Do the same as `settle` in one statement, for ends of which `one_statement` is True.

    It calls no `after_end`, because `one_statement` is False for a job that may release others.
    """
    ids, tokens = [item.job.id for item in ended], [item.job.lease_token for item in ended]
    if not tx.dialect.arrays:
        return _succeed(tx, tokens[0], ids)
    result = tx.execute(tx.prepared(_success_of_pairs), {"b_ids": ids, "b_tokens": tokens})
    if result.rowcount == len(ids):
        return dict.fromkeys(ids, JobState.SUCCEEDED)
    return _written(tx, tokens, ids)


def _success_of_pairs(tx: Tx) -> Update:
    c = tx.tables.jobs.c
    claims = (
        func.unnest(bindparam("b_ids", type_=ARRAY(c.id.type)), bindparam("b_tokens", type_=ARRAY(c.lease_token.type)))
        .table_valued("id", "token", name="claims")
        .render_derived()
    )
    return _success_update(tx).where(c.id == claims.c.id, claim_holds(tx, claims.c.token))


def _succeed(tx: Tx, token: str, ids: list[UUID]) -> dict[UUID, JobState]:
    result = tx.execute(tx.prepared(_success_of_ids), {"b_ids": padded(ids), "b_token": token})
    if result.rowcount == len(ids):
        return dict.fromkeys(ids, JobState.SUCCEEDED)
    return _written(tx, [token], ids)


def _success_of_ids(tx: Tx) -> Update:
    return _success_update(tx).where(
        tx.dialect.among(tx.tables.jobs.c.id, "b_ids"), claim_holds(tx, bindparam("b_token"))
    )


def _success_update(tx: Tx) -> Update:
    table = tx.tables.jobs
    reason = case((table.c.cancel_requested_us.is_not(None), CANCEL_IGNORED), else_=null())
    return update(table).values(final_values(tx, state=JobState.SUCCEEDED, reason=reason, error=null()))


def _written(tx: Tx, tokens: Sequence[str], ids: Sequence[UUID]) -> dict[UUID, JobState]:
    """Return the jobs that left `running` under our tokens: in this call, or in one whose answer was lost."""
    values = {"b_ids": padded(ids), "b_tokens": padded(tokens)}
    return {row.id: JobState(row.state) for row in tx.execute(tx.prepared(_left_running), values)}


def _left_running(tx: Tx) -> Select[Any]:
    c = tx.tables.jobs.c
    return select(c.id, c.state).where(
        tx.dialect.among(c.id, "b_ids"),
        tx.dialect.among(c.lease_token, "b_tokens"),
        c.state != RUNNING,
    )


def _write(tx: Tx, ended: Sequence[Ended]) -> dict[UUID, JobState]:
    """Write ends with values of their own; return the states of the jobs that were written."""
    final = [item for item in ended if item.settlement.final]
    again = [item for item in ended if not item.settlement.final]
    if final:
        update_each(tx, _end, [_values(item) | {"value": item.outcome.value} for item in final])
    if again:
        update_each(tx, _requeue, [_values(item) | _pause(item.settlement) for item in again])
    return _written(tx, list({item.job.lease_token for item in ended}), [item.job.id for item in ended])


def _end(tx: Tx, value: Value) -> Update:
    """Build the statement for a final state with its reason, value and error."""
    table = tx.tables.jobs
    state = value("state")
    ignored = and_(table.c.cancel_requested_us.is_not(None), state == str(JobState.SUCCEEDED))
    return (
        update(table)
        .where(claim_holds(tx, value("lease_token")))
        .values(
            final_values(
                tx,
                state=state,
                reason=case((ignored, CANCEL_IGNORED), else_=value("reason")),
                value=value("value"),
                error=value("error"),
                errors=value("errors"),
                crashes=value("crashes"),
            )
        )
    )


def _requeue(tx: Tx, value: Value) -> Update:
    """Build the statement that queues a job again, now or later, or cancels it when that was requested meanwhile."""
    table = tx.tables.jobs
    return (
        update(table)
        .where(claim_holds(tx, value("lease_token")))
        .values(
            unless_cancelled(
                tx,
                state=value("state"),
                reason=value("reason"),
                run_at_us=tx.clock + value("delay"),
                attempt=table.c.attempt - value("refund"),
                error=value("error"),
                errors=value("errors"),
                crashes=value("crashes"),
            )
        )
    )


def _values(item: Ended) -> dict[str, Any]:
    return {
        "id": item.job.id,
        "lease_token": item.job.lease_token,
        "state": str(item.settlement.state),
        "reason": item.settlement.reason,
        "error": item.outcome.error,
        "errors": item.settlement.errors,
        "crashes": item.settlement.crashes,
    }


def _pause(settlement: Settlement) -> dict[str, Any]:
    return {"delay": settlement.delay or 0, "refund": int(settlement.refund)}


def record_attempts(tx: Tx, ended: Sequence[Ended], worker_id: str) -> None:
    """Store the history of attempts; a job that succeeds at its first attempt keeps its facts on its own row."""
    recorded = [
        item
        for item in ended
        if not item.settlement.refund and (item.outcome.ending is not Ending.SUCCEEDED or item.job.attempt > 1)
    ]
    if not recorded:
        return
    now = tx.now()
    rows = [
        {
            "job_id": item.job.id,
            "attempt": item.job.attempt,
            "worker_id": worker_id,
            "started_us": item.job.claimed_us,
            "finished_us": now,
            "outcome": str(item.outcome.ending),
            "error": item.outcome.error,
            "traceback": item.outcome.traceback,
        }
        for item in recorded
    ]
    tx.execute(tx.dialect.insert_ignore(tx.tables.attempts), rows)
    _forget_snoozes(tx, [item.job for item in recorded if item.outcome.ending is Ending.SNOOZED])


def _forget_snoozes(tx: Tx, snoozed: Sequence[Claimed]) -> None:
    """Delete the older half of a job's snoozes from its history, at each hundredth attempt."""
    c = tx.tables.attempts.c
    for job in snoozed:
        if job.attempt % SNOOZES == 0:
            old = c.job_id == job.id, c.attempt <= job.attempt - SNOOZES, c.outcome == str(Ending.SNOOZED)
            tx.execute(delete(tx.tables.attempts).where(*old))
