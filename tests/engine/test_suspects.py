"""A job whose workers died twice starts within a stated time, and harms as little as possible."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import update

from onebeat.engine.claimer import LONGEST_WAY, TURN, Claimer
from onebeat.engine.executor import SUSPECT_ALONE
from onebeat.model.job import NewJob
from onebeat.store import reports, workers
from onebeat.store.jobs import claim
from onebeat.store.tx import Tx
from onebeat.timing.clock import DAY
from tests.engine.parts import SWEEP, Parts
from tests.support.builders import SECOND, a_job, claimed, claimed_suspects, identity_of, registered
from tests.support.virtual import ProcessClock


class Shop:
    """A worker whose jobs run until they are let go."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.go = asyncio.Event()
        router = parts.router

        @router.task(name="work")
        async def work() -> None:
            await self.go.wait()

        @router.task(name="once", at_most_once=True)
        async def once() -> None:
            await self.go.wait()

    async def busy(self, **job: Any) -> NewJob:
        """A long job runs."""
        (stored,) = await self.parts.stored(a_job(**job))
        await self.parts.claimer.tick(self.parts.clock.now)
        assert stored.id in self.parts.executor.running
        return stored

    async def suspect(self) -> NewJob:
        """A job waits that was running when a worker died, twice."""
        (stored,) = await self.parts.stored(a_job())

        def die_twice(tx: Tx) -> None:
            tx.execute(update(tx.tables.jobs).where(tx.tables.jobs.c.id == stored.id).values(crashes=2))

        await self.parts.database.write(die_twice)
        return stored

    async def works(self, seconds: float) -> float | None:
        """The worker sweeps and claims for so long, beside a steady flow; when the suspect started, None: not."""
        parts, began, sweep = self.parts, self.parts.clock.now, self.parts.sweeper()
        next_sweep = began
        while parts.clock.now - began < seconds * SECOND:
            await parts.database.write(workers.renew, parts.worker_id, 60 * SECOND)
            if parts.clock.now >= next_sweep:
                next_sweep = await sweep.tick(parts.clock.now) or 0
            await parts.stored(a_job())
            await parts.claimer.tick(parts.clock.now)
            if any(run.job.crashes >= 2 for run in parts.executor.running.values()):
                return (parts.clock.now - began) / SECOND
            parts.clock.advance(1)
        return None

    async def end(self) -> None:
        self.go.set()
        await self.parts.settled()


async def test_a_suspect_starts_beside_a_long_job_and_a_steady_flow(parts: Parts) -> None:
    shop = Shop(parts)
    long = await shop.busy()
    await shop.suspect()
    started = await shop.works(60)
    assert started is not None
    assert started <= (SWEEP * 1.1 + LONGEST_WAY) / SECOND + 1
    assert long.id in parts.executor.running
    await shop.end()


async def test_a_suspect_waits_for_a_job_that_starts_only_once(parts: Parts) -> None:
    shop = Shop(parts)
    await shop.busy(task="once", at_most_once=True, max_attempts=1)
    await shop.suspect()
    assert await shop.works(40) is None
    await shop.end()
    shop.go.clear()
    assert await shop.works(60) is not None
    await shop.end()


async def test_nothing_starts_beside_a_suspect_for_a_minute_and_then_nothing_that_starts_only_once(
    parts: Parts,
) -> None:
    shop = Shop(parts)
    suspect = await shop.suspect()
    await parts.claimer.tick(parts.clock.now)
    assert list(parts.executor.running) == [suspect.id]
    once, plain = await parts.stored(a_job(task="once", at_most_once=True, max_attempts=1), a_job())
    parts.clock.advance(SUSPECT_ALONE - 30)
    await parts.claimer.tick(parts.clock.now)
    assert list(parts.executor.running) == [suspect.id]
    parts.clock.advance(31)
    await parts.database.write(_revive, parts.worker_id)
    await parts.claimer.tick(parts.clock.now)
    assert set(parts.executor.running) == {suspect.id, plain.id}
    await shop.end()
    shop.go.clear()
    await parts.claimer.tick(parts.clock.now)
    assert once.id in parts.executor.running
    await shop.end()


def _revive(tx: Tx, worker_id: str) -> None:
    table = tx.tables.workers
    tx.execute(update(table).where(table.c.id == worker_id).values(lease_until_us=tx.now() + 60 * SECOND))


async def test_a_wall_clock_that_is_set_back_keeps_no_worker_from_claiming(parts: Parts) -> None:
    shop = Shop(parts)
    await shop.busy()
    await shop.suspect()
    await parts.claimer.look_for_suspects()
    parts.clock.advance(LONGEST_WAY / SECOND + 1)
    await parts.claimer.tick(parts.clock.now - 3600 * SECOND)
    assert any(run.job.crashes >= 2 for run in parts.executor.running.values())
    await shop.end()


async def test_one_worker_of_a_fleet_at_a_time_makes_way_for_a_suspect(parts: Parts) -> None:
    shop = Shop(parts)
    await shop.suspect()
    fleet = [parts.worker_id, *[await registered(parts.database, lease=3600 * SECOND) for _ in range(3)]]
    stranger = await registered(parts.database, lease=3600 * SECOND, tasks=("another",))
    await parts.database.write(workers.renew, parts.worker_id, 3600 * SECOND)
    turns = []
    for _ in range(4):
        given = [
            id
            for id in [*fleet, stranger]
            if await parts.database.read(
                claim.suspect_turn, worker_id=id, tasks=("work",), queues=None, each=TURN * SWEEP
            )
        ]
        assert len(given) == 1
        turns += given
        parts.clock.advance(TURN * SWEEP / SECOND)
    assert sorted(turns) == sorted(fleet)


@pytest.mark.parametrize("sweep", [15, 1200])
async def test_each_worker_of_a_fleet_meets_its_turn_however_slow_its_sweeps_are(parts: Parts, sweep: int) -> None:
    shop = Shop(parts)
    await shop.busy()
    await shop.suspect()
    fleet = [await registered(parts.database, lease=10 * DAY) for _ in range(4)]
    await parts.database.write(workers.stop, parts.worker_id)
    made_way = set()
    for _ in range(TURN * len(fleet)):
        for id in fleet:
            claimer = Claimer(
                database=parts.database,
                slots=parts.executor,
                identity=identity_of(id),
                queues=None,
                own_slots={},
                poll=SECOND,
                sweep=sweep * SECOND,
                clock=ProcessClock(parts.clock),
            )
            await claimer.look_for_suspects()
            if claimer._dry_since is not None:
                made_way.add(id)
        parts.clock.advance(sweep)
    assert made_way == set(fleet)
    await shop.end()


async def test_those_that_died_beside_a_suspect_lose_nothing(parts: Parts) -> None:
    shop = Shop(parts)
    neighbours = await parts.stored(*[a_job() for _ in range(3)])
    suspect = await shop.suspect()
    other = await registered(parts.database, lease=3 * SECOND)
    assert len(await claimed(parts.database, other)) == 3
    assert [job.id for job in await claimed_suspects(parts.database, other)] == [suspect.id]
    parts.clock.advance(4)
    await parts.sweeper().tick(parts.clock.now)

    def crashes(tx: Tx) -> dict[Any, int]:
        return {row.id: row.crashes for row in tx.execute(tx.tables.jobs.select())}

    counted = await parts.database.read(crashes)
    assert [counted[job.id] for job in neighbours] == [0, 0, 0]
    end = await parts.database.read(reports.job, suspect.id)
    assert (end.state, end.reason) == ("failed", "quarantined")
    history = await parts.database.read(reports.attempts, neighbours[0].id)
    assert [item.outcome for item in history] == ["drained"]
