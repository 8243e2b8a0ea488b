"""Schedules as rows: add, edit, pause, resume, remove."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Row, delete, null, select, update

from onebeat.errors import ConfigurationError, InvalidTrigger, OnebeatError, ScheduleExists, StaleRevision
from onebeat.model.changes import edited, first_fire, resumed
from onebeat.model.checks import check_text
from onebeat.model.definition import Definition
from onebeat.model.schedule import spent
from onebeat.store.schedules.fire_writer import FireReport, FireWriter
from onebeat.store.schedules.rows import locked, policies_from, state_from, trigger_from, understood
from onebeat.store.sql import padded
from onebeat.store.tx import Tx
from onebeat.tasks.declared_schedule import IfExists
from onebeat.timing.zones import fingerprint

T = TypeVar("T")
AT_ONCE = 500  # schedules of one statement


def add(tx: Tx, item: Definition, *, if_exists: IfExists) -> int | None:
    """Store a schedule; over a finished one it is allowed unless it is to be kept. Raises `ScheduleExists`.

    Returns the `created_us` of a row that this call stored, by which a later try of the call recognises it.
    """
    now = tx.now()
    table = tx.tables.schedules
    if tx.execute(select(table.c.id).where(table.c.id == item.id)).first() is None:
        new = tx.dialect.insert_ignore(table).values(new_row(item, now, source="api"))
        if tx.execute(new).rowcount == 1:
            return now
    if if_exists == "keep":
        return None
    row = locked(tx, item.id)
    if row.created_us in tx.unanswered:
        return int(row.created_us)
    if row.state == "finished" and row.source == "api":
        fresh = new_row(item, now, source="api") | {"rev": row.rev + 1, "fires_count": 0, "consecutive_skips": 0}
        del fresh["id"]
        fresh["next_fire_us"] = _next_after(row, item, now) or fresh["next_fire_us"]
        tx.execute(update(table).where(table.c.id == item.id).values(**fresh))
        return now
    if if_exists == "error":
        raise _exists(row)
    if if_exists == "replace" and not _same(row, item):
        edit(tx, item, expected_rev=None, override=False)
    return None


def add_many(tx: Tx, items: Sequence[tuple[Definition, IfExists]]) -> int | None:
    """Store schedules of different ids, as `add` does with each; an error leaves none of them stored.

    Returns the `created_us` of the rows that this call stored.
    """
    now, table = tx.now(), tx.tables.schedules
    ordered = sorted(items, key=lambda item: item[0].id)  # two of these calls wait for each other in one order
    for item, _ in ordered:
        new_row(item, now, source="api")  # raises before anything is written
    refused = [item.id for item, if_exists in ordered if if_exists == "error"]
    for start in range(0, len(refused), AT_ONCE):
        ids = padded(refused[start : start + AT_ONCE])
        for row in tx.execute(
            select(table.c.id, table.c.state, table.c.source, table.c.created_us).where(table.c.id.in_(ids))
        ):
            if row.created_us not in tx.unanswered and (row.state, row.source) != ("finished", "api"):
                raise _exists(row)
    stored = [add(tx, item, if_exists=if_exists) for item, if_exists in ordered]
    return next((created for created in stored if created is not None), None)


def _exists(row: Row[Any]) -> ScheduleExists:
    return ScheduleExists(f"schedule {row.id!r} exists ({row.source}, {row.state}); see if_exists= or update()")


def _same(row: Row[Any], item: Definition) -> bool:
    return _tried(state_from, row.state) is not None and all(
        getattr(row, name) == value for name, value in _said(item).items()
    )


def stale(id: str, found: int, expected: int) -> StaleRevision:
    """The error of an edit that was decided on another revision than the present one."""
    return StaleRevision(f"schedule {id!r} is at rev {found}, not {expected}; read it again and decide anew")


def edit(tx: Tx, item: Definition, *, expected_rev: int | None, override: bool) -> None:
    """Change what people decide; `rev` counts it. Raises `StaleRevision`, `ScheduleNotFound`, `ConfigurationError`."""
    row = locked(tx, item.id)
    if expected_rev is not None and row.rev != expected_rev:
        if row.rev == expected_rev + 1 and _same(row, item):
            return  # this very edit, run again because the answer to its commit was lost
        raise stale(item.id, row.rev, expected_rev)
    if row.source == "code" and not override:
        raise ConfigurationError(f"schedule {item.id!r} is declared in code; change it there, or pass override=True")
    if _same(row, item):
        return
    values = edited_row(row, item, tx.now())
    if row.source == "code":
        values["overridden"] = True
    table = tx.tables.schedules
    tx.execute(update(table).where(table.c.id == item.id).values(**values))


def pause(tx: Tx, id: str, reason: str | None) -> None:
    """Stop firing; again is no change. Raises `ScheduleNotFound`, `ConfigurationError` when it is finished."""
    if reason is not None:
        check_text(reason, "reason")
    row = locked(tx, id)
    if row.state == "finished":
        raise ConfigurationError(f"schedule {id!r} is finished; there is nothing to pause")
    if row.state == "paused":
        return
    table = tx.tables.schedules
    now = tx.now()
    values = {"state": "paused", "paused_us": now, "paused_reason": reason, "updated_us": now}
    tx.execute(update(table).where(table.c.id == id).values(**values))


def resume(tx: Tx, id: str, *, by: str = "") -> None:
    """Fire again, from now; one `gap` row tells what the pause left out. Not paused: no change."""
    row = locked(tx, id)
    if row.state != "paused":
        return
    now = tx.now()
    back = resumed(understood(row), now)
    report = FireReport(now=now)
    writer = FireWriter(tx, report, worker_id=by, new_tracking_id=str)
    writer.add(row, back.fires)
    writer.write()
    table = tx.tables.schedules
    tx.execute(
        update(table)
        .where(table.c.id == id)
        .values(
            state="finished" if back.finished else "active",
            next_fire_us=back.next_fire_us,
            fire_seq=table.c.fire_seq + 1,
            paused_us=null(),
            paused_reason=null(),
            updated_us=now,
        )
    )


def remove(tx: Tx, ids: Sequence[str], *, missing_ok: bool) -> int:
    """Delete schedules with their fires, not their jobs, and return how many.

    Raises `ScheduleNotFound` unless `missing_ok`. What an earlier try of this call deleted is counted and not missed.
    """
    table, fires = tx.tables.schedules, tx.tables.fires
    if not missing_ok and not tx.unanswered:
        for id in ids:
            locked(tx, id)
    if not ids:
        return 0
    removed = tx.execute(delete(table).where(table.c.id.in_(padded(ids)))).rowcount
    tx.execute(delete(fires).where(fires.c.schedule_id.in_(padded(ids))))
    tx.execute(delete(tx.tables.definitions).where(tx.tables.definitions.c.schedule_id.in_(padded(ids))))
    counts: list[int] = [removed, *tx.unanswered]
    return max(counts)


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
def _said(item: Definition) -> dict[str, Any]:
    """The columns that people decide."""
    return {
        "task": item.task,
        "args": item.args,
        "kwargs": item.kwargs,
        "trigger_json": item.trigger,
        "timezone": item.timezone,
        "policies": item.policies,
        "options": item.options,
        "tags": item.tags,
        "note": item.note,
    }


def _unless_over(compute: Callable[[], int | None], over_is_error: bool) -> int | None:
    try:
        return compute()
    except InvalidTrigger:
        if over_is_error:
            raise
        return None


def new_row(item: Definition, now: int, *, source: str) -> dict[str, Any]:
    """A new schedule with its first fire; one that never fires is `finished` in code, `InvalidTrigger` elsewhere."""
    trigger = trigger_from(item.trigger)
    next_fire = _unless_over(lambda: first_fire(trigger, now), over_is_error=source == "api")
    return _said(item) | {
        "id": item.id,
        "dialect": 1,
        "zone_fingerprint": fingerprint(item.timezone, now),
        "state": "finished" if next_fire is None else "active",
        "next_fire_us": next_fire,
        "source": source,
        "created_us": now,
        "updated_us": now,
    }


def edited_row(row: Row[Any], item: Definition, now: int, *, over_is_error: bool = True) -> dict[str, Any]:
    """What an edit changes: a new rule or zone computes the next fire anew, after what was fired already.

    A rule that will never fire again raises `InvalidTrigger`; in code, where it was fine once, it is `finished`.
    A `max_fires` that is reached finishes the schedule, one that is raised lets it go on.
    """
    values = _said(item) | {"rev": row.rev + 1, "updated_us": now}
    if _is_spent(item.policies, row):
        return values | {"next_fire_us": None, "state": "finished"}
    was_spent = row.state == "finished" and _is_spent(row.policies, row)
    if (row.trigger_json, row.timezone) != (item.trigger, item.timezone) or was_spent:
        values["next_fire_us"] = _unless_over(lambda: _next_after(row, item, now), over_is_error)
        values["zone_fingerprint"] = fingerprint(item.timezone, now)
        if values["next_fire_us"] is None:
            values["state"] = "finished"
        if row.state == "finished" and values["next_fire_us"] is not None:
            values["state"] = "active"
    if _tried(state_from, row.state) is None:
        over = values.get("next_fire_us", row.next_fire_us) is None
        values["state"] = "finished" if over else "active"
    return values


def _is_spent(policies: str, row: Row[Any]) -> bool:
    """Whether the schedule has had all the fires that these policies' `max_fires` allows."""
    known = _tried(policies_from, policies)
    return known is not None and spent(known, row.fires_count)


def _next_after(row: Row[Any], item: Definition, now: int) -> int | None:
    """The next fire after an edit, also of a row whose rule cannot be read: then anew, after what was fired already."""
    before = _tried(trigger_from, row.trigger_json)
    trigger = trigger_from(item.trigger)
    if row.next_fire_us is None:
        before = None  # finished: where it stopped is not where it goes on
    return edited(before, trigger, now, next_fire_us=row.next_fire_us, last_fire_us=row.last_fire_us)


def _tried(read: Callable[[str], T], text: str) -> T | None:
    try:
        return read(text)
    except OnebeatError:
        return None
