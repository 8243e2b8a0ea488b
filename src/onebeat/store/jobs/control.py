"""Changes to jobs by request: cancel, retry, progress, delete, prune."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import delete, null, select, update
from sqlalchemy.exc import IntegrityError

from onebeat.errors import JobExists
from onebeat.model.job import FINAL, JobState
from onebeat.model.unique_key import slot_of_text
from onebeat.store.jobs import find
from onebeat.store.jobs.finish import FinishedJob, after_end, final_values
from onebeat.store.jobs.settle import claim_holds
from onebeat.store.sql import RUNNING, padded, word
from onebeat.store.tx import Tx

DELETED_AT_ONCE = 1000  # by primary key, so that no range is locked and no transaction grows long


def cancel(tx: Tx, ids: Sequence[UUID]) -> None:
    """Cancel jobs: those that have not started end at once, running ones are asked to end, ended ones stay."""
    table = tx.tables.jobs
    query = select(table.c.id, table.c.state, table.c.schedule_id).where(table.c.id.in_(padded(ids)))
    rows = tx.execute(tx.dialect.lock_rows(query)).all()
    unstarted = [row for row in rows if row.state not in (*FINAL, JobState.RUNNING)]
    running = [row.id for row in rows if row.state == JobState.RUNNING]
    if unstarted:
        tx.execute(
            update(table)
            .where(table.c.id.in_(padded([row.id for row in unstarted])))
            .values(final_values(tx, state=JobState.CANCELLED, reason="requested", cancel_requested_us=tx.clock))
        )
        finished = [
            FinishedJob(id=row.id, previous=JobState(row.state), schedule_id=row.schedule_id) for row in unstarted
        ]
        after_end(tx, finished)
    if running:
        tx.execute(
            update(table)
            .where(table.c.id.in_(padded(running)), table.c.state == RUNNING, table.c.cancel_requested_us.is_(None))
            .values(cancel_requested_us=tx.clock)
        )


def retry(tx: Tx, id: UUID) -> int | None:
    """Queue an ended job again with no errors and no crashes counted; `attempt` continues.

    Returns when the job had ended, in UTC microseconds; None when it has not ended. A job that an earlier try of this
    call queued may have ended again meanwhile, and is not queued a second time. Raises `JobExists` when another job
    holds its unique key.
    """
    table = tx.tables.jobs
    c = table.c
    query = select(c.state, c.finished_us, c.task, c.unique_text).where(c.id == id)
    row = tx.execute(tx.dialect.lock_rows(query)).first()
    if row is None or row.state not in FINAL or (tx.unanswered and row.finished_us not in tx.unanswered):
        return next(iter(tx.unanswered), None)
    slot = None if row.unique_text is None else slot_of_text(row.task, row.unique_text)
    if slot is not None and tx.execute(select(c.id).where(c.unique_slot == slot, c.id != id)).first() is not None:
        raise _key_is_taken(id)
    again = (
        update(table)
        .where(table.c.id == id)
        .values(
            state=str(JobState.QUEUED),
            unique_slot=slot,
            reason=null(),
            errors=0,
            crashes=0,
            error=null(),
            value=null(),
            finished_us=null(),
            cancel_requested_us=null(),
            lease_token=null(),
            run_at_us=tx.clock,
        )
    )
    try:
        tx.execute(again)
    except IntegrityError as error:  # it was taken since the look
        raise _key_is_taken(id) from error
    ended: int = row.finished_us
    return ended


def _key_is_taken(id: UUID) -> JobExists:
    return JobExists(f"job {id} cannot be retried: another job holds its unique key; wait for that one or cancel it")


def progress(tx: Tx, id: UUID, token: str, text: str) -> bool:
    """Store the progress of a running job, and return whether the claim still holds."""
    table = tx.tables.jobs
    result = tx.execute(update(table).where(table.c.id == id, claim_holds(tx, token)).values(progress=text))
    return bool(result.rowcount)


def note_overrun(tx: Tx, id: UUID, token: str, reason: str = "timeout") -> bool:
    """Record why a run was told to end that goes on, and return whether the claim still holds."""
    table = tx.tables.jobs
    result = tx.execute(update(table).where(table.c.id == id, claim_holds(tx, token)).values(reason=reason))
    return bool(result.rowcount)


def owned(tx: Tx, id: UUID, token: str) -> bool:
    """Return whether the claim still holds."""
    table = tx.tables.jobs
    return tx.execute(select(table.c.id).where(table.c.id == id, claim_holds(tx, token))).first() is not None


def remove(tx: Tx, ids: Sequence[UUID]) -> int:
    """Delete ended jobs with their attempts and tags, and return how many; unfinished jobs stay."""
    if not ids:
        return 0
    table = tx.tables.jobs
    ended = table.c.state.in_([word(state) for state in FINAL])
    query = tx.dialect.skip_locked(select(table.c.id).where(table.c.id.in_(padded(ids)), ended))
    found = [row.id for row in tx.execute(query)]
    if found:
        keys = padded(found)
        tx.execute(delete(tx.tables.attempts).where(tx.tables.attempts.c.job_id.in_(keys)))
        tx.execute(delete(tx.tables.job_tags).where(tx.tables.job_tags.c.job_id.in_(keys)))
        tx.execute(delete(table).where(table.c.id.in_(keys), ended))
    return len(found)


def delete_ended(tx: Tx, id: UUID) -> bool:
    """Delete an ended job; return whether this call deleted it, also by an earlier try that got no answer."""
    if remove(tx, [id]):
        return True
    table = tx.tables.jobs
    return True in tx.unanswered and tx.execute(select(table.c.id).where(table.c.id == id)).first() is None


def prune(tx: Tx, *, succeeded: int | None, failed: int | None, limit: int = DELETED_AT_ONCE) -> int:
    """Delete up to `limit` old jobs, and return how many.

    Jobs that succeeded or were cancelled go when they are older than `succeeded`, failed ones when older than `failed`.
    Both are ages in microseconds on the database's clock; None keeps the jobs.
    """
    now = tx.now()
    ids: list[UUID] = []
    for state, age in ((JobState.SUCCEEDED, succeeded), (JobState.CANCELLED, succeeded), (JobState.FAILED, failed)):
        if age is not None and len(ids) < limit:
            ids.extend(find.ended_before(tx, state, now - age, limit - len(ids)))
    return remove(tx, ids)
