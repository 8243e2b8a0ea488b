"""Schedules as rows: declare, arbitrate between code versions, add, edit, pause, list."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import timedelta
from typing import Any, Literal, TypeVar

from sqlalchemy import Row, delete, func, null, select, update

from onebeat.errors import (
    ConfigurationError,
    InvalidTrigger,
    OnebeatError,
    ScheduleExists,
    ScheduleNotFound,
    StaleRevision,
)
from onebeat.model import payload
from onebeat.model.changes import edited, first_fire, resumed
from onebeat.model.checks import check_text
from onebeat.model.definition import Definition
from onebeat.model.info import Page, ScheduleInfo
from onebeat.model.schedule import spent
from onebeat.model.seams import Trigger
from onebeat.store import workers
from onebeat.store.database import Tx
from onebeat.store.fires import (
    FireReport,
    FireWriter,
    locked,
    options_from,
    policies_from,
    state_from,
    trigger_from,
    understood,
)
from onebeat.store.words import padded, word
from onebeat.timing.clock import from_us
from onebeat.timing.unread import Unread
from onebeat.timing.zones import fingerprint

CODE = word("code")
T = TypeVar("T")


# ── declared in code ──────────────────────────────────────────────────────────────────────────────────────────────────
def declare(tx: Tx, definitions: Sequence[Definition]) -> None:
    """Store what this code declares and put the definition in force that `arbitrate` chooses.

    Raises `ScheduleExists` when an id is taken by a schedule added at run time.
    """
    if not definitions:
        return
    now = tx.now()
    seen = [
        {"schedule_id": item.id, "hash": item.hash, "first_seen_us": now, "body": item.body}
        for item in sorted(definitions, key=lambda item: item.id)
    ]
    tx.execute(tx.dialect.insert_ignore(tx.tables.definitions), seen)
    rows = [_new_row(item, now, source="code") | {"definition_hash": item.hash} for item in definitions]
    tx.execute(tx.dialect.insert_ignore(tx.tables.schedules), sorted(rows, key=lambda row: str(row["id"])))
    c = tx.tables.schedules.c
    ids = padded([item.id for item in definitions])
    taken = tx.execute(select(c.id).where(c.id.in_(ids), c.source != CODE).order_by(c.id)).first()
    if taken is not None:
        raise ScheduleExists(
            f"schedule {taken.id!r} is declared in code, but one of that id was added at run time; "
            "remove that one or give the declared one another id="
        )
    arbitrate(tx)


def arbitrate(tx: Tx) -> list[str]:
    """Put the newest definition that a live worker advertises in force; orphan what none does. The ids that changed.

    "Newest" is by when a definition was first seen, so that a restarted old worker cannot win back (SEMANTICS 20).
    """
    c = tx.tables.schedules.c
    rows = tx.execute(select(c.id, c.definition_hash, c.state).where(c.source == CODE)).all()
    if not rows:
        return []
    chosen = in_force(tx)
    wrong = [row.id for row in rows if _needs_change(row, chosen.get(row.id))]
    if not wrong:
        return []
    now = tx.now()
    query = select(tx.tables.schedules).where(c.id.in_(padded(wrong))).order_by(c.id)
    locked = tx.execute(tx.dialect.lock_rows(query)).all()
    return [row.id for row in locked if _put_in_force(tx, row, chosen.get(row.id), now)]


def in_force(tx: Tx) -> dict[str, tuple[str, str]]:
    """Schedule id → (hash, body) of the definition that should be in force."""
    advertised = workers.advertised(tx)
    c = tx.tables.definitions.c
    known = tx.execute(select(c.schedule_id, c.hash, c.first_seen_us, c.body)) if advertised else ()
    best: dict[str, Row[Any]] = {}
    for row in known:
        if row.hash in advertised.get(row.schedule_id, ()):
            other = best.get(row.schedule_id)
            if other is None or (row.first_seen_us, row.hash) > (other.first_seen_us, other.hash):
                best[row.schedule_id] = row
    return {id: (row.hash, row.body) for id, row in best.items()}


def _needs_change(row: Row[Any], chosen: tuple[str, str] | None) -> bool:
    if chosen is None:
        return str(row.state) == "active"
    return bool(row.definition_hash != chosen[0] or row.state == "orphaned")


def _put_in_force(tx: Tx, row: Row[Any], chosen: tuple[str, str] | None, now: int) -> bool:
    if not _needs_change(row, chosen):
        return False
    table = tx.tables.schedules
    if chosen is None:
        values: dict[str, Any] = {"state": "orphaned"}
    else:
        definition = _readable_here(chosen[1])
        if definition is None:
            return False
        values = {} if row.overridden else _edited(row, definition, now, over_is_error=False)
        values |= {"definition_hash": chosen[0], "updated_us": now}
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


def _new_row(item: Definition, now: int, *, source: str) -> dict[str, Any]:
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


def _edited(row: Row[Any], item: Definition, now: int, *, over_is_error: bool = True) -> dict[str, Any]:
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


# ── added and edited at run time ──────────────────────────────────────────────────────────────────────────────────────
def add(tx: Tx, item: Definition, *, if_exists: Literal["error", "replace", "keep"]) -> None:
    """Store a schedule; over a finished one it is allowed unless it is to be kept. Raises `ScheduleExists`."""
    now = tx.now()
    table = tx.tables.schedules
    if tx.execute(select(table.c.id).where(table.c.id == item.id)).first() is None:
        new = tx.dialect.insert_ignore(table).values(_new_row(item, now, source="api"))
        if tx.execute(new).rowcount == 1:
            return
    if if_exists == "keep":
        return
    row = locked(tx, item.id)
    if row.state == "finished" and row.source == "api":
        fresh = _new_row(item, now, source="api") | {"rev": row.rev + 1, "fires_count": 0, "consecutive_skips": 0}
        del fresh["id"]
        fresh["next_fire_us"] = _next_after(row, item, now) or fresh["next_fire_us"]
        tx.execute(update(table).where(table.c.id == item.id).values(**fresh))
    elif if_exists == "error":
        raise ScheduleExists(f"schedule {item.id!r} exists ({row.source}, {row.state}); see if_exists= or update()")
    elif if_exists == "replace" and not _same(row, item):
        edit(tx, item, expected_rev=None, override=False)


def _same(row: Row[Any], item: Definition) -> bool:
    return _tried(state_from, row.state) is not None and all(
        getattr(row, name) == value for name, value in _said(item).items()
    )


def edit(tx: Tx, item: Definition, *, expected_rev: int | None, override: bool) -> None:
    """Change what people decide; `rev` counts it. Raises `StaleRevision`, `ScheduleNotFound`, `ConfigurationError`."""
    row = locked(tx, item.id)
    if expected_rev is not None and row.rev != expected_rev:
        raise StaleRevision(
            f"schedule {item.id!r} is at rev {row.rev}, not {expected_rev}; read it again and decide anew"
        )
    if row.source == "code" and not override:
        raise ConfigurationError(f"schedule {item.id!r} is declared in code; change it there, or pass override=True")
    if _same(row, item):
        return
    values = _edited(row, item, tx.now())
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
    """Delete schedules with their fires; their jobs stay. Raises `ScheduleNotFound` unless `missing_ok`."""
    table, fires = tx.tables.schedules, tx.tables.fires
    if not missing_ok:
        for id in ids:
            locked(tx, id)
    if not ids:
        return 0
    removed = tx.execute(delete(table).where(table.c.id.in_(padded(ids)))).rowcount
    tx.execute(delete(fires).where(fires.c.schedule_id.in_(padded(ids))))
    tx.execute(delete(tx.tables.definitions).where(tx.tables.definitions.c.schedule_id.in_(padded(ids))))
    return removed


# ── looked at ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def definition(tx: Tx, id: str) -> Definition:
    """What people decided about the schedule; raises `ScheduleNotFound`."""
    return _definition(_row(tx, id))


def _definition(row: Row[Any]) -> Definition:
    return Definition(
        id=row.id,
        task=row.task,
        args=row.args,
        kwargs=row.kwargs,
        trigger=row.trigger_json,
        timezone=row.timezone,
        policies=row.policies,
        options=row.options,
        tags=row.tags,
        note=row.note,
    )


def trigger_of(item: Definition) -> Trigger:
    """The definition's trigger as a value; raises `ConfigurationError` when it cannot be read."""
    trigger: Trigger = _part(item.id, ["trigger"], lambda: {"trigger": trigger_from(item.trigger)})["trigger"]
    return trigger


def options_of(item: Definition, named: Collection[str] = ()) -> dict[str, Any]:
    """The definition's options as `declare` takes them, without those that are `named` anew.

    Raises `ConfigurationError` when one that is not named cannot be read.
    """
    parts: dict[tuple[str, ...], Callable[[], dict[str, Any]]] = {
        ("misfire_grace", "catch_up", "overlap", "jitter", "max_fires"): lambda: _policy_options(item.policies),
        ("queue", "priority"): lambda: _job_options(item.options),
        ("args",): lambda: {"args": tuple(payload.decode(item.args))},
        ("kwargs",): lambda: {"kwargs": dict(payload.decode(item.kwargs))},
        ("tags",): lambda: {"tags": tuple(payload.decode(item.tags))},
        ("note",): lambda: {"note": item.note},
    }
    found: dict[str, Any] = {}
    for names, read in parts.items():
        if not set(names) <= set(named):
            found |= _part(item.id, names, read)
    return found


def _part(id: str, names: Sequence[str], read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return read()
    except (OnebeatError, LookupError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"what schedule {id!r} holds of {', '.join(names)} cannot be read here: {error!r:.200}. "
            'Name all of that in the update, or replace the schedule with add(…, if_exists="replace")'
        ) from error


def _job_options(text: str) -> dict[str, Any]:
    stored = options_from(text)
    return {"queue": stored["own_queue"], "priority": stored["own_priority"]}


def _policy_options(text: str) -> dict[str, Any]:
    policies = policies_from(text)
    grace = policies.misfire_grace_us
    return {
        "misfire_grace": None if grace is None else timedelta(microseconds=grace),
        "catch_up": policies.catch_up,
        "overlap": str(policies.overlap),
        "jitter": timedelta(microseconds=policies.jitter_us),
        "max_fires": policies.max_fires,
    }


def _row(tx: Tx, id: str) -> Row[Any]:
    table = tx.tables.schedules
    row = tx.execute(select(table).where(table.c.id == id)).first()
    if row is None or row.id != id:  # MySQL and MariaDB take "a " for "a"
        raise ScheduleNotFound(f"no schedule {id!r}; `schedules.list()` shows what there is")
    return row


def get(tx: Tx, id: str) -> ScheduleInfo:
    """The schedule as it is now; raises `ScheduleNotFound`."""
    return _infos(tx, [_row(tx, id)])[0]


def listing(
    tx: Tx,
    *,
    tag: str | None,
    task: str | None,
    state: str | None,
    source: str | None,
    prefix: str | None,
    limit: int,
    cursor: str | None,
) -> Page[ScheduleInfo]:
    """Schedules that fit every filter given, by id."""
    table = tx.tables.schedules
    c = table.c
    query = select(table).order_by(c.id).limit(limit + 1)
    for column, value in ((c.task, task), (c.state, state), (c.source, source)):
        if value is not None:
            query = query.where(column == value)
    if tag is not None:
        query = query.where(c.tags.contains(payload.canonical(tag), autoescape=True))
    if prefix is not None:
        query = query.where(c.id.startswith(prefix, autoescape=True))
    if cursor is not None:
        query = query.where(c.id > cursor)
    rows = tx.execute(query).all()
    shown = rows[:limit]
    return Page(tuple(_infos(tx, shown)), shown[-1].id if len(rows) > limit else None)


def _infos(tx: Tx, rows: Iterable[Row[Any]]) -> list[ScheduleInfo]:
    found = list(rows)
    last = _last_jobs(tx, [row.id for row in found])
    return [_info(row, last.get(row.id)) for row in found]


def _last_jobs(tx: Tx, ids: Collection[str]) -> dict[str, Row[Any]]:
    """The newest job of each schedule, for its last status; derived, so that it cannot drift."""
    if not ids:
        return {}
    c = tx.tables.jobs.c
    newest = (
        select(c.schedule_id, func.max(c.fire_us).label("fire_us"))
        .where(c.schedule_id.in_(padded(sorted(ids))))
        .group_by(c.schedule_id)
        .subquery()
    )
    query = select(c.schedule_id, c.state, c.error).join(
        newest, (c.schedule_id == newest.c.schedule_id) & (c.fire_us == newest.c.fire_us)
    )
    return {row.schedule_id: row for row in tx.execute(query)}


def _info(row: Row[Any], last: Row[Any] | None) -> ScheduleInfo:
    shown, problem = _shown(row)
    return ScheduleInfo(
        id=row.id,
        task=row.task,
        trigger=shown.get("trigger") or Unread(str(problem)),
        args=shown.get("args", ()),
        kwargs=shown.get("kwargs", {}),
        state=row.state,
        next_fire=None if row.next_fire_us is None else from_us(row.next_fire_us),
        last_fire=None if row.last_fire_us is None else from_us(row.last_fire_us),
        last_status=None if last is None else last.state,
        last_error=None if last is None else last.error,
        rev=row.rev,
        source=row.source,
        tags=shown.get("tags", ()),
        note=row.note,
        paused_reason=row.paused_reason,
        created_at=from_us(row.created_us),
        updated_at=from_us(row.updated_us),
        policies=shown.get("policies"),
        fires_count=row.fires_count,
        problem=problem,
    )


def _shown(row: Row[Any]) -> tuple[dict[str, Any], str | None]:
    """What can be read of a row, and the first problem with the rest: one bad row must not hide the others."""
    item = _definition(row)
    parts: dict[str, Callable[[], Any]] = {
        "trigger": lambda: trigger_from(item.trigger),
        "policies": lambda: policies_from(item.policies),
        "state": lambda: state_from(row.state),
        "args": lambda: tuple(payload.decode(item.args)),
        "kwargs": lambda: dict(payload.decode(item.kwargs)),
        "options": lambda: options_from(item.options),
        "tags": lambda: tuple(payload.decode(item.tags)),
    }
    found: dict[str, Any] = {}
    problem: str | None = None
    for name, read in parts.items():
        try:
            found[name] = read()
        except (OnebeatError, LookupError, TypeError, ValueError) as error:
            problem = problem or f"{name}: {error}"
    return found, problem
