"""Old fire records go, and finished schedules with them; what is young, running or declared in code stays."""

from __future__ import annotations

import pytest

from onebeat.engine.sweeper import Retention, prune
from onebeat.model.policies import CatchUp
from onebeat.store import retention
from onebeat.store.schedules import declare
from onebeat.timing.clock import DAY, HOUR, SECOND, from_us
from onebeat.timing.triggers import At, Every
from tests.conftest import MakeDatabase
from tests.guarantees.arrange import added
from tests.support.builders import registered
from tests.support.days import Days, a_schedule
from tests.support.virtual import START, VirtualClock

MONTH = 30 * DAY


@pytest.fixture
async def days(database_url: str, make_database: MakeDatabase) -> Days:
    clock = VirtualClock(START - START % HOUR)
    return Days(await make_database(database_url, database_clock=clock), database_url, clock)


async def ids(days: Days) -> list[str]:
    return [info.id for info in await days.schedules.list()]


async def test_old_fire_records_are_deleted_in_batches_and_young_ones_stay(days: Days) -> None:
    await added(days.database, a_schedule(policies={"catch_up": CatchUp(max=1_000, window=MONTH // SECOND)}))
    await days.away(10 * 86_400)
    days.clock.advance(20 * 86_400)
    await days.away(3600)  # thirty days and an hour after the first
    assert len(await days.verdicts()) == 241 + 480
    days.clock.advance(10 * 86_400)
    assert await days.database.write(retention.prune_fires, MONTH, 100) == 100
    assert await days.database.write(retention.prune_fires, MONTH, 1_000) == 140
    assert await days.database.write(retention.prune_fires, MONTH, 1_000) == 0
    assert len(await days.verdicts()) == 481


async def test_a_schedule_keeps_its_newest_records_when_there_are_very_many(
    days: Days, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MOST_FIRES", 50)
    await added(days.database, a_schedule(), a_schedule("daily", Every(days=1)))
    await days.away(4 * 86_400)
    assert await days.database.read(retention.crowded, 50) == ["s"]
    assert await days.database.write(retention.prune_crowd, "s", 50, 10) == 10
    newest = [fire for fire in await days.verdicts() if fire.schedule_id == "s"][-50:]
    await prune(days.database, Retention(fires=None))
    assert len(await days.verdicts()) == 86 + 4
    await prune(days.database, Retention())
    assert [fire for fire in await days.verdicts() if fire.schedule_id == "s"] == newest
    assert len(await days.verdicts()) == 50 + 4


async def test_a_finished_schedule_goes_when_its_fires_have_gone(days: Days) -> None:
    soon = from_us(days.clock.now + HOUR)
    await added(days.database, a_schedule("once", At(soon)), a_schedule("hourly"), a_schedule("paused"))
    await days.schedules.pause("paused")
    await days.away(3600)
    assert (await days.schedules.get("once")).state == "finished"
    days.clock.advance(29 * 86_400)
    await prune(days.database, Retention())
    assert await ids(days) == ["hourly", "once", "paused"]
    await days.schedules.fire_now("once")  # a record of its own keeps it
    days.clock.advance(29 * 86_400)
    await prune(days.database, Retention())
    assert await ids(days) == ["hourly", "once", "paused"]
    days.clock.advance(2 * 86_400)
    await prune(days.database, Retention(fires=None))
    assert await ids(days) == ["hourly", "once", "paused"]
    await prune(days.database, Retention())
    assert await ids(days) == ["hourly", "paused"]


async def test_many_finished_schedules_go_in_batches(days: Days) -> None:
    soon = from_us(days.clock.now + HOUR)
    await added(days.database, *(a_schedule(f"s{n}", At(soon), {"overlap": "allow"}) for n in range(12)))
    await days.away(3600)
    days.clock.advance(31 * 86_400)
    assert await days.database.write(retention.prune_finished, MONTH) == 0
    assert await days.database.write(retention.prune_fires, MONTH) == 12
    assert await days.database.write(retention.prune_finished, MONTH, 5) == 5
    assert await days.database.write(retention.prune_finished, MONTH, 50) == 7


async def test_what_code_declares_stays_though_it_is_over(days: Days) -> None:
    item = a_schedule(trigger=At(from_us(days.clock.now - HOUR)))
    await registered(days.database, definitions={"s": item.hash})
    await days.database.write(declare.declare, [item])
    assert (await days.schedules.get("s")).state == "finished"
    days.clock.advance(100 * 86_400)
    await prune(days.database, Retention())
    assert await ids(days) == ["s"]
