"""Final states: the column values that every end of a job writes, and what follows in the same transaction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, case, null

from onebeat.model.job import Claimed, JobState
from onebeat.store.jobs.release import release
from onebeat.store.tx import Tx


def final_values(
    tx: Tx, *, state: JobState | ColumnElement[str], reason: str | ColumnElement[Any] | None, **others: Any
) -> dict[str, Any]:
    """Return the values of an UPDATE that moves jobs to a final state; `others` are further columns to set.

    Every statement that ends a job takes its values from here, and its transaction calls `after_end` afterwards.
    """
    return {
        "state": str(state) if isinstance(state, JobState) else state,
        "reason": reason,
        "waits_for": null(),
        "unique_slot": _slot_after_end(tx),
        "finished_us": tx.clock,
        **others,
    }


def _slot_after_end(tx: Tx) -> ColumnElement[Any]:
    """NULL, so that the next job with the same key may be stored, unless `unique_for` keeps the key longer."""
    c = tx.tables.jobs.c
    return case((c.unique_until_us > tx.clock, c.unique_slot), else_=null())


def unless_cancelled(tx: Tx, **values: ColumnElement[Any]) -> dict[str, Any]:
    """Return the values of an UPDATE that writes `values`, and ends the job as cancelled if a cancel was requested.

    The row decides, because a cancel may be requested until the statement runs.
    """
    c = tx.tables.jobs.c
    requested = c.cancel_requested_us.is_not(None)
    final = final_values(tx, state=JobState.CANCELLED, reason="requested")
    return values | {name: case((requested, final[name]), else_=values.get(name, c[name])) for name in final}


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedJob:
    """A job that this transaction has moved to a final state, with what decides which other jobs it releases."""

    id: UUID
    previous: JobState  # a waiting job held nothing that others wait for
    schedule_id: str | None


def releases_others(job: Claimed) -> bool:
    """Return whether `after_end` may have work to do for this job.

    Where it is False for each job of a batch, the batch may be ended by a single statement without `after_end`.
    """
    return job.schedule_id is not None


def after_end(tx: Tx, jobs: Iterable[FinishedJob]) -> None:
    """Do what follows the end of jobs: release the jobs that waited for them.

    Call it in the transaction that wrote the final states, after they are written. Doing it again is harmless.
    """
    release(tx, [job.id for job in jobs if job.schedule_id and job.previous is not JobState.WAITING])
