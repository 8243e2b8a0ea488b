"""A schedule's row of a newer version, or a damaged one: shown, repaired or removed, and in nobody's way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from onebeat.errors import ConfigurationError, InvalidTrigger, ScheduleNotFound
from onebeat.model.definition import Definition
from onebeat.scheduler.scheduler import Scheduler
from onebeat.store.connection.database import Database
from onebeat.store.tx import Tx
from onebeat.tasks.context import JobContext
from onebeat.timing.triggers import At, Cron, Every
from tests.support.builders import registered
from tests.support.databases import waits_until

EPOCH_DAY = date(1970, 1, 1).toordinal()
Spoil = Callable[..., Awaitable[None]]

DAMAGE = [
    {"trigger_json": '{"kind":"of the future"}'},
    {"trigger_json": "{"},
    {"policies": "[1]"},
    {"options": '{"queue":"default"}'},
    {"state": "dreaming"},
    {"args": "{", "kwargs": "[]", "tags": "7"},
    {"timezone": "Mars/Olympus", "trigger_json": '{"anchor_us":0,"interval_us":"x","kind":"every"}'},
]


@pytest.fixture
async def scheduler(database_url: str) -> AsyncIterator[Scheduler]:
    """A client with the task `note`."""
    scheduler = Scheduler(database_url, role="client")
    with_note(scheduler)
    async with scheduler:
        yield scheduler


def with_note(scheduler: Scheduler, seen: list[datetime | None] | None = None) -> None:
    @scheduler.task(name="note")
    async def note(context: JobContext) -> None:
        if seen is not None:
            seen.append(context.fire_time)


@pytest.fixture
def spoil(database: Database) -> Spoil:
    """Writes over columns of a schedule's row: `await spoil(id, column=value)`."""

    async def write(id: str, **values: Any) -> None:
        table = database.tables.schedules
        await database.write(lambda tx: tx.execute(update(table).where(table.c.id == id).values(**values)) and None)

    return write


async def test_a_row_that_cannot_be_read_is_shown_replaced_and_removed(scheduler: Scheduler, spoil: Spoil) -> None:
    schedules = scheduler.schedules
    await schedules.add("good", "note", Every(3600))
    for damage in DAMAGE:
        before = await schedules.add("bad", "note", Every(3600), tags=["x"], note="mine")
        await spoil("bad", **damage)
        bad, good = await schedules.list()
        assert (bad.id, bad.note, good.problem) == ("bad", "mine", None)
        assert bad.problem is not None, damage
        assert "cannot be read by this version" in str(await schedules.why("bad", datetime.now(UTC)))
        assert "trigger_json" not in damage or "cannot be read" in bad.trigger.describe()
        assert (await schedules.add("bad", "note", Every(60), if_exists="keep")).problem == bad.problem
        repaired = await schedules.add("bad", "note", Every(3600), tags=["x"], note="mine", if_exists="replace")
        assert (repaired.problem, repaired.state, repaired.trigger) == (None, "active", Every(3600)), damage
        assert (repaired.rev, repaired.tags, repaired.next_fire) == (before.rev + 1, ("x",), before.next_fire)
        await spoil("bad", **damage)
        await schedules.remove("bad")
        with pytest.raises(ScheduleNotFound):
            await schedules.get("bad")


async def test_an_update_repairs_what_it_names_and_says_what_it_did_not(scheduler: Scheduler, spoil: Spoil) -> None:
    schedules = scheduler.schedules
    await schedules.add("bad", "note", Cron("0 3 * * *", timezone="Asia/Tokyo"), overlap="allow", priority=7)
    await spoil("bad", trigger_json='{"kind":"of the future"}', tags="{")
    with pytest.raises(ConfigurationError, match=r"holds of tags cannot be read .* if_exists=.replace"):
        await schedules.update("bad", trigger=Every(60))
    with pytest.raises(ConfigurationError, match="holds of trigger cannot be read"):
        await schedules.update("bad", tags=[])
    repaired = await schedules.update("bad", trigger=Every(60), tags=["x"])
    assert (repaired.problem, repaired.tags, str(repaired.policies.overlap)) == (None, ("x",), "allow")
    assert repaired.next_fire is not None
    assert datetime.now(UTC) < repaired.next_fire <= datetime.now(UTC) + timedelta(minutes=2), "anew, from now"
    await spoil("bad", state="dreaming", timezone="Mars/Olympus")
    assert (await schedules.update("bad", trigger=Cron("0 4 * * *"))).trigger == Cron("0 4 * * *", timezone="UTC")


async def test_what_needs_the_rule_says_that_it_cannot_be_read(scheduler: Scheduler, spoil: Spoil) -> None:
    schedules = scheduler.schedules
    await schedules.add("bad", "note", Every(3600))
    await spoil("bad", trigger_json='{"kind":"of the future"}')
    with pytest.raises(ConfigurationError, match=r"schedule 'bad' cannot be read here: .*of the future.* or remove it"):
        await schedules.fire_now("bad")
    assert (await schedules.pause("bad")).state == "paused"
    with pytest.raises(ConfigurationError, match="cannot be read here"):
        await schedules.resume("bad")
    assert list(await schedules.upcoming("bad")) == []
    with pytest.raises(InvalidTrigger, match="give another"):
        await schedules.update("bad", trigger=(await schedules.get("bad")).trigger)


async def test_a_worker_starts_beside_rows_it_cannot_read_and_fires_the_others(
    database_url: str, scheduler: Scheduler, spoil: Spoil
) -> None:
    for number, damage in enumerate(DAMAGE):
        overdue, rezoned = f"overdue{number}", f"rezoned{number}"
        for id in (overdue, rezoned):
            await scheduler.schedules.add(id, "note", Cron("0 3 * * *", timezone="Europe/Berlin"))
        await spoil(overdue, **({"next_fire_us": 1} | damage))
        await spoil(rezoned, **({"zone_fingerprint": f"{date.today().toordinal() - EPOCH_DAY}:old"} | damage))
    await scheduler.schedules.add("good", "note", Every(1))  # due after all the others
    seen: list[datetime | None] = []
    worker = Scheduler(database_url, poll=0.1)
    with_note(worker, seen)
    async with worker:
        await waits_until(lambda: bool(seen))


async def test_older_code_leaves_a_newer_definition_to_newer_workers(database_url: str, database: Database) -> None:
    """A rule of a kind this code does not know is declared and in force; an older worker's start changes nothing."""
    newer = Definition(id="beat", task="beat", trigger='{"kind":"moon"}', timezone="UTC", policies="{}")
    async with declaring(database_url):
        pass
    await registered(database, definitions={"beat": newer.hash})

    def declare(tx: Tx) -> None:
        seen = {"schedule_id": "beat", "hash": newer.hash, "first_seen_us": tx.now(), "body": newer.body}
        tx.execute(tx.tables.definitions.insert(), [seen])

    await database.write(declare)
    async with declaring(database_url) as older:
        found = await older.schedules.get("beat")
    assert (found.state, found.rev, found.trigger) == ("active", 1, Every(3600))


def declaring(url: str) -> Scheduler:
    """A worker whose code declares the schedule `beat`."""
    scheduler = Scheduler(url, poll=0.1)

    @scheduler.every(3600, id="beat", name="beat")
    async def beat() -> None: ...

    return scheduler


async def test_keep_keeps_whatever_the_new_rule_says(scheduler: Scheduler) -> None:
    schedules = scheduler.schedules
    past = At(datetime.now(UTC) - timedelta(hours=1))
    first = await schedules.add("a", "note", Every(3600))
    assert await schedules.add("a", "note", past, if_exists="keep") == first
    with pytest.raises(InvalidTrigger, match="past"):
        await schedules.add("new", "note", past, if_exists="keep")


async def test_keep_leaves_a_finished_one_finished(scheduler: Scheduler, spoil: Spoil) -> None:
    schedules = scheduler.schedules
    later = At(datetime.now(UTC) + timedelta(hours=1))
    await schedules.add("once", "note", later)
    await spoil("once", state="finished", next_fire_us=None)
    assert (await schedules.add("once", "note", later, if_exists="keep")).state == "finished"
    assert (await schedules.add("once", "note", later)).state == "active"
