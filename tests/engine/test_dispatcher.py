"""Which of several workers fires what is due, and when the others look."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from sqlalchemy import select

from onebeat.engine import dispatcher
from onebeat.engine.dispatcher import DOUBLING, HEAD_START, Dispatcher
from onebeat.engine.wakeups import Wakeups
from onebeat.model.events import Event, ScheduleFired
from onebeat.store.connection.database import Database
from onebeat.store.tx import Tx
from onebeat.timing.clock import from_us
from onebeat.timing.triggers import Every
from tests.conftest import MakeDatabase
from tests.guarantees.arrange import added
from tests.support.builders import SECOND, identity_of, registered
from tests.support.simulated_worker import a_schedule
from tests.support.virtual import START, VirtualClock

POLL = 30 * SECOND


class Fleet:
    """Two workers on one database with a schedule of ten seconds. Times are seconds from its first instant."""

    def __init__(self, database: Database, clock: VirtualClock, first: int) -> None:
        self.database, self.clock, self.first = database, clock, first
        self.running = 0
        self.told: list[tuple[str, float]] = []

    async def worker(self, name: str) -> Dispatcher:
        """A dispatcher that has looked before anything was due."""
        worker_id = await registered(self.database)

        def announce(event: Event) -> None:
            if isinstance(event, ScheduleFired):
                self.told.append((name, (event.fire_us - self.first) / SECOND))

        made = Dispatcher(
            database=self.database,
            identity=identity_of(worker_id),
            hashes=(),
            new_tracking_id=lambda: "t" * 32,
            running=lambda: self.running,
            poll=POLL,
            wakeups=Wakeups(),
            announce=announce,
        )
        assert await self.look(made, -1) == 0
        return made

    async def look(self, worker: Dispatcher, at: float) -> float:
        """One look at this time; when it looks next."""
        self.clock.now = self.first + round(at * SECOND)
        then = await worker.tick(self.clock.now)
        assert then is not None
        return (then - self.first) / SECOND


@pytest.fixture
async def fleet(database_url: str, make_database: MakeDatabase) -> Fleet:
    """Every database in turn."""
    clock = VirtualClock(START)
    database = await make_database(database_url, database_clock=clock)
    await added(database, a_schedule(trigger=Every(seconds=10)))
    first = await database.read(lambda tx: tx.execute(select(tx.tables.schedules.c.next_fire_us)).scalar_one())
    return Fleet(database, clock, first)


async def test_who_fired_last_goes_first_and_the_others_come_a_moment_later(fleet: Fleet) -> None:
    """All of them at once would be in each other's way at :00; nobody has to be there for the others to fire."""
    one, other = await fleet.worker("one"), await fleet.worker("other")
    late = HEAD_START / SECOND
    assert await fleet.look(one, 0) == 10
    assert await fleet.look(other, 0) == 10 + late, "it had gone for the same fire, and lost"
    assert await fleet.look(one, 10) == 20
    assert await fleet.look(other, 10 + late) == 20 + late, "nothing was left to do"
    assert await fleet.look(other, 20 + late) == 30, "the one ahead did not come: now it is ahead"
    assert await fleet.look(other, 30) == 40
    assert await fleet.look(one, 30) == 40 + late
    assert fleet.told == [("one", 0), ("one", 10), ("other", 20), ("other", 30)]


async def test_a_worker_that_runs_much_lets_idle_ones_go_first(fleet: Fleet) -> None:
    """Else the one that fires would run all there is to run."""
    one = await fleet.worker("one")
    for running, doublings in ((1, 1), (3, 2), (4, 3), (100, 7), (0, 0)):
        fleet.running = running
        assert await fleet.look(one, 0) == (doublings * DOUBLING / SECOND or 10)
    fleet.running = 1
    assert await fleet.look(one, 10) == 10 + DOUBLING / SECOND
    assert await fleet.look(one, 10 + DOUBLING / SECOND) == 20, "nobody else came"
    assert (100).bit_length() * DOUBLING > HEAD_START, "full, it comes after an idle one that lost"


async def test_load_makes_no_fire_late(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker needs ten seconds for each batch of what is due at once: `catch_up="skip"` leaves none of it out."""
    monkeypatch.setattr(dispatcher, "BATCH", 2)
    hourly = Every(hours=1, anchor=from_us(fleet.first))
    await added(fleet.database, *(a_schedule(f"h{number}", hourly, {"catch_up": "skip"}) for number in range(9)))

    def due_together(tx: Tx) -> None:
        c = tx.tables.schedules.c
        tx.execute(tx.tables.schedules.delete().where(c.id == "s"))
        tx.execute(tx.tables.schedules.update().values(next_fire_us=fleet.first))

    def decisions(tx: Tx) -> Sequence[str]:
        c = tx.tables.fires.c
        return tx.execute(select(c.decision).order_by(c.decided_us)).scalars().all()

    one = await fleet.worker("one")
    await fleet.database.write(due_together)
    for at in range(0, 50, 10):
        await fleet.look(one, at)
    assert await fleet.database.read(decisions) == ["started"] * 9
    await fleet.look(one, 3_620)
    assert set((await fleet.database.read(decisions))[9:]) == {"misfired"}, "nobody was busy with anything"
