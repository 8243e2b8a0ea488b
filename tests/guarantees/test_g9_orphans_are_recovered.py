"""G9: what a dead worker held is taken back within lease + sweep, and the dead stay dead."""

from __future__ import annotations

import asyncio
import time
from random import Random

import pytest
from sqlalchemy import false, true

from onebeat import Scheduler
from onebeat.model.job import JobState
from onebeat.store import workers
from onebeat.store.connection.database import Database
from onebeat.store.jobs import claim, insert, rescue
from tests.conftest import MakeDatabase
from tests.guarantees.arrange import LEASE
from tests.support.builders import SECOND, a_job, claimed, registered
from tests.support.virtual import VirtualClock


async def the_dead_stay_dead(url: str, make: MakeDatabase) -> None:
    """From the instant its lease runs out, a worker is never again alive: before, while and after it is marked."""
    clock = VirtualClock()
    database = await make(url, database_clock=clock)
    await database.write(insert.add, [a_job()])
    worker = await registered(database, lease=LEASE)
    clock.advance(LEASE / 1e6 - 0.000001)
    assert await database.write(workers.renew, worker, LEASE), "a lease that holds is renewed"
    assert len(await claimed(database, worker)) == 1
    clock.advance(LEASE / 1e6)
    assert not await database.write(workers.renew, worker, LEASE), "a lease that ran out is never renewed"
    assert [dead.id for dead in await database.write(workers.mark_dead)] == [worker]
    assert len(await database.write(rescue.rescue, random=Random(1))) == 1
    clock.advance(-LEASE / 1e6)
    assert not await database.write(workers.renew, worker, LEASE), "nor by a clock that steps back"
    assert await claimed(database, worker) == [], "and the dead claim nothing"


async def test_g9_the_dead_stay_dead(database_url: str, make_database: MakeDatabase) -> None:
    await the_dead_stay_dead(database_url, make_database)


async def test_without_the_expiry_condition_a_late_beat_revives_a_lease(
    database_url: str, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "not_expired", lambda tx: tx.tables.workers.c.state == "alive")
    with pytest.raises(AssertionError, match="never renewed"):
        await the_dead_stay_dead(database_url, make_database)


async def test_without_sticky_dead_a_clock_step_revives_a_worker(
    database_url: str, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "not_expired", lambda tx: tx.tables.workers.c.lease_until_us > tx.clock)
    with pytest.raises(AssertionError, match="steps back"):
        await the_dead_stay_dead(database_url, make_database)


async def test_without_a_living_worker_in_the_claim_the_dead_claim(
    database_url: str, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "alive", lambda tx, worker_id: true())
    with pytest.raises(AssertionError, match="the dead claim nothing"):
        await the_dead_stay_dead(database_url, make_database)


SHORT = 1.5  # seconds: the lease of the real workers below
SWEEP = 0.3  # their heartbeat, which is the interval of their sweeps too


async def an_orphan_is_run_in_time(url: str, database: Database, within: float) -> None:
    """A worker of another host takes a job and is never heard of again; one that lives comes upon it."""
    ran = asyncio.Event()
    scheduler = Scheduler(url, lease=SHORT, heartbeat=SWEEP, poll=0.1, slots=2)

    @scheduler.task(name="work")
    async def work() -> None:
        ran.set()

    job = a_job()
    await database.write(insert.add, [job])
    begun = time.monotonic()  # before the lease begins, however long a slow machine takes to write it
    gone = await registered(database, lease=int(SHORT * SECOND))
    assert len(await claimed(database, gone)) == 1
    async with scheduler:
        async with asyncio.timeout(within):
            await ran.wait()
        took = time.monotonic() - begun
        end = await scheduler.jobs.wait(job.id, 10)
    assert (end.state, end.attempt) == (JobState.SUCCEEDED, 2)
    assert took >= SHORT - 0.05, "taken before its lease ran out"


async def test_g9_an_orphan_is_run_within_lease_and_sweep(database_url: str, database: Database) -> None:
    await an_orphan_is_run_in_time(database_url, database, within=SHORT + SWEEP + 5)


async def test_without_marking_the_dead_an_orphan_stays_one(
    database_url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "expired", lambda tx: false())
    with pytest.raises(TimeoutError):
        await an_orphan_is_run_in_time(database_url, database, within=SHORT + SWEEP + 1)
