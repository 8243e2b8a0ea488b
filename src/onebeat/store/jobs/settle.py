"""Jobs from their end: settle, and the release of those that waited."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, Update, and_, bindparam, case, func, null, select, update
from sqlalchemy.dialects.postgresql import ARRAY

from onebeat.model.job import FINAL, Claimed, Ending, JobState, Outcome, Settlement
from onebeat.model.schedule import waits_for
from onebeat.store.dialects.base import Dialect
from onebeat.store.sql import QUEUED, RUNNING, SCHEDULED, WAITING, padded
from onebeat.store.tx import Tx


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt that ended here and what should become of its job."""

    job: Claimed
    outcome: Outcome
    settlement: Settlement

    @property
    def plain(self) -> bool:
        """A success without anything to write but that."""
        return self.settlement.state is JobState.SUCCEEDED and self.outcome.value is None and not self.settlement.reason

    @property
    def bare(self) -> bool:
        """A plain success that nothing follows: no history, as it is the first attempt, and no schedule's next job."""
        return self.plain and self.job.attempt == 1 and self.job.schedule_id is None


def mine(tx: Tx, token: ColumnElement[str] | str) -> ColumnElement[bool]:
    """The claim still holds: nobody took the job since it was claimed under this token."""
    c = tx.tables.jobs.c
    return and_(c.state == RUNNING, c.lease_token == token)


def settle(tx: Tx, ended: Sequence[Ended], *, worker_id: str) -> set[UUID]:
    """Write the ends of attempts whose claim still holds; the ids that were written, the others are lost to us."""
    kept: set[UUID] = set()
    plain: dict[str, list[UUID]] = {}
    for item in ended:
        if item.plain:
            plain.setdefault(item.job.lease_token, []).append(item.job.id)
    for token, ids in plain.items():
        kept |= _succeed(tx, token, ids)
    worded = [item for item in ended if not item.plain]
    over = {item.job.id for item in ended if item.settlement.final}
    if worded:
        written, cancelled = _write(tx, worded)
        kept |= written
        over |= cancelled  # somebody asked for that before the next attempt could be queued
    _remember(tx, [item for item in ended if item.job.id in kept], worker_id)
    release(tx, {e.job.schedule_id for e in ended if e.job.schedule_id and e.job.id in kept & over})
    return kept


def one_statement(dialect: Dialect, ended: Sequence[Ended]) -> bool:
    """Whether `succeed` can write these ends: all bare, and claimed together unless the dialect has arrays."""
    return all(item.bare for item in ended) and (dialect.arrays or len({item.job.lease_token for item in ended}) == 1)


def succeed(tx: Tx, ended: Sequence[Ended]) -> set[UUID]:
    """As `settle`, in one statement, for ends of which `one_statement` is true."""
    ids, tokens = [item.job.id for item in ended], [item.job.lease_token for item in ended]
    if not tx.dialect.arrays:
        return _succeed(tx, tokens[0], ids)
    result = tx.execute(tx.prepared(_success_of_pairs), {"b_ids": ids, "b_tokens": tokens})
    if result.rowcount == len(ids):
        return set(ids)
    return _ours(tx, tokens, ids)


def _success_of_pairs(tx: Tx) -> Update:
    c = tx.tables.jobs.c
    claims = (
        func.unnest(bindparam("b_ids", type_=ARRAY(c.id.type)), bindparam("b_tokens", type_=ARRAY(c.lease_token.type)))
        .table_valued("id", "token", name="claims")
        .render_derived()
    )
    return _succeeded(tx).where(c.id == claims.c.id, mine(tx, claims.c.token))


def _succeed(tx: Tx, token: str, ids: list[UUID]) -> set[UUID]:
    result = tx.execute(tx.prepared(_success), {"b_ids": padded(ids), "b_token": token})
    if result.rowcount == len(ids):
        return set(ids)
    return _ours(tx, [token], ids)


def _success(tx: Tx) -> Update:
    return _succeeded(tx).where(tx.dialect.among(tx.tables.jobs.c.id, "b_ids"), mine(tx, bindparam("b_token")))


def _succeeded(tx: Tx) -> Update:
    table = tx.tables.jobs
    return update(table).values(
        state=str(JobState.SUCCEEDED),
        reason=case((table.c.cancel_requested_us.is_not(None), "cancel ignored"), else_=null()),
        unique_slot=null(),
        finished_us=tx.clock,
    )


def _ours(tx: Tx, tokens: Sequence[str], ids: Sequence[UUID]) -> set[UUID]:
    """Which of the jobs left `running` under our token: what we have just written, or wrote before a lost answer."""
    values = {"b_ids": padded(ids), "b_tokens": padded(tokens)}
    return {row.id for row in tx.execute(tx.prepared(_left_running), values)}


def _left_running(tx: Tx) -> Select[Any]:
    c = tx.tables.jobs.c
    return select(c.id, c.state).where(
        tx.dialect.among(c.id, "b_ids"),
        tx.dialect.among(c.lease_token, "b_tokens"),
        c.state != RUNNING,
    )


def _write(tx: Tx, ended: Sequence[Ended]) -> tuple[set[UUID], set[UUID]]:
    """The ids that were written, and those of them that are cancelled now."""
    final = [item for item in ended if item.settlement.state in FINAL]
    again = [item for item in ended if item.settlement.state not in FINAL]
    if final:
        tx.execute(tx.prepared(_end), [_words(item) | {"b_value": item.outcome.value} for item in final])
    if again:
        tx.execute(tx.prepared(_requeue), [_words(item) | _wait(item.settlement) for item in again])
    values = {
        "b_ids": padded([item.job.id for item in ended]),
        "b_tokens": padded(list({item.job.lease_token for item in ended})),
    }
    rows = tx.execute(tx.prepared(_left_running), values).all()
    return {row.id for row in rows}, {row.id for row in rows if row.state == JobState.CANCELLED}


def _claim_holds(tx: Tx) -> ColumnElement[bool]:
    return and_(tx.tables.jobs.c.id == bindparam("b_id"), mine(tx, bindparam("b_token")))


def _end(tx: Tx) -> Update:
    """Final states, with what is to be remembered."""
    table = tx.tables.jobs
    ignored = and_(
        table.c.cancel_requested_us.is_not(None),
        bindparam("b_state", type_=table.c.state.type) == str(JobState.SUCCEEDED),
    )
    return (
        update(table)
        .where(_claim_holds(tx))
        .values(
            state=bindparam("b_state"),
            reason=case((ignored, "cancel ignored"), else_=bindparam("b_reason", type_=table.c.reason.type)),
            value=bindparam("b_value"),
            error=bindparam("b_error"),
            errors=bindparam("b_errors"),
            crashes=bindparam("b_crashes"),
            unique_slot=null(),
            finished_us=tx.clock,
        )
    )


def _requeue(tx: Tx) -> Update:
    """Back to the queue, now or later; cancelled instead when somebody asked for that in the meantime."""
    table = tx.tables.jobs
    asked_to_end = table.c.cancel_requested_us.is_not(None)
    return (
        update(table)
        .where(_claim_holds(tx))
        .values(
            state=case((asked_to_end, str(JobState.CANCELLED)), else_=bindparam("b_state", type_=table.c.state.type)),
            reason=case((asked_to_end, "requested"), else_=bindparam("b_reason", type_=table.c.reason.type)),
            finished_us=case((asked_to_end, tx.clock), else_=null()),
            run_at_us=tx.clock + bindparam("b_delay", type_=table.c.run_at_us.type),
            attempt=table.c.attempt - bindparam("b_refund", type_=table.c.attempt.type),
            error=bindparam("b_error"),
            errors=bindparam("b_errors"),
            crashes=bindparam("b_crashes"),
        )
    )


def _words(item: Ended) -> dict[str, Any]:
    return {
        "b_id": item.job.id,
        "b_token": item.job.lease_token,
        "b_state": str(item.settlement.state),
        "b_reason": item.settlement.reason,
        "b_error": item.outcome.error,
        "b_errors": item.settlement.errors,
        "b_crashes": item.settlement.crashes,
    }


def _wait(settlement: Settlement) -> dict[str, Any]:
    return {"b_delay": settlement.delay or 0, "b_refund": int(settlement.refund)}


def _remember(tx: Tx, ended: Sequence[Ended], worker_id: str) -> None:
    """History of attempts; a job that succeeds at the first keeps its facts on its own row."""
    told = [
        item
        for item in ended
        if not item.settlement.refund and (item.outcome.ending is not Ending.SUCCEEDED or item.job.attempt > 1)
    ]
    if not told:
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
        for item in told
    ]
    tx.execute(tx.dialect.insert_ignore(tx.tables.attempts), rows)


# ── those that waited ─────────────────────────────────────────────────────────────────────────────────────────────────
def release(tx: Tx, schedule_ids: Collection[str]) -> int:
    """Let the oldest waiting job of each schedule go, where no other job of it is on its way; how many went.

    Called in the transaction that ends a job of the schedule.
    """
    if not schedule_ids:
        return 0
    c = tx.tables.jobs.c
    keys = [waits_for(id) for id in sorted(schedule_ids)]
    query = select(c.id, c.schedule_id).where(c.state == WAITING, c.waits_for.in_(padded(keys))).order_by(c.id.desc())
    oldest = {row.schedule_id: row.id for row in tx.execute(query)}
    if not oldest:
        return 0
    on_its_way = c.state.in_([SCHEDULED, QUEUED, RUNNING])
    busy = select(c.schedule_id).where(c.schedule_id.in_(padded(sorted(oldest))), on_its_way).distinct()
    for row in tx.execute(busy).all():
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
    """The sweeper's repeat of `release`, for every schedule that has a waiting job."""
    c = tx.tables.jobs.c
    held = select(c.schedule_id).where(c.state == WAITING, c.schedule_id.is_not(None)).distinct().limit(1000)
    return release(tx, {row.schedule_id for row in tx.execute(held)})
