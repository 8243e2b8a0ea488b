"""How many round trips the changes to many jobs cost: as many for a hundred as for a few."""

from __future__ import annotations

from random import Random

from onebeat.model.ids import token
from onebeat.model.job import Claimed, Ending, Outcome
from onebeat.store import reports, workers
from onebeat.store.connection.database import Database
from onebeat.store.jobs import insert, rescue, settle
from onebeat.timing.backoff import Retry
from tests.conftest import MakeDatabase
from tests.support.builders import a_job, claimed, ended, registered
from tests.support.proxy import Proxy

JOBS = 100
MOST = 16  # messages from the client: BEGIN, some statements with their preparation, COMMIT


async def running(database: Database, **changes: object) -> tuple[str, list[Claimed]]:
    """A worker with a hundred claimed jobs."""
    worker = await registered(database)
    await database.write(insert.add, [a_job(**changes) for _ in range(JOBS)])
    return worker, await claimed(database, worker, limit=JOBS)


async def test_values_of_many_jobs_are_stored_in_few_round_trips(proxy: Proxy, make_database: MakeDatabase) -> None:
    database = await make_database(proxy.url)
    worker, jobs = await running(database)
    ends = [ended(job, Outcome(ending=Ending.SUCCEEDED, value=f'"{job.id}"')) for job in jobs]
    before = proxy.messages
    assert len(await database.write(settle.settle, ends, worker_id=worker)) == JOBS
    assert proxy.messages - before <= MOST
    stored = await database.read(reports.jobs_by_id, [job.id for job in jobs])
    assert all(info.value == str(info.id) for info in stored.values())


async def test_retries_of_many_jobs_are_stored_in_few_round_trips(proxy: Proxy, make_database: MakeDatabase) -> None:
    database = await make_database(proxy.url)
    worker, jobs = await running(database)
    failed = Outcome(ending=Ending.ERROR, error="ValueError", traceback="lines")
    ends = [ended(job, failed, Retry(3, base=60 + place, jitter=False)) for place, job in enumerate(jobs)]
    before = proxy.messages
    assert len(await database.write(settle.settle, ends, worker_id=worker)) == JOBS
    assert proxy.messages - before <= MOST
    stored = await database.read(reports.jobs_by_id, [job.id for job in jobs])
    run_at = [stored[job.id].run_at for job in jobs]
    assert [round((at - run_at[0]).total_seconds()) for at in run_at] == list(range(JOBS)), "each has its own delay"


async def test_many_jobs_of_a_dead_worker_are_rescued_in_few_round_trips(
    proxy: Proxy, make_database: MakeDatabase
) -> None:
    database = await make_database(proxy.url)
    worker, jobs = await running(database)
    await database.write(workers.mark_dead_by_id, [worker])
    before = proxy.messages
    rescued = await database.write(rescue.rescue, random=Random(1), limit=JOBS)
    assert {job.id for job in rescued} == {job.id for job in jobs}
    assert proxy.messages - before <= MOST
    stored = await database.read(reports.jobs_by_id, [job.id for job in jobs])
    assert {str(info.state) for info in stored.values()} == {"queued"}


async def test_many_claims_are_given_back_in_few_round_trips(proxy: Proxy, make_database: MakeDatabase) -> None:
    database = await make_database(proxy.url)
    _, jobs = await running(database)
    before = proxy.messages
    lost = (jobs[0].id, token())
    given = await database.write(rescue.give_back, [lost, *((job.id, job.lease_token) for job in jobs[1:])])
    assert {job.id for job in given} == {job.id for job in jobs[1:]}
    assert proxy.messages - before <= MOST
