"""Decided instants as rows: their records and their jobs, one insert for each table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Row
from sqlalchemy.exc import IntegrityError

from onebeat.model.fired import arguments, stored_zone
from onebeat.model.ids import uuid7_each
from onebeat.model.job import JobState
from onebeat.model.policies import Decision
from onebeat.model.schedule import PlannedFire
from onebeat.store.jobs import control, insert
from onebeat.store.schedules.rows import options_from
from onebeat.store.tx import Tx

FIRED_COLUMNS = (
    "task",
    "args",
    "kwargs",
    "timezone",
)  # what `FireWriter` reads of a schedule's row, beside its options
_IDS_AT_ONCE = 64


class Fired(NamedTuple):
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
        self._jobs: list[tuple[Any, ...]] = []
        self._rows: list[tuple[Any, ...]] = []
        self._cancels: list[UUID] = []
        self._ids = _ids(report.now)  # later fires sort later

    def add(self, row: Row[Any], fires: Sequence[PlannedFire]) -> None:
        """Take the fires of one schedule, in order of time."""
        now, schedule_id = self._report.now, row.id
        for fire in fires:
            job_id = tracking_id = None
            queued, delayed_until = False, None
            if fire.decision is Decision.STARTED:
                job_id, tracking_id = next(self._ids), self._new_tracking_id()
                run_at = now if fire.run_at_us is None or fire.run_at_us < now else fire.run_at_us
                state = _state(fire, run_at, now)
                queued = state is JobState.QUEUED
                delayed_until = run_at if state is JobState.SCHEDULED else None
                self._jobs.append(_job(row, fire, job_id, tracking_id, state, run_at, now))
            self._rows.append(self._row(schedule_id, fire, job_id))
            self._cancels.extend(UUID(id) for id in fire.cancel)
            self._report.fired.append(
                Fired(
                    schedule_id,
                    fire.key,
                    fire.fire_us,
                    str(fire.decision),
                    fire.reason,
                    job_id,
                    queued,
                    delayed_until,
                    tracking_id,
                )
            )

    def write(self) -> None:
        """Insert everything; raises `FireRecorded` when an instant has a record already."""
        if self._rows:
            try:
                self._tx.insert(self._tx.tables.fires, _FIRE_COLUMNS, self._rows)
            except IntegrityError as error:
                raise FireRecorded from error
        self._tx.point("fire.written")
        if self._jobs:
            insert.add_rows(self._tx, _JOB_COLUMNS, self._jobs)
        if self._cancels:
            control.cancel(self._tx, self._cancels)

    def _row(self, schedule_id: str, fire: PlannedFire, job_id: UUID | None) -> tuple[Any, ...]:
        return (
            schedule_id,
            fire.key,
            fire.fire_us,
            str(fire.origin),
            str(fire.decision),
            fire.reason,
            fire.until_us,
            fire.count,
            job_id,
            self._worker_id,
            self._report.now,
        )


_FIRE_COLUMNS = (
    "schedule_id",
    "fire_key",
    "fire_us",
    "origin",
    "decision",
    "reason",
    "until_us",
    "instants",
    "job_id",
    "decided_by",
    "decided_us",
)
_JOB_COLUMNS = (
    "id",
    "task",
    "args",
    "queue",
    "rank",
    "state",
    "run_at_us",
    "waits_for",
    "max_attempts",
    "timeout_us",
    "at_most_once",
    "schedule_id",
    "fire_us",
    "fire_zone",
    "tracking_id",
    "created_us",
)


def _ids(now: int) -> Iterator[UUID]:
    while True:
        yield from (made := uuid7_each(now, _IDS_AT_ONCE))
        now += len(made)


def _state(fire: PlannedFire, run_at: int, now: int) -> JobState:
    if fire.waits_for:
        return JobState.WAITING
    return JobState.SCHEDULED if run_at > now else JobState.QUEUED


def _job(
    row: Row[Any], fire: PlannedFire, id: UUID, tracking_id: str, state: JobState, run_at: int, now: int
) -> tuple[Any, ...]:
    options = options_from(row.options)
    return (
        id,
        row.task,
        arguments(row.args, row.kwargs),
        options["queue"],
        -options["priority"],
        str(state),
        run_at,
        fire.waits_for,
        options["max_attempts"],
        options["timeout"],
        options["at_most_once"],
        row.id,
        fire.fire_us,
        stored_zone(row.timezone),
        tracking_id,
        now,
    )
