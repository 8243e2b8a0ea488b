"""After the database's clock was set back: schedules fire by it again, except what has a job already."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, delete, func, select, update

from onebeat.errors import OnebeatError
from onebeat.model.changes import next_fire_after_set_back
from onebeat.model.policies import Decision, Origin
from onebeat.model.schedule import Schedule
from onebeat.store.schedules.rows import as_schedule
from onebeat.store.sql import word
from onebeat.store.tx import Tx

BATCH = 20  # schedules in one transaction; each may have a thousand records to take back
MOST_KEYS = 10_000  # records of one schedule to look at; the unique index refuses what lies beyond them
FINISHED = word("finished")


def bring_forward(tx: Tx, after: str = "") -> tuple[int, str | None]:
    """Give the schedules behind the id `after` the next fire that their triggers say from now on.

    A fire that has made a job is left out, so nothing runs twice. What was decided against a fire that still lies ahead
    is taken back, so nothing is lost. The move is conditional on what was read. Return how many next fires were moved,
    and the id behind which to go on; None: there are no more schedules.
    """
    table = tx.tables.schedules
    c = table.c
    now = tx.now()
    query = select(table).where(c.id > after, c.state != FINISHED, c.next_fire_us > now).order_by(c.id).limit(BATCH)
    found = tx.execute(query).all()
    moved = sum(_bring_forward(tx, row, now) for row in found)
    return moved, found[-1].id if len(found) == BATCH else None


def _bring_forward(tx: Tx, row: Row[Any], now: int) -> bool:
    try:
        schedule = as_schedule(row)
        first = schedule.trigger.next_fire(now)
        if first is None or first.at >= row.next_fire_us:
            return False
        next_fire = next_fire_after_set_back(schedule, now, _started(tx, row, now))
    except OnebeatError:
        return False  # a newer version's, or damaged: announced when it is due
    if next_fire == row.next_fire_us:
        return False
    table = tx.tables.schedules
    values: dict[str, Any] = {"next_fire_us": next_fire, "fire_seq": table.c.fire_seq + 1}
    if row.last_fire_us is not None and row.last_fire_us > now:
        values["last_fire_us"] = _last_fire(tx, row.id, now)
    unmoved = (table.c.id == row.id, table.c.rev == row.rev, table.c.next_fire_us == row.next_fire_us)
    if not tx.execute(update(table).where(*unmoved).values(**values)).rowcount:
        return False
    _take_back(tx, row, now)
    _end_gaps(tx, schedule, now)
    return True


def _started(tx: Tx, row: Row[Any], now: int) -> set[str]:
    """Return the keys of the fires from now up to the next fire that have made a job."""
    c = tx.tables.fires.c
    query = (
        select(c.fire_key)
        .where(c.schedule_id == row.id, c.fire_us > now, c.fire_us < row.next_fire_us, c.job_id.is_not(None))
        .order_by(c.fire_us)
        .limit(MOST_KEYS)
    )
    return set(tx.execute(query).scalars())


def _last_fire(tx: Tx, id: str, now: int) -> int | None:
    c = tx.tables.fires.c
    query = select(func.max(c.fire_us)).where(c.schedule_id == id, c.fire_us <= now, c.origin == str(Origin.SCHEDULE))
    last: int | None = tx.execute(query).scalar()
    return last


def _take_back(tx: Tx, row: Row[Any], now: int) -> None:
    """Delete the decisions on fires that still lie ahead and have made no job: misfired, coalesced, skipped."""
    table = tx.tables.fires
    c = table.c
    ahead = (c.schedule_id == row.id, c.fire_us > now, c.fire_us < row.next_fire_us)
    tx.execute(delete(table).where(*ahead, c.job_id.is_(None), c.origin == str(Origin.SCHEDULE)))


def _end_gaps(tx: Tx, schedule: Schedule, now: int) -> None:
    """Let the gaps that reach beyond now end now: their fires that lie ahead will be decided one by one."""
    table = tx.tables.fires
    c = table.c
    gaps = tx.execute(
        select(c.fire_key, c.fire_us).where(
            c.schedule_id == schedule.id, c.until_us > now, c.fire_us <= now, c.decision == str(Decision.GAP)
        )
    ).all()
    for gap in gaps:
        this = (c.schedule_id == schedule.id, c.fire_key == gap.fire_key)
        last = schedule.trigger.previous_fire(now + 1)
        if last is None or last.at < gap.fire_us:
            tx.execute(delete(table).where(*this))
        else:
            count = schedule.trigger.count(gap.fire_us - 1, now)
            tx.execute(update(table).where(*this).values(until_us=last.at, instants=count))
