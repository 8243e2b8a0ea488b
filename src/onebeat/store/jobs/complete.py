"""The end of a job in a transaction of the caller, written with the effects of its function."""

from __future__ import annotations

from sqlalchemy import case, null, update

from onebeat.model.job import Claimed, Ending, JobState, Outcome, Settlement
from onebeat.store.jobs.finish import FinishedJob, after_end, final_values
from onebeat.store.jobs.settle import CANCEL_IGNORED, Ended, claim_holds, record_attempts
from onebeat.store.tx import Tx


def complete(tx: Tx, job: Claimed, value: str | None, *, worker_id: str) -> bool:
    """End the job as succeeded with this value where its claim holds, and return whether it did.

    The row stays locked until the transaction ends, so nobody can take the job back before the commit.
    """
    table = tx.tables.jobs
    reason = case((table.c.cancel_requested_us.is_not(None), CANCEL_IGNORED), else_=null())
    values = final_values(tx, state=JobState.SUCCEEDED, reason=reason, value=value, error=null())
    ended = update(table).where(table.c.id == job.id, claim_holds(tx, job.lease_token)).values(values)
    if tx.execute(ended).rowcount != 1:
        return False
    outcome = Outcome(ending=Ending.SUCCEEDED, value=value)
    settlement = Settlement(state=JobState.SUCCEEDED, errors=job.errors, crashes=job.crashes)
    record_attempts(tx, [Ended(job, outcome, settlement)], worker_id)
    after_end(tx, [FinishedJob(id=job.id, previous=JobState.RUNNING, schedule_id=job.schedule_id)])
    return True
