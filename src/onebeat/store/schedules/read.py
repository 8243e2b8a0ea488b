"""Schedules as people look at them: what was decided, one, a list; a row that cannot be read hides no other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Row, Select, select

from onebeat.errors import ConfigurationError, OnebeatError, ScheduleNotFound
from onebeat.model import payload
from onebeat.model.definition import Definition
from onebeat.model.fired import fire_time
from onebeat.model.info import Page, ScheduleInfo
from onebeat.model.protocols import Trigger
from onebeat.store.schedules.rows import locked, options_from, policies_from, state_from, trigger_from
from onebeat.store.sql import padded
from onebeat.store.tx import Tx
from onebeat.timing.clock import from_us
from onebeat.timing.unreadable import UnreadableTrigger

AT_ONCE = 500  # schedules of one statement


def definition(tx: Tx, id: str) -> tuple[Definition, int]:
    """What people decided about the schedule, and its `rev`; raises `ScheduleNotFound`.

    In a transaction of the caller the row is locked, so that an edit may follow at any isolation level.
    """
    row = locked(tx, id) if tx.is_callers else _row(tx, id)
    return _definition(row), row.rev


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
    query = select(table).where(table.c.id == id)
    row = tx.execute(query).first()
    if row is None and tx.is_callers:  # its snapshot may be older than the row
        row = tx.execute(tx.dialect.lock_rows(query)).first()
    if row is None or row.id != id:  # MySQL and MariaDB take "a " for "a"
        raise ScheduleNotFound(f"no schedule {id!r}; `schedules.list()` shows what there is")
    return row


def get(tx: Tx, id: str) -> ScheduleInfo:
    """The schedule as it is now; raises `ScheduleNotFound`."""
    return get_many(tx, [id])[0]


def get_many(tx: Tx, ids: Sequence[str]) -> list[ScheduleInfo]:
    """The schedules as they are now, in the order of `ids`; raises `ScheduleNotFound`."""
    if len(ids) == 1:
        return _infos(tx, [_row(tx, ids[0])])
    table = tx.tables.schedules
    infos: list[ScheduleInfo] = []
    for start in range(0, len(ids), AT_ONCE):
        part = ids[start : start + AT_ONCE]
        found = {row.id: row for row in tx.execute(select(table).where(table.c.id.in_(padded(part))))}
        infos += _infos(tx, [found.get(id) or _row(tx, id) for id in part])
    return infos


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
    """The job of each schedule that tells its last status; derived, so that it cannot drift.

    It is the job that has the newest fire, of those that have not ended and the one that ended last: two entries of an
    index, whatever history there is.
    """
    if not ids:
        return {}
    c = tx.tables.jobs.c
    candidates = tx.execute(tx.prepared(_candidates), {"b_ids": padded(sorted(ids))})
    jobs = [id for row in candidates for id in row if id is not None]
    if not jobs:
        return {}
    query = select(c.schedule_id, c.state, c.error).where(c.id.in_(padded(jobs))).order_by(c.fire_us, c.id)
    return {row.schedule_id: row for row in tx.execute(query)}


def _candidates(tx: Tx) -> Select[Any]:
    schedule, job = tx.tables.schedules.c, tx.tables.jobs.alias("job")
    newest = (
        select(job.c.id)
        .where(job.c.schedule_id == schedule.id)
        .order_by(job.c.finished_us.desc(), job.c.fire_us.desc())
    )
    found = [
        newest.where(ended).limit(1).correlate(tx.tables.schedules).scalar_subquery()
        for ended in (job.c.finished_us.is_(None), job.c.finished_us.is_not(None))
    ]
    return select(*found).where(tx.dialect.among(schedule.id, "b_ids"))


def _info(row: Row[Any], last: Row[Any] | None) -> ScheduleInfo:
    shown, problem = _shown(row)
    return ScheduleInfo(
        id=row.id,
        task=row.task,
        trigger=shown.get("trigger") or UnreadableTrigger(str(problem)),
        args=shown.get("args", ()),
        kwargs=shown.get("kwargs", {}),
        state=row.state,
        next_fire=None if row.next_fire_us is None else fire_time(row.next_fire_us, row.timezone),
        last_fire=None if row.last_fire_us is None else fire_time(row.last_fire_us, row.timezone),
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
