"""Old fire records go, and finished schedules with them; what is young, running or declared in code stays."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from onebeat.engine.sweeper import RetentionAges, prune
from onebeat.model.policies import CatchUp
from onebeat.store import retention, workers
from onebeat.store.schedules import declare
from onebeat.timing.clock import DAY, HOUR, SECOND, from_us
from onebeat.timing.triggers import At, Every
from tests.conftest import MakeDatabase
from tests.guarantees.arrange import added
from tests.support.builders import registered
from tests.support.simulated_worker import SimulatedWorker, a_schedule
from tests.support.virtual import START, VirtualClock

MONTH = 30 * DAY


@pytest.fixture
async def simulated(database_url: str, make_database: MakeDatabase) -> SimulatedWorker:
    clock = VirtualClock(START - START % HOUR)
    return SimulatedWorker(await make_database(database_url, database_clock=clock), database_url, clock)


async def ids(simulated: SimulatedWorker) -> list[str]:
    return [info.id for info in await simulated.schedules.list()]


async def test_old_fire_records_are_deleted_in_batches_and_young_ones_stay(simulated: SimulatedWorker) -> None:
    await added(simulated.database, a_schedule(policies={"catch_up": CatchUp(max=1_000, window=MONTH // SECOND)}))
    await simulated.away(10 * 86_400)
    simulated.clock.advance(20 * 86_400)
    await simulated.away(3600)  # thirty days and an hour after the first
    assert len(await simulated.verdicts()) == 241 + 480
    simulated.clock.advance(10 * 86_400)
    assert await simulated.database.write(retention.prune_fires, MONTH, 100) == 100
    assert await simulated.database.write(retention.prune_fires, MONTH, 1_000) == 140
    assert await simulated.database.write(retention.prune_fires, MONTH, 1_000) == 0
    assert len(await simulated.verdicts()) == 481


async def test_a_schedule_keeps_its_newest_records_when_there_are_very_many(
    simulated: SimulatedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MOST_FIRES", 50)
    await added(simulated.database, a_schedule(), a_schedule("daily", Every(days=1)))
    await simulated.away(4 * 86_400)
    assert await simulated.database.read(retention.following, "") == ["daily", "s"]
    assert await simulated.database.read(retention.crowded, ["daily", "s"], 50) == ["s"]
    assert await simulated.database.read(retention.frequent, DAY, 96) == ["s"]
    assert await simulated.database.read(retention.frequent, DAY, 97) == []
    assert await simulated.database.write(retention.prune_crowd, "s", 50, 10) == 10
    newest = [fire for fire in await simulated.verdicts() if fire.schedule_id == "s"][-50:]
    await prune(simulated.database, RetentionAges(fires=None))
    assert len(await simulated.verdicts()) == 86 + 4
    await prune(simulated.database, RetentionAges())
    assert [fire for fire in await simulated.verdicts() if fire.schedule_id == "s"] == newest
    assert len(await simulated.verdicts()) == 50 + 4


async def test_a_finished_schedule_goes_when_its_fires_have_gone(simulated: SimulatedWorker) -> None:
    soon = from_us(simulated.clock.now + HOUR)
    await added(simulated.database, a_schedule("once", At(soon)), a_schedule("hourly"), a_schedule("paused"))
    await simulated.schedules.pause("paused")
    await simulated.away(3600)
    assert (await simulated.schedules.get("once")).state == "finished"
    simulated.clock.advance(29 * 86_400)
    await prune(simulated.database, RetentionAges())
    assert await ids(simulated) == ["hourly", "once", "paused"]
    await simulated.schedules.fire_now("once")  # a record of its own keeps it
    simulated.clock.advance(29 * 86_400)
    await prune(simulated.database, RetentionAges())
    assert await ids(simulated) == ["hourly", "once", "paused"]
    simulated.clock.advance(2 * 86_400)
    await prune(simulated.database, RetentionAges(fires=None))
    assert await ids(simulated) == ["hourly", "once", "paused"]
    await prune(simulated.database, RetentionAges())
    assert await ids(simulated) == ["hourly", "paused"]


async def test_many_finished_schedules_go_in_batches(simulated: SimulatedWorker) -> None:
    soon = from_us(simulated.clock.now + HOUR)
    await added(simulated.database, *(a_schedule(f"s{n}", At(soon), {"overlap": "allow"}) for n in range(12)))
    await simulated.away(3600)
    simulated.clock.advance(31 * 86_400)
    assert await simulated.database.write(retention.prune_finished, MONTH) == 0
    assert await simulated.database.write(retention.prune_fires, MONTH) == 12
    assert await simulated.database.write(retention.prune_finished, MONTH, 5) == 5
    assert await simulated.database.write(retention.prune_finished, MONTH, 50) == 7


async def test_what_code_declares_stays_though_it_is_over(simulated: SimulatedWorker) -> None:
    item = a_schedule(trigger=At(from_us(simulated.clock.now - HOUR)))
    await registered(simulated.database, definitions={"s": item.hash})
    await simulated.database.write(declare.declare, [item])
    assert (await simulated.schedules.get("s")).state == "finished"
    simulated.clock.advance(100 * 86_400)
    await prune(simulated.database, RetentionAges())
    assert await ids(simulated) == ["s"]


async def test_a_definition_goes_a_month_after_the_last_worker_that_had_it(simulated: SimulatedWorker) -> None:
    old, new = a_schedule(trigger=Every(hours=1)), a_schedule(trigger=Every(hours=2))
    other = a_schedule("other")
    database, lease = simulated.database, 365 * DAY

    async def hashes() -> set[str]:
        rows = await database.read(lambda tx: tx.execute(select(tx.tables.definitions.c.hash)).all())
        return {row.hash for row in rows}

    leaving = await registered(database, definitions={"s": old.hash}, lease=lease)
    await database.write(declare.declare, [old])
    await registered(database, definitions={"s": new.hash, "other": other.hash}, lease=lease)
    simulated.clock.advance(1)
    await database.write(declare.declare, [new, other])
    simulated.clock.advance(40 * 86_400)
    await prune(database, RetentionAges())
    assert await hashes() == {old.hash, new.hash, other.hash}, "live workers have them"
    await database.write(workers.stop, leaving)
    simulated.clock.advance(29 * 86_400)
    await prune(database, RetentionAges())
    assert await hashes() == {old.hash, new.hash, other.hash}
    simulated.clock.advance(2 * 86_400)
    await prune(database, RetentionAges())
    assert await hashes() == {new.hash, other.hash}
    assert (await simulated.schedules.get("s")).trigger == Every(hours=2)


async def test_a_definition_in_force_stays_without_any_worker(simulated: SimulatedWorker) -> None:
    item = a_schedule()
    await registered(simulated.database, definitions={"s": item.hash}, lease=SECOND)
    await simulated.database.write(declare.declare, [item])
    simulated.clock.advance(100 * 86_400)
    assert await simulated.database.write(declare.prune) == 0


async def test_a_worker_that_declares_an_old_definition_keeps_it(simulated: SimulatedWorker) -> None:
    """Also while the pruning has not yet seen that this worker is there: its row alone says so."""
    old, new = a_schedule(trigger=Every(hours=1)), a_schedule(trigger=Every(hours=2))
    for item in (old, new):
        await registered(simulated.database, definitions={"s": item.hash}, lease=SECOND)
        await simulated.database.write(declare.declare, [item])
        simulated.clock.advance(2)
    simulated.clock.advance(40 * 86_400)
    await simulated.database.write(declare.declare, [old])
    assert await simulated.database.write(declare.prune) == 0
    simulated.clock.advance(40 * 86_400)
    assert await simulated.database.write(declare.prune) == 1
