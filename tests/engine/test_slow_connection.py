"""An engine over a slow connection: every job settles once, and every orphan is rescued."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from onebeat import Scheduler
from onebeat.model.events import Event, SettlementLost
from onebeat.model.job import JobState
from onebeat.store import workers
from onebeat.store.connection.database import Database
from onebeat.store.jobs import insert, rescue
from tests.conftest import SERVERS, MakeDatabase
from tests.support.builders import a_job, claimed, jobs_by_state, registered
from tests.support.databases import waits_until
from tests.support.proxy import proxy_to

SLOTS = 300
JOBS = 700

pytestmark = [
    pytest.mark.campaign,  # tests/store/test_round_trips.py counts the round trips
    pytest.mark.parametrize("database_kind", [kind for kind in ("postgresql", "mariadb") if kind in SERVERS]),
    pytest.mark.parametrize("delay", [0.02, 0.05, 0.1]),
]


async def test_jobs_with_values_settle_once(database_url: str, delay: float) -> None:
    async with proxy_to(database_url) as proxy:
        scheduler = Scheduler(proxy.url, slots=SLOTS, poll=1, drain=5)
        lost: list[Event] = []
        scheduler.on(SettlementLost)(lost.append)

        @scheduler.task(name="count")
        async def count(number: int) -> list[int]:
            return [number] * 100

        async with scheduler:
            proxy.delay = delay
            jobs = await count.enqueue_many([(number,) for number in range(JOBS)])
            done = await asyncio.gather(*(job.wait(60) for job in jobs))
            assert [job.value for job in done] == [[number] * 100 for number in range(JOBS)]
            assert {(job.state, job.attempt) for job in done} == {(JobState.SUCCEEDED, 1)}
            assert lost == []


async def test_a_rescue_ends(database_url: str, delay: float, make_database: MakeDatabase) -> None:
    async with proxy_to(database_url) as proxy:
        database = await make_database(proxy.url)
        worker = await registered(database)
        await database.write(insert.add, [a_job() for _ in range(SLOTS)])
        assert len(await claimed(database, worker, limit=SLOTS)) == SLOTS
        await database.write(workers.mark_dead_by_id, [worker])
        proxy.delay = delay
        async with asyncio.timeout(20):
            while await database.write(rescue.rescue, random=Random(1)):
                pass
        await waits_until(lambda: _queued(database))


async def _queued(database: Database) -> bool:
    return await database.read(jobs_by_state) == {"queued": SLOTS}
