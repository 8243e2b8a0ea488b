"""Short ways to arrange what the guarantee tests need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, or_

from onebeat.model import payload
from onebeat.model.definition import Definition
from onebeat.model.policies import Policies
from onebeat.store.connection.database import Database
from onebeat.store.schedules import edit, fire as fire_rows
from onebeat.store.schedules.fire_writer import FireReport
from onebeat.store.tx import Tx
from onebeat.timing.triggers import Every

LEASE = 3_000_000  # microseconds
OPTIONS = {"queue": "default", "priority": 0, "retry": None, "timeout": None, "max_attempts": 3, "at_most_once": False}


def a_schedule(id: str = "beat", seconds: float = 1, **policies: Any) -> Definition:
    """Each second, every instant of it: overlap allowed, all caught up."""
    chosen = Policies(**({"overlap": "allow", "catch_up": "all"} | policies))
    return Definition(
        id=id,
        task="work",
        trigger=payload.canonical(Every(seconds).to_json()),
        timezone="UTC",
        policies=payload.canonical(chosen.to_json()),
        options=payload.canonical(OPTIONS),
    )


async def added(database: Database, *items: Definition) -> None:
    """The schedules are in force from now on."""
    for item in items:
        await database.write(edit.add, item, if_exists="error")


def fire(worker_id: str = "w" * 32, careful: bool = False) -> tuple[Callable[..., FireReport], dict[str, Any]]:
    """What a dispatcher's tick runs in its transaction."""
    return fire_rows.fire_due, {
        "worker_id": worker_id,
        "hashes": (),
        "new_tracking_id": lambda: "t" * 32,
        "limit": 50,
        "careful": careful,
    }


async def fired(database: Database, **options: Any) -> FireReport:
    """One tick of a dispatcher."""
    function, values = fire(**options)
    return await database.write(function, **values)


def instants(report: FireReport) -> Sequence[int]:
    """What a tick decided, in microseconds."""
    return [item.fire_us for item in report.fired]


def or_whatever(tx: Tx, given: Any) -> ColumnElement[bool]:
    """No compare-and-set: whatever became of the schedule since it was read."""
    c = tx.tables.schedules.c
    return or_(c.next_fire_us >= given.b_expected, c.rev >= given.b_rev)
