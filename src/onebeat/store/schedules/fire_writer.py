"""Decided instants as rows: their records and their jobs, one insert for each table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Row
from sqlalchemy.exc import IntegrityError

from onebeat.model.fired import arguments, stored_zone
from onebeat.model.ids import uuid7
from onebeat.model.job import JobState, NewJob
from onebeat.model.policies import Decision
from onebeat.model.schedule import PlannedFire
from onebeat.store.jobs import control, insert
from onebeat.store.schedules.rows import options_from
from onebeat.store.tx import Tx


@dataclass(frozen=True, slots=True, kw_only=True)
class Fired:
    """One decided instant, as it was written."""

    schedule_id: str
    key: str
    fire_us: int
    decision: str
    reason: str | None
    job_id: UUID | None
    queued: bool
    delayed_until: int | None  # when its job may run, if that is later than now
    tracking_id: str | None


@dataclass(slots=True, kw_only=True)
class FireReport:
    """What one transaction of the dispatcher did. `now` and `next_fire` are on the database's clock."""

    now: int = 0
    next_fire: int | None = None
    decided: int = 0  # schedules whose due instants were decided here
    fired: list[Fired] = field(default_factory=list)
    conflicts: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # due, but their rows make no sense to this code


class FireRecorded(Exception):
    """A due instant has a record though its schedule had not moved; run `fire_due` again with `careful=True`."""


class FireWriter:
    """Gathers planned fires and writes them with their jobs: one insert for each table."""

    def __init__(self, tx: Tx, report: FireReport, *, worker_id: str, new_tracking_id: Callable[[], str]) -> None:
        self._tx = tx
        self._report = report
        self._worker_id = worker_id
        self._new_tracking_id = new_tracking_id
        self._jobs: list[NewJob] = []
        self._rows: list[dict[str, Any]] = []
        self._cancels: list[UUID] = []

    def add(self, row: Row[Any], fires: Sequence[PlannedFire]) -> None:
        """Take the fires of one schedule, in order of time."""
        for fire in fires:
            job = self._job(row, fire) if fire.decision is Decision.STARTED else None
            if job is not None:
                self._jobs.append(job)
            self._rows.append(self._row(row.id, fire, job))
            self._cancels.extend(UUID(id) for id in fire.cancel)
            self._report.fired.append(
                Fired(
                    schedule_id=row.id,
                    key=fire.key,
                    fire_us=fire.fire_us,
                    decision=str(fire.decision),
                    reason=fire.reason,
                    job_id=None if job is None else job.id,
                    queued=job is not None and job.state is JobState.QUEUED,
                    delayed_until=job.run_at if job is not None and job.state is JobState.SCHEDULED else None,
                    tracking_id=None if job is None else job.tracking_id,
                )
            )

    def write(self) -> None:
        """Insert everything; raises `FireRecorded` when an instant has a record already."""
        if self._rows:
            try:
                self._tx.execute(self._tx.tables.fires.insert(), self._rows)
            except IntegrityError as error:
                raise FireRecorded from error
        self._tx.point("fire.written")
        insert.add(self._tx, self._jobs)
        if self._cancels:
            control.cancel(self._tx, self._cancels)

    def _job(self, row: Row[Any], fire: PlannedFire) -> NewJob:
        now = self._report.now
        options = options_from(row.options)
        run_at = now if fire.run_at_us is None else max(now, fire.run_at_us)
        resting = JobState.SCHEDULED if run_at > now else JobState.QUEUED
        return NewJob(
            id=uuid7(now + len(self._jobs)),  # later fires sort later
            task=row.task,
            args=arguments(row.args, row.kwargs),
            state=JobState.WAITING if fire.waits_for else resting,
            queue=options["queue"],
            priority=options["priority"],
            run_at=run_at,
            waits_for=fire.waits_for,
            max_attempts=options["max_attempts"],
            timeout=options["timeout"],
            at_most_once=options["at_most_once"],
            schedule_id=row.id,
            fire_us=fire.fire_us,
            fire_zone=stored_zone(row.timezone),
            tracking_id=self._new_tracking_id(),
        )

    def _row(self, schedule_id: str, fire: PlannedFire, job: NewJob | None) -> dict[str, Any]:
        return {
            "schedule_id": schedule_id,
            "fire_key": fire.key,
            "fire_us": fire.fire_us,
            "origin": str(fire.origin),
            "decision": str(fire.decision),
            "reason": fire.reason,
            "until_us": fire.until_us,
            "instants": fire.count,
            "job_id": None if job is None else job.id,
            "decided_by": self._worker_id,
            "decided_us": self._report.now,
        }
