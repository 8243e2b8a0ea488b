"""Changed time zone data: fingerprints compared, next fires moved."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select, update

from onebeat.errors import InvalidTrigger, OnebeatError
from onebeat.model.changes import Rezoning, rezoned
from onebeat.store.schedules.rows import as_schedule
from onebeat.store.sql import word
from onebeat.store.tx import Tx
from onebeat.timing.zones import changed, stale

FINISHED = word("finished")


def rezone(tx: Tx) -> list[str]:
    """Move the next fires of rules whose zone data has changed since it was stored; the ids whose next fire moved.

    Never before the last fire, and never twice: the move is conditional on what was read. An overdue schedule keeps its
    due fires. Run at start, before anything fires, and daily.
    """
    table = tx.tables.schedules
    c = table.c
    now = tx.now()
    known = tx.execute(select(c.timezone, c.zone_fingerprint).where(c.state != FINISHED).distinct()).all()
    outdated = [pair for pair in known if _outdated(pair.timezone, pair.zone_fingerprint, now)]
    moved: list[str] = []
    for pair in outdated:
        stored = pair.zone_fingerprint
        same = c.zone_fingerprint.is_(None) if stored is None else c.zone_fingerprint == stored
        query = select(table).where(c.state != FINISHED, c.timezone == pair.timezone, same).order_by(c.id)
        moved.extend(row.id for row in tx.execute(tx.dialect.lock_rows(query)).all() if _rezone_one(tx, row, now))
    return moved


def _outdated(name: str, stored: str | None, now: int) -> bool:
    try:
        return stored is None or stale(stored, now) or changed(name, stored)
    except InvalidTrigger:
        return False  # a zone this machine does not know; its rules are announced when they are due


def _rezoned(row: Row[Any], now: int) -> Rezoning | None:
    try:
        return rezoned(as_schedule(row), row.zone_fingerprint, now, since_us=max(row.created_us, row.updated_us))
    except OnebeatError:
        return None  # a newer version's, or damaged: left to whoever can read it, announced when it is due


def _rezone_one(tx: Tx, row: Row[Any], now: int) -> bool:
    found = _rezoned(row, now)
    if found is None:
        return False
    table = tx.tables.schedules
    c = table.c
    unmoved = c.next_fire_us.is_(None) if row.next_fire_us is None else c.next_fire_us == row.next_fire_us
    values = {"zone_fingerprint": found.fingerprint, "fire_seq": c.fire_seq + 1} | _moved(row, found)
    tx.execute(update(table).where(c.id == row.id, c.rev == row.rev, unmoved).values(**values))
    return bool(found.next_fire_us != row.next_fire_us)


def _moved(row: Row[Any], found: Rezoning) -> dict[str, Any]:
    if found.next_fire_us == row.next_fire_us:
        return {}
    over = {"state": "finished"} if found.next_fire_us is None and row.state == "active" else {}
    return {"next_fire_us": found.next_fire_us} | over
