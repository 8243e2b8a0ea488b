"""Zone data that changed is noticed when a worker starts and once a day, on every database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random

import pytest
from sqlalchemy import update

from onebeat.engine.sweeper import RetentionAges, Sweeper
from onebeat.engine.wakeups import Wakeups
from onebeat.errors import DatabaseUnavailable
from onebeat.scheduler.scheduler import Scheduler
from onebeat.store.connection.database import Database
from onebeat.store.schedules import rezone
from onebeat.store.tx import Tx
from onebeat.tasks.router import TaskRouter
from onebeat.timing.clock import DAY, HOUR, SECOND, from_us
from onebeat.timing.triggers import Cron
from tests.guarantees.arrange import added
from tests.support import rows
from tests.support.builders import identity_of
from tests.support.simulated_worker import SimulatedWorker, a_schedule
from tests.support.virtual import ProcessClock

NIGHTLY = Cron("30 2 * * *", "Europe/Berlin")
Spoil = Callable[[Database, int], Awaitable[None]]


@pytest.fixture
def spoil() -> Spoil:
    """Writes the next fire and the fingerprint that a process with other zone data would have left."""

    async def write(database: Database, next_fire_us: int) -> None:
        table = database.tables.schedules
        values = {"next_fire_us": next_fire_us, "zone_fingerprint": "20000:" + "0" * 24}
        await database.write(lambda tx: tx.execute(update(table).values(**values)) and None)

    return write


async def test_zone_data_that_cannot_be_compared_now_is_no_reason_not_to_start(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(tx: Tx) -> list[rezone.Zone]:
        raise DatabaseUnavailable("the database took longer over a statement than its limit")

    monkeypatch.setattr(rezone, "outdated", refuse)
    async with Scheduler(database_url, drain=2) as scheduler:
        assert (await scheduler.health()).worker == "working"


async def test_a_worker_that_starts_moves_the_next_fires_by_its_own_data(
    database_url: str, database: Database, spoil: Spoil
) -> None:
    router = TaskRouter()

    @router.task(name="work")
    async def work() -> None: ...

    client, worker = Scheduler(database_url, role="client"), Scheduler(database_url, drain=2)
    for scheduler in (client, worker):
        scheduler.include(router)
    async with client:
        right = (await client.schedules.add("s", work, NIGHTLY)).next_fire
        assert right is not None
        await spoil(database, round(right.timestamp()) * SECOND + HOUR)
        assert (await client.schedules.get("s")).next_fire != right
        async with worker:
            assert (await client.schedules.get("s")).next_fire == right
            why = await client.schedules.why("s", right)
            assert "it lies ahead" in str(why)


async def test_a_worker_that_runs_looks_once_a_day(simulated: SimulatedWorker, spoil: Spoil) -> None:
    await added(simulated.database, a_schedule(trigger=NIGHTLY))
    woken: list[int] = []
    wakeups = Wakeups()
    wakeups.schedules_changed.subscribe(lambda: woken.append(simulated.clock.now))
    sweeper = Sweeper(
        database=simulated.database,
        identity=identity_of(None),
        interval=15 * SECOND,
        retention=RetentionAges(),
        look_for_suspects=_no_suspects,
        wakeups=wakeups,
        clock=ProcessClock(simulated.clock),
        random=Random(1),
        announce=lambda event: None,
    )

    async def next_fire_after_a_sweep(seconds: float) -> int | None:
        simulated.clock.advance(seconds)
        await sweeper.tick(simulated.clock.now)
        return (await rows.read(simulated.url)).schedules["s"][1]

    began = simulated.clock.now
    right = await next_fire_after_a_sweep(0)
    assert right is not None
    wrong = right + 2 * DAY
    await spoil(simulated.database, wrong)
    assert await next_fire_after_a_sweep(3600) == wrong
    assert await next_fire_after_a_sweep(22 * 3600) == wrong
    assert woken == []
    tomorrow = NIGHTLY.next_fire(began + DAY)
    assert tomorrow is not None
    moved = await next_fire_after_a_sweep(3600)
    assert moved == tomorrow.at, from_us(moved or 0)
    assert woken == [simulated.clock.now]


async def _no_suspects() -> None:
    return None
