"""Schedules in motion: what is due, and the exactly-once transaction that fires it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, Update, and_, bindparam, or_, select, update

from onebeat.model.fired import fire_time
from onebeat.model.ids import token
from onebeat.model.info import Fire
from onebeat.model.policies import Overlap
from onebeat.model.schedule import FirePlan, PlannedFire, Schedule, Unfinished, plan
from onebeat.store.schedules.fire_writer import FIRED_COLUMNS, FireReport, FireWriter
from onebeat.store.schedules.rows import SCHEDULE_COLUMNS, as_schedule, locked, understood
from onebeat.store.sql import number, padded, unindexed, word
from onebeat.store.tx import Tx
from onebeat.timing.clock import from_us, to_us

ACTIVE = word("active")
READ = (*SCHEDULE_COLUMNS, *FIRED_COLUMNS, "rev")


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
    """The first entry of the index that may be fired; MariaDB would read them all for a minimum."""
    c = tx.tables.schedules.c
    return select(c.next_fire_us).where(fireable(tx), c.next_fire_us.is_not(None)).order_by(c.next_fire_us).limit(1)


def due(tx: Tx, hashes: Collection[str], limit: int, unreadable: Collection[str] = ()) -> Sequence[Row[Any]]:
    """Up to `limit` due schedules, locked; those another worker is firing are skipped. The transaction's first read."""
    return tx.execute(tx.prepared(_due), _ours(hashes, unreadable) | {"b_limit": limit}).all()


def _due(tx: Tx) -> Select[Any]:
    table = tx.tables.schedules
    query = (
        select(*(table.c[name] for name in READ), tx.clock.label("now"))
        .where(fireable(tx), table.c.next_fire_us <= tx.clock)
        .order_by(table.c.next_fire_us, table.c.id)
        .limit(bindparam("b_limit"))
    )
    return tx.dialect.skip_locked(query)


# ── fire ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
def fire_due(
    tx: Tx,
    *,
    worker_id: str,
    hashes: Collection[str],
    new_tracking_id: Callable[[], str],
    limit: int,
    careful: bool = False,
    unreadable: Collection[str] = (),
    since: int | None = None,
) -> FireReport:
    """Decide every due instant of up to `limit` schedules: fire rows, job rows and the moved watermark in one commit.

    `since`: when this worker began with what is due, on the database's clock; None: with this call.
    Whoever moves `next_fire_us` owns the fire; the unique row proves it. Two workers never decide the same instant.
    Raises `FireRecorded` when the proof says that an instant was decided before; `careful` leaves such instants out.
    A row that this code cannot read is reported and costs the others nothing; name it in `unreadable` the next time.
    """
    report = FireReport()
    rows = due(tx, hashes, limit, unreadable)
    tx.point("fire.due")
    if rows:
        report.now = int(rows[0].now)
        plans = _plans(tx, rows, report, since)
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


def _plans(tx: Tx, rows: Sequence[Row[Any]], report: FireReport, since: int | None) -> list[tuple[Row[Any], FirePlan]]:
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
            plans.append((row, plan(schedule, report.now, held.get(row.id, ()), since)))
        except Exception as error:  # noqa: BLE001 - as above
            report.unreadable.append((row.id, f"{type(error).__name__}: {error}"))
    return plans


def unfinished(tx: Tx, schedule_ids: Sequence[str]) -> dict[str, tuple[Unfinished, ...]]:
    """The unfinished jobs of the schedules, oldest first."""
    if not schedule_ids:
        return {}
    found: dict[str, list[Unfinished]] = {}
    rows = tx.execute(tx.prepared(_unfinished), {"b_ids": padded(schedule_ids)}).all()
    for row in sorted(rows, key=lambda row: row.id):  # here, lest a database reads all jobs in that order
        found.setdefault(row.schedule_id, []).append(Unfinished(id=str(row.id), state=row.state, fire_us=row.fire_us))
    return {id: tuple(items) for id, items in found.items()}


def _unfinished(tx: Tx) -> Select[Any]:
    c = tx.tables.jobs.c
    return select(c.schedule_id, c.id, c.state, c.fire_us).where(
        tx.dialect.among(c.schedule_id, "b_ids"),
        c.finished_us.is_(None),  # so the index leads past the history
    )


def still_unfired(tx: Tx, given: Any) -> ColumnElement[bool]:
    """The compare-and-set: nobody moved the next fire, and nobody edited the schedule, since it was read."""
    c = tx.tables.schedules.c
    return and_(c.next_fire_us == given.b_expected, c.rev == given.b_rev, unindexed(c.state) == ACTIVE)


def _move(tx: Tx, plans: Sequence[tuple[Row[Any], FirePlan]], ours: Mapping[str, Any]) -> tuple[set[str], int | None]:
    """Move the schedules to their next fires; the ids that this transaction won, and, if any, what is due next."""
    mark = token()
    tx.execute_given(tx.prepared(_moved), [_moving(row, decision) for row, decision in plans], b_token=mark)
    ids = padded([row.id for row, _ in plans])
    won = tx.execute(tx.prepared(_won), {"b_ids": ids, "b_token": mark, **ours}).all()
    return {row.id for row in won}, won[0].next_fire if won else None


def _won(tx: Tx) -> Select[Any]:
    """Which rows carry the token; beside them the earliest next fire, which spares a round trip."""
    c = tx.tables.schedules.c
    next_fire = _next_due(tx).correlate(None).scalar_subquery().label("next_fire")
    return select(c.id, next_fire).where(tx.dialect.among(c.id, "b_ids"), c.fire_token == bindparam("b_token"))


def _moved(tx: Tx) -> Update:
    """Many rows in one go do not tell which of them changed; the token does, and `fire_seq` always changes."""
    table = tx.tables.schedules
    c = table.c
    given = tx.dialect.given_rows(
        b_id=c.id,
        b_expected=c.next_fire_us,
        b_rev=c.rev,
        b_next=c.next_fire_us,
        b_last=c.last_fire_us,
        b_count=c.fires_count,
        b_skips=c.consecutive_skips,
        b_state=c.state,
    )
    return (
        update(table)
        .where(c.id == given.b_id, still_unfired(tx, given))
        .values(
            next_fire_us=given.b_next,
            last_fire_us=given.b_last,
            fires_count=given.b_count,
            consecutive_skips=given.b_skips,
            state=given.b_state,
            fire_seq=c.fire_seq + number(1),
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

    It moves neither the next fire nor a counter. Fires that an earlier try of this call wrote are returned again.
    Raises `ScheduleNotFound`.
    """
    row = locked(tx, id)
    for written in tx.unanswered:
        if written and _is_recorded(tx, written[0]):
            return list(written)
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
            fire_time=fire_time(fire.fire_us, row.timezone),
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


def _is_recorded(tx: Tx, fire: Fire) -> bool:
    """Return whether the record of this fire is the one that the same transaction wrote."""
    c = tx.tables.fires.c
    found = tx.execute(
        select(c.decided_us, c.decided_by).where(c.schedule_id == fire.schedule_id, c.fire_key == fire.key)
    ).first()
    return found is not None and (found.decided_us, found.decided_by) == (to_us(fire.decided_at), fire.decided_by)
