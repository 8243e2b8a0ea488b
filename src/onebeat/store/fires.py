"""Schedules in motion: what is due, and the exactly-once transaction that fires it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, Select, Update, and_, bindparam, func, or_, select, update
from sqlalchemy.exc import IntegrityError

from onebeat.errors import ConfigurationError, OnebeatError, ScheduleNotFound
from onebeat.model import payload
from onebeat.model.fired import packed
from onebeat.model.ids import token, uuid7
from onebeat.model.info import Fire
from onebeat.model.job import JobState, NewJob
from onebeat.model.policies import Decision, Overlap, Policies, ScheduleState
from onebeat.model.schedule import FirePlan, PlannedFire, Schedule, Unfinished, plan
from onebeat.store import job_edits, jobs
from onebeat.store.database import Tx
from onebeat.store.words import QUEUED, RUNNING, SCHEDULED, WAITING, padded, word
from onebeat.timing import triggers
from onebeat.timing.clock import from_us
from onebeat.timing.rule import Rule

ACTIVE = word("active")
JOB_OPTIONS = {"queue", "priority", "max_attempts", "timeout", "at_most_once"}  # what a fire's job is made with


# ── what is due ───────────────────────────────────────────────────────────────────────────────────────────────────────
def fireable(tx: Tx) -> ColumnElement[bool]:
    """Active, added at run time or declared by the very code this worker runs (`b_hashes`), and readable to it."""
    c = tx.tables.schedules.c
    ours = or_(c.definition_hash.is_(None), c.definition_hash.in_(bindparam("b_hashes", expanding=True)))
    return and_(c.state == ACTIVE, ours, c.id.not_in(bindparam("b_unreadable", expanding=True)))


def _ours(hashes: Collection[str], unreadable: Collection[str]) -> dict[str, Any]:
    return {"b_hashes": padded(sorted(hashes) or [""]), "b_unreadable": padded(sorted(unreadable) or [""])}


def next_due(tx: Tx, hashes: Collection[str], unreadable: Collection[str] = ()) -> int | None:
    """The earliest next fire of what this worker may fire."""
    value: int | None = tx.execute(tx.prepared(_next_due), _ours(hashes, unreadable)).scalar()
    return value


def _next_due(tx: Tx) -> Select[Any]:
    return select(func.min(tx.tables.schedules.c.next_fire_us)).where(fireable(tx))


def due(tx: Tx, hashes: Collection[str], limit: int, unreadable: Collection[str] = ()) -> Sequence[Row[Any]]:
    """Up to `limit` due schedules, locked; those another worker is firing are skipped. The transaction's first read."""
    return tx.execute(tx.prepared(_due), _ours(hashes, unreadable) | {"b_limit": limit}).all()


def _due(tx: Tx) -> Select[Any]:
    table = tx.tables.schedules
    query = (
        select(table, tx.clock.label("now"))
        .where(fireable(tx), table.c.next_fire_us <= tx.clock)
        .order_by(table.c.next_fire_us, table.c.id)
        .limit(bindparam("b_limit"))
    )
    return tx.dialect.skip_locked(query)


# ── fire ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
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
    delayed: bool
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


def fire_due(
    tx: Tx,
    *,
    worker_id: str,
    hashes: Collection[str],
    new_tracking_id: Callable[[], str],
    limit: int,
    careful: bool = False,
    unreadable: Collection[str] = (),
) -> FireReport:
    """Decide every due instant of up to `limit` schedules: fire rows, job rows and the moved watermark in one commit.

    Whoever moves `next_fire_us` owns the fire; the unique row proves it. Two workers never decide the same instant.
    Raises `FireRecorded` when the proof says that an instant was decided before; `careful` leaves such instants out.
    A row that this code cannot read is reported and costs the others nothing; name it in `unreadable` the next time.
    """
    report = FireReport()
    rows = due(tx, hashes, limit, unreadable)
    tx.point("fire.due")
    if rows:
        report.now = int(rows[0].now)
        plans = _plans(tx, rows, report)
        moved, report.next_fire = _move(tx, plans, _ours(hashes, unreadable)) if plans else (set(), None)
        writer = FireWriter(tx, report, worker_id=worker_id, new_tracking_id=new_tracking_id)
        for row, decision in plans:
            if row.id in moved:
                if decision.warning is not None:
                    report.warnings.append((row.id, decision.warning))
                fires = _without_conflicts(tx, row.id, decision.fires, report) if careful else decision.fires
                writer.add(row, fires)
        report.decided = len(moved)
        writer.write()
    else:
        report.now = tx.now()
    if not report.decided:
        report.next_fire = next_due(tx, hashes, unreadable)
    return report


def _plans(tx: Tx, rows: Sequence[Row[Any]], report: FireReport) -> list[tuple[Row[Any], FirePlan]]:
    """What is due, decided; a row of a newer version, or a damaged one, stays due for a worker that can read it."""
    read: list[tuple[Row[Any], Schedule]] = []
    plans: list[tuple[Row[Any], FirePlan]] = []
    for row in rows:
        try:
            read.append((row, as_schedule(row)))
        except Exception as error:  # noqa: BLE001 - whatever such a row holds, the others must fire
            report.unreadable.append((row.id, f"{type(error).__name__}: {error}"))
    held = unfinished(tx, [row.id for row, schedule in read if schedule.policies.overlap is not Overlap.ALLOW])
    for row, schedule in read:
        try:
            plans.append((row, plan(schedule, report.now, held.get(row.id, ()))))
        except Exception as error:  # noqa: BLE001 - as above
            report.unreadable.append((row.id, f"{type(error).__name__}: {error}"))
    return plans


def as_schedule(row: Row[Any]) -> Schedule:
    """What `plan` needs to know of a row; raises an `OnebeatError` when it is a newer version's, or damaged."""
    options_from(row.options)  # what its jobs need must make sense too
    return Schedule(
        id=row.id,
        trigger=trigger_from(row.trigger_json),
        policies=policies_from(row.policies),
        state=state_from(row.state),
        next_fire_us=row.next_fire_us,
        last_fire_us=row.last_fire_us,
        fires_count=row.fires_count,
        consecutive_skips=row.consecutive_skips,
    )


def state_from(text: str) -> ScheduleState:
    """The state of a stored word; raises `ConfigurationError` for one this version does not know."""
    try:
        return ScheduleState(text)
    except ValueError:
        raise ConfigurationError(f"stored state {text!r:.20} is unknown here") from None


@lru_cache(maxsize=4096)
def trigger_from(text: str) -> Rule:
    """The trigger of a stored text; parsed once a process."""
    return triggers.load(payload.decode(text))


@lru_cache(maxsize=1024)
def policies_from(text: str) -> Policies:
    """The policies of a stored text."""
    return Policies.from_json(payload.decode(text))


@lru_cache(maxsize=1024)
def options_from(text: str) -> Mapping[str, Any]:
    """What the jobs of a schedule are made with; raises `ConfigurationError` when something is missing."""
    options = payload.decode(text)
    missing = sorted(JOB_OPTIONS - options.keys()) if isinstance(options, dict) else sorted(JOB_OPTIONS)
    if missing:
        raise ConfigurationError(f"stored options without {', '.join(missing)}")
    return MappingProxyType(options)


def unfinished(tx: Tx, schedule_ids: Sequence[str]) -> dict[str, tuple[Unfinished, ...]]:
    """The unfinished jobs of the schedules, oldest first."""
    if not schedule_ids:
        return {}
    found: dict[str, list[Unfinished]] = {}
    for row in tx.execute(tx.prepared(_unfinished), {"b_ids": padded(schedule_ids)}):
        found.setdefault(row.schedule_id, []).append(Unfinished(id=str(row.id), state=row.state, fire_us=row.fire_us))
    return {id: tuple(items) for id, items in found.items()}


def _unfinished(tx: Tx) -> Select[Any]:
    c = tx.tables.jobs.c
    return (
        select(c.schedule_id, c.id, c.state, c.fire_us)
        .where(
            c.schedule_id.in_(bindparam("b_ids", expanding=True)), c.state.in_([QUEUED, SCHEDULED, WAITING, RUNNING])
        )
        .order_by(c.id)
    )


def still_unfired(tx: Tx) -> ColumnElement[bool]:
    """The compare-and-set: nobody moved the next fire, and nobody edited the schedule, since it was read."""
    c = tx.tables.schedules.c
    return and_(c.next_fire_us == bindparam("b_expected"), c.rev == bindparam("b_rev"), c.state == ACTIVE)


def _move(tx: Tx, plans: Sequence[tuple[Row[Any], FirePlan]], ours: Mapping[str, Any]) -> tuple[set[str], int | None]:
    """Move the schedules to their next fires; the ids that this transaction won, and, if any, what is due next."""
    mark = token()
    tx.execute(tx.prepared(_moved), [_moving(row, decision) | {"b_token": mark} for row, decision in plans])
    ids = padded([row.id for row, _ in plans])
    won = tx.execute(tx.prepared(_won), {"b_ids": ids, "b_token": mark, **ours}).all()
    return {row.id for row in won}, won[0].next_fire if won else None


def _won(tx: Tx) -> Select[Any]:
    """Which rows carry the token; beside them the earliest next fire, which spares a round trip."""
    c = tx.tables.schedules.c
    next_fire = _next_due(tx).correlate(None).scalar_subquery().label("next_fire")
    return select(c.id, next_fire).where(
        c.id.in_(bindparam("b_ids", expanding=True)), c.fire_token == bindparam("b_token")
    )


def _moved(tx: Tx) -> Update:
    """Many rows in one go do not tell which of them changed; the token does, and `fire_seq` always changes."""
    table = tx.tables.schedules
    return (
        update(table)
        .where(table.c.id == bindparam("b_id"), still_unfired(tx))
        .values(
            next_fire_us=bindparam("b_next"),
            last_fire_us=bindparam("b_last"),
            fires_count=bindparam("b_count"),
            consecutive_skips=bindparam("b_skips"),
            state=bindparam("b_state"),
            fire_seq=table.c.fire_seq + 1,
            fire_token=bindparam("b_token"),
        )
    )


def _moving(row: Row[Any], decision: FirePlan) -> dict[str, Any]:
    return {
        "b_id": row.id,
        "b_expected": row.next_fire_us,
        "b_rev": row.rev,
        "b_next": decision.next_fire_us,
        "b_last": decision.last_fire_us,
        "b_count": decision.fires_count,
        "b_skips": decision.consecutive_skips,
        "b_state": "finished" if decision.finished else row.state,
    }


def _without_conflicts(
    tx: Tx, schedule_id: str, fires: Sequence[PlannedFire], report: FireReport
) -> Sequence[PlannedFire]:
    """Leave out instants that have a record already: restored tables or edited rows, announced as an alarm."""
    if not fires:
        return fires
    c = tx.tables.fires.c
    query = select(c.fire_key).where(c.schedule_id == schedule_id, c.fire_key.in_(padded([f.key for f in fires])))
    known = {found.fire_key for found in tx.execute(query)}
    report.conflicts.extend((schedule_id, key) for key in known)
    return [fire for fire in fires if fire.key not in known]


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
                    delayed=job is not None and job.state is JobState.SCHEDULED,
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
        jobs.add(self._tx, self._jobs)
        if self._cancels:
            job_edits.cancel(self._tx, self._cancels)

    def _job(self, row: Row[Any], fire: PlannedFire) -> NewJob:
        now = self._report.now
        options = options_from(row.options)
        run_at = now if fire.run_at_us is None else max(now, fire.run_at_us)
        resting = JobState.SCHEDULED if run_at > now else JobState.QUEUED
        return NewJob(
            id=uuid7(now + len(self._jobs)),  # later fires sort later
            task=row.task,
            args=packed(row.args, row.kwargs, row.timezone),
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


# ── by hand ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def fire_by_hand(
    tx: Tx,
    id: str,
    decide: Callable[[Schedule, int, tuple[Unfinished, ...]], Sequence[PlannedFire]],
    *,
    by: str,
    new_tracking_id: Callable[[], str],
) -> list[Fire]:
    """Write the fires that `decide` makes of a locked schedule; those that have a record already are left out.

    It moves neither the next fire nor a counter. Raises `ScheduleNotFound`.
    """
    row = locked(tx, id)
    report = FireReport(now=tx.now())
    held = unfinished(tx, [id]).get(id, ())
    fires = _without_conflicts(tx, id, decide(understood(row), report.now, held), report)
    writer = FireWriter(tx, report, worker_id=by, new_tracking_id=new_tracking_id)
    writer.add(row, fires)
    writer.write()
    jobs_made = {fired.key: fired.job_id for fired in report.fired}
    return [
        Fire(
            schedule_id=id,
            fire_time=from_us(fire.fire_us),
            key=fire.key,
            origin=str(fire.origin),
            decision=str(fire.decision),
            reason=fire.reason,
            job_id=jobs_made[fire.key],
            decided_by=by,
            decided_at=from_us(report.now),
        )
        for fire in fires
    ]


def understood(row: Row[Any]) -> Schedule:
    """The schedule; raises `ConfigurationError` with the ways out when the row cannot be read."""
    try:
        return as_schedule(row)
    except OnebeatError as error:
        raise ConfigurationError(
            f"schedule {row.id!r} cannot be read here: {error}. Use the version that wrote it, "
            'replace it with add(…, if_exists="replace"), or remove it'
        ) from error


def locked(tx: Tx, id: str) -> Row[Any]:
    """The schedule's row, locked until the end of the transaction; raises `ScheduleNotFound`."""
    table = tx.tables.schedules
    row = tx.execute(tx.dialect.lock_rows(select(table).where(table.c.id == id))).first()
    if row is None or row.id != id:  # MySQL and MariaDB take "a " for "a"
        raise ScheduleNotFound(f"no schedule {id!r}; `schedules.list()` shows what there is")
    return row
