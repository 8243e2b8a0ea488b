"""A schedule's row as values; a row that a newer version wrote, or that is damaged, says so."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from sqlalchemy import Row, select

from onebeat.errors import ConfigurationError, OnebeatError, ScheduleNotFound
from onebeat.model import payload
from onebeat.model.policies import Policies, ScheduleState
from onebeat.model.schedule import Schedule
from onebeat.store.tx import Tx
from onebeat.timing import triggers
from onebeat.timing.rule import Rule

SCHEDULE_COLUMNS = (  # what `as_schedule` reads
    "id",
    "options",
    "trigger_json",
    "policies",
    "state",
    "next_fire_us",
    "last_fire_us",
    "fires_count",
    "consecutive_skips",
)
JOB_OPTIONS = {"queue", "priority", "max_attempts", "timeout", "at_most_once"}  # what a fire's job is made with


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
