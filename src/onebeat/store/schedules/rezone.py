"""Changed time zone data: fingerprints compared, next fires moved."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, Update, select, update

from onebeat.errors import InvalidTrigger, OnebeatError
from onebeat.model.changes import Rezoning, rezoned
from onebeat.store.schedules.rows import as_schedule
from onebeat.store.sql import unindexed, word
from onebeat.store.tx import Tx
from onebeat.timing.zones import changed, stale

FINISHED = word("finished")


AT_ONCE = 500  # schedules of one transaction, so that their fires do not wait for it

Zone = tuple[str, str | None]  # a zone's name, and the fingerprint of its data that schedules were stored with


def outdated(tx: Tx) -> list[Zone]:
    """The zones whose data has changed since schedules were stored with it; a read."""
    c = tx.tables.schedules.c
    now = tx.now()
    known = tx.execute(select(c.timezone, c.zone_fingerprint).where(c.state != FINISHED).distinct()).all()
    return [(row.timezone, row.zone_fingerprint) for row in known if _outdated(row.timezone, row.zone_fingerprint, now)]


def rezone(tx: Tx, zone: Zone, after: str = "", limit: int = AT_ONCE) -> tuple[list[str], str | None]:
    """Move the next fires of up to `limit` schedules of an outdated zone, those with ids after `after`.

    Returns the ids whose next fire moved and the id to go on after, None at the end. Never before the last fire, and
    never twice: the move is conditional on what was read. An overdue schedule keeps its due fires, and one that fires
    before it is moved fires by today's data all the same.
    """
    table = tx.tables.schedules
    c = table.c
    name, stored = zone
    now = tx.now()
    same = c.zone_fingerprint.is_(None) if stored is None else c.zone_fingerprint == stored
    query = select(table).where(unindexed(c.state) != FINISHED, c.timezone == name, same, c.id > after)
    rows = tx.execute(tx.dialect.lock_rows(query.order_by(c.id).limit(limit))).all()
    found = [(row, rezoning) for row in rows if (rezoning := _rezoned(row, now)) is not None]
    if found:
        tx.execute(tx.prepared(_moved), tx.dialect.given([_moving(*pair) for pair in found]))
    moved = [row.id for row, rezoning in found if rezoning.next_fire_us != row.next_fire_us]
    return moved, rows[-1].id if len(rows) == limit else None


def _outdated(name: str, stored: str | None, now: int) -> bool:
    try:
        return stored is None or stale(stored, now) or changed(name, stored)
    except InvalidTrigger:
        return False  # a zone this machine does not know; its rules are announced when they are due


def _rezoned(row: Row[Any], now: int) -> Rezoning | None:
    try:
        since = max(row.created_us, row.updated_us)
        return rezoned(as_schedule(row), row.zone_fingerprint, now, since_us=since, name=row.timezone)
    except OnebeatError:
        return None  # a newer version's, or damaged: left to whoever can read it, announced when it is due


def _moved(tx: Tx) -> Update:
    table = tx.tables.schedules
    c = table.c
    given = tx.dialect.given_rows(
        b_id=c.id,
        b_rev=c.rev,
        b_expected=c.next_fire_us,
        b_next=c.next_fire_us,
        b_state=c.state,
        b_fingerprint=c.zone_fingerprint,
    )
    return (
        update(table)
        .where(c.id == given.b_id, c.rev == given.b_rev, c.next_fire_us.is_not_distinct_from(given.b_expected))
        .values(
            next_fire_us=given.b_next,
            state=given.b_state,
            zone_fingerprint=given.b_fingerprint,
            fire_seq=c.fire_seq + 1,
        )
    )


def _moving(row: Row[Any], found: Rezoning) -> dict[str, Any]:
    is_over = found.next_fire_us is None and row.next_fire_us is not None and row.state == "active"
    return {
        "b_id": row.id,
        "b_rev": row.rev,
        "b_expected": row.next_fire_us,
        "b_next": found.next_fire_us,
        "b_state": "finished" if is_over else row.state,
        "b_fingerprint": found.fingerprint,
    }
