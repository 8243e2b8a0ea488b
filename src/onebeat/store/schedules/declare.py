"""Schedules declared in code: their definitions, and which of several code versions' is in force."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, delete, exists, func, select, update

from onebeat.errors import OnebeatError, ScheduleExists
from onebeat.model.definition import Definition
from onebeat.store import workers
from onebeat.store.schedules.edit import edited_row, new_row
from onebeat.store.schedules.rows import trigger_from
from onebeat.store.sql import padded, unindexed, word
from onebeat.store.tx import Tx
from onebeat.timing.clock import DAY

CODE = word("code")
AT_ONCE = 500  # schedules of one statement
KEPT = (
    30 * DAY
)  # after its last worker: a version that comes back later counts as new, and older ones gave way long ago
SEEN_EACH = DAY  # `last_seen_us` is as exact as this, so that a start writes nothing


def declare(tx: Tx, definitions: Sequence[Definition]) -> None:
    """Store what this code declares and put the definition in force that `arbitrate` chooses.

    Raises `ScheduleExists` when an id is taken by a schedule added at run time.
    """
    if not definitions:
        return
    now = tx.now()
    seen = [
        {"schedule_id": item.id, "hash": item.hash, "first_seen_us": now, "last_seen_us": now, "body": item.body}
        for item in sorted(definitions, key=lambda item: item.id)
    ]
    tx.execute(tx.dialect.insert_ignore(tx.tables.definitions), seen)
    _saw(tx, [(item.id, item.hash) for item in definitions], now)
    rows = [new_row(item, now, source="code") | {"definition_hash": item.hash} for item in definitions]
    tx.execute(tx.dialect.insert_ignore(tx.tables.schedules), sorted(rows, key=lambda row: str(row["id"])))
    c = tx.tables.schedules.c
    ids = padded([item.id for item in definitions])
    taken = tx.execute(select(c.id).where(c.id.in_(ids), c.source != CODE).order_by(c.id)).first()
    if taken is not None:
        raise ScheduleExists(
            f"schedule {taken.id!r} is declared in code, but one of that id was added at run time; "
            "remove that one or give the declared one another id="
        )
    arbitrate(tx, disputed(tx))


def disputed(tx: Tx) -> list[str]:
    """The schedules whose definition or state `arbitrate` would change; a read."""
    c = tx.tables.schedules.c
    rows = tx.execute(select(c.id, c.definition_hash, c.state).where(c.source == CODE)).all()
    chosen = in_force(tx) if rows else {}
    return [row.id for row in rows if _needs_change(row, chosen.get(row.id))]


def arbitrate(tx: Tx, ids: Sequence[str]) -> list[str]:
    """Put the newest definition that a live worker advertises in force; orphan what none does. The ids that changed.

    "Newest" is by when a definition was first seen, so that a restarted old worker cannot win back (SEMANTICS 20).
    """
    changed: list[str] = []
    for start in range(0, len(ids), AT_ONCE):
        changed += _arbitrate(tx, ids[start : start + AT_ONCE])
    return changed


def _arbitrate(tx: Tx, ids: Sequence[str]) -> list[str]:
    now = tx.now()
    c, definitions = tx.tables.schedules.c, tx.tables.definitions.c
    query = select(tx.tables.schedules).where(c.id.in_(padded(ids)), unindexed(c.source) == CODE).order_by(c.id)
    locked = tx.execute(tx.dialect.lock_rows(query)).all()
    chosen = in_force(tx)  # with the locks held: a newer worker may have declared while they were waited for
    stored = select(definitions.schedule_id, definitions.hash, definitions.body)
    bodies = {
        (row.schedule_id, row.hash): row.body
        for row in tx.execute(stored.where(definitions.schedule_id.in_(padded(ids))))
        if chosen.get(row.schedule_id) == row.hash
    }
    return [row.id for row in locked if _put_in_force(tx, row, chosen.get(row.id), bodies, now)]


def in_force(tx: Tx) -> dict[str, str]:
    """Schedule id → hash of the definition that should be in force."""
    advertised = workers.advertised(tx)
    c = tx.tables.definitions.c
    known = tx.execute(select(c.schedule_id, c.hash, c.first_seen_us)) if advertised else ()
    best: dict[str, Row[Any]] = {}
    for row in known:
        if row.hash in advertised.get(row.schedule_id, ()):
            other = best.get(row.schedule_id)
            if other is None or (row.first_seen_us, row.hash) > (other.first_seen_us, other.hash):
                best[row.schedule_id] = row
    return {id: row.hash for id, row in best.items()}


def _saw(tx: Tx, known: Sequence[tuple[str, str]], now: int) -> None:
    """Note that live code has these definitions (schedule id, hash), where that was not noted within `SEEN_EACH`."""
    table = tx.tables.definitions
    for start in range(0, len(known), AT_ONCE):
        ids, hashes = zip(*known[start : start + AT_ONCE], strict=True)
        these = table.c.schedule_id.in_(padded(ids)), table.c.hash.in_(padded(hashes))
        tx.execute(update(table).where(*these, _last_seen(tx) < now - SEEN_EACH).values(last_seen_us=now))


def _last_seen(tx: Tx) -> ColumnElement[int]:
    c = tx.tables.definitions.c
    return func.coalesce(c.last_seen_us, c.first_seen_us)


def prune(tx: Tx) -> int:
    """Delete definitions that no live worker has advertised for `KEPT` and that are in force nowhere; how many.

    A worker that starts meanwhile with one of them writes `last_seen_us`, or makes the row anew.
    """
    now = tx.now()
    table, schedules = tx.tables.definitions, tx.tables.schedules
    live = {(id, digest) for id, digests in workers.advertised(tx).items() for digest in digests}
    stored = tx.execute(select(table.c.schedule_id, table.c.hash, _last_seen(tx).label("seen"))).all()
    _saw(tx, sorted({(row.schedule_id, row.hash) for row in stored if row.seen < now - SEEN_EACH} & live), now)
    in_use = exists().where(schedules.c.id == table.c.schedule_id, schedules.c.definition_hash == table.c.hash)
    gone = sorted({(row.schedule_id, row.hash) for row in stored if row.seen < now - KEPT} - live)
    deleted = 0
    for start in range(0, len(gone), AT_ONCE):
        ids, hashes = zip(*gone[start : start + AT_ONCE], strict=True)
        these = table.c.schedule_id.in_(padded(ids)), table.c.hash.in_(padded(hashes))
        deleted += tx.execute(delete(table).where(*these, _last_seen(tx) < now - KEPT, ~in_use)).rowcount
    return deleted


def _needs_change(row: Row[Any], chosen: str | None) -> bool:
    if chosen is None:
        return str(row.state) == "active"
    return bool(row.definition_hash != chosen or row.state == "orphaned")


def _put_in_force(tx: Tx, row: Row[Any], chosen: str | None, bodies: Mapping[tuple[str, str], str], now: int) -> bool:
    if not _needs_change(row, chosen):
        return False
    table = tx.tables.schedules
    if chosen is None:
        values: dict[str, Any] = {"state": "orphaned"}
    else:
        definition = _readable_here(bodies[row.id, chosen])
        if definition is None:
            return False
        values = {} if row.overridden else edited_row(row, definition, now, over_is_error=False)
        values |= {"definition_hash": chosen, "updated_us": now}
        if row.state == "orphaned":
            over = values.get("next_fire_us", row.next_fire_us) is None
            values["state"] = "finished" if over else "active"  # what came due meanwhile is decided by the policies
    tx.execute(update(table).where(table.c.id == row.id).values(**values))
    return True


def _readable_here(body: str) -> Definition | None:
    """The definition, None when a newer version wrote it in a way unknown here: its own workers put it in force."""
    try:
        definition = Definition.load(body)
        trigger_from(definition.trigger)
    except (OnebeatError, TypeError):  # a field this version needs is missing
        return None
    return definition
