"""G8: at most one unfinished job holds a unique key, whoever races for it, and each end of a job frees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from onebeat import Cancel, InvalidArguments, JobExists, JobInfo, Retry, Scheduler, Task
from onebeat.store.faults import Fault
from tests.guarantees.conftest import do_nothing
from tests.support.databases import waits_until

LEVELS = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]


@pytest.fixture
async def held(scheduler: Scheduler) -> Task[..., Any]:
    """A task whose jobs stay queued, because no worker serves their queue."""
    scheduler.settings = scheduler.settings.model_copy(update={"role": "client"})
    task: Task[..., Any] = scheduler.task(do_nothing, name="held")
    await scheduler.start()
    return task


async def test_the_second_enqueue_of_a_key_returns_the_first_job(held: Task[..., Any]) -> None:
    keyed = held.options(unique_key="größe:" + "7" * 500, tags=["first"])
    first = await keyed.enqueue(1)
    second = await keyed.options(tags=["second"]).enqueue(2)
    assert (first.duplicate, second.duplicate, second.id, second.tags) == (False, True, first.id, ("first",))
    other = await held.options(unique_key="size").enqueue()
    assert not other.duplicate
    many = await held.enqueue_many([held.options(unique_key=key).call(key) for key in ("b", "a", "b", "size")])
    assert [job.duplicate for job in many] == [False, False, True, True]
    assert many[0].id == many[2].id
    assert many[3].id == other.id


@pytest.mark.parametrize("racers", [2, 3])
@pytest.mark.parametrize("level", LEVELS)
async def test_one_of_the_racing_transactions_stores_its_job(
    engine: AsyncEngine, database_kind: str, scheduler: Scheduler, held: Task[..., Any], level: str, racers: int
) -> None:
    if database_kind == "sqlite" and level != "SERIALIZABLE":
        pytest.skip("SQLite has one level")
    level_engine = engine if database_kind == "sqlite" else engine.execution_options(isolation_level=level)
    barrier = asyncio.Barrier(racers)

    async def race(key: str, end: str) -> JobInfo | None:
        async with AsyncSession(level_engine) as session:
            await session.execute(text("SELECT count(*) FROM onebeat_jobs"))  # the snapshot is older than the others
            await barrier.wait()
            try:
                job: JobInfo = await held.options(session=session, unique_key=key).enqueue()
                await asyncio.sleep(0.02)  # longer than the others need to meet the key
                await getattr(session, end)()
            except DBAPIError as error:
                await session.rollback()
                if scheduler._database().dialect.classify(error) is not Fault.RETRY:
                    raise
                return None
        return job

    for number in range(3):
        jobs = await asyncio.gather(*(race(f"commit {number}", "commit") for _ in range(racers)))
        told = [job for job in jobs if job is not None]
        assert len({job.id for job in told}) == 1
        assert [job.duplicate for job in told].count(False) == 1
    await asyncio.gather(*(race("rollback", "rollback") for _ in range(racers)))
    assert await scheduler.jobs.count(task="held") == 3
    assert not (await held.options(unique_key="rollback").enqueue()).duplicate


async def test_replace_moves_the_arguments_and_the_time_of_a_job_that_has_not_started(
    engine: AsyncEngine, scheduler: Scheduler, held: Task[..., Any]
) -> None:
    debounced = held.options(unique_key="index", if_exists="replace", delay=60)
    first = await debounced.enqueue("a")
    moved = await debounced.options(delay=3600).enqueue("b")
    assert (moved.id, moved.duplicate, moved.state) == (first.id, True, "scheduled")
    assert 3500 < (moved.run_at - first.run_at).total_seconds() < 3600
    async with AsyncSession(engine) as session:
        now = await debounced.options(session=session, delay=0).enqueue("c")
        assert now.state == "queued"
        await session.rollback()
    assert (await first.refresh()).state == "scheduled"
    kept = await debounced.options(if_exists="keep").enqueue("d")
    assert kept.run_at == moved.run_at
    async with engine.connect() as connection:
        stored = (await connection.execute(text("SELECT args FROM onebeat_jobs"))).scalars().all()
    assert stored == ['{"a":["b"],"k":{}}']


@pytest.mark.parametrize("end", ["success", "failure", "cancel", "complete", "stopped"])
async def test_each_end_of_a_job_frees_its_key(scheduler: Scheduler, end: str) -> None:
    started = asyncio.Event()

    async def work() -> None:
        from onebeat import current_job

        started.set()
        if end == "failure":
            raise ValueError
        if end == "cancel":
            raise Cancel("enough")
        if end == "complete":
            async with current_job().transaction():
                pass
        if end == "stopped":
            await asyncio.sleep(60)

    task = scheduler.task(work, name="work", retry=Retry(attempts=1))
    await scheduler.start()
    keyed = task.options(unique_key="k")
    job = await keyed.enqueue()
    await started.wait()
    if end == "stopped":
        assert (await keyed.enqueue()).id == job.id
        await job.cancel()
    await job.wait(10)
    again = await keyed.enqueue()
    assert not again.duplicate
    if end == "stopped":
        await again.cancel()
    await again.wait(10)


async def test_unique_for_keeps_the_key_after_the_end_and_a_retry_takes_it_again(scheduler: Scheduler) -> None:
    task: Task[..., Any] = scheduler.task(do_nothing, name="nothing")
    await scheduler.start()
    keyed = task.options(unique_key="k" * 300, unique_for=1.5)
    first = await keyed.enqueue()
    await first.result(10)
    second = await keyed.enqueue()
    assert (second.id, second.duplicate, second.state) == (first.id, True, "succeeded")
    await asyncio.sleep(1.6)
    third = await task.options(unique_key="k" * 300, delay=60).enqueue()
    assert not third.duplicate
    with pytest.raises(JobExists, match="another job holds its unique key"):
        await scheduler.jobs.retry(first.id)
    await third.cancel()
    await scheduler.jobs.retry(first.id)
    await (await first.refresh()).result(10)


async def test_a_settlement_waits_for_no_transaction_that_has_met_its_key(
    engine: AsyncEngine, scheduler: Scheduler
) -> None:
    finish = asyncio.Event()

    async def work() -> None:
        await finish.wait()

    task: Task[..., Any] = scheduler.task(work, name="work")
    await scheduler.start()
    job, other = await task.options(unique_key="a").enqueue(), await task.enqueue()
    await waits_until(lambda: is_running(scheduler, job))
    async with AsyncSession(engine) as session:
        if engine.dialect.name == "sqlite":
            assert (await task.options(unique_key="a").enqueue()).duplicate  # there a session would hold all writers
        else:
            assert (await task.options(unique_key="a", session=session).enqueue()).duplicate
        finish.set()
        await other.result(2)
        await session.commit()
    await job.result(5)


async def is_running(scheduler: Scheduler, job: JobInfo) -> bool:
    return (await scheduler.jobs.get(job.id)).state == "running"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"unique_key": ""}, "unique_key=''"),
        ({"unique_key": 7}, "unique_key=7"),
        ({"unique_for": 60}, "give unique_key= too"),
        ({"unique_key": "a", "unique_for": 0}, "unique_for is 0 s"),
        ({"unique_key": "a", "if_exists": "error"}, "give 'keep' or 'replace'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    task: Task[..., Any] = Scheduler().task(do_nothing, name="nothing")
    refuse: Callable[..., Any] = task.options
    with pytest.raises(InvalidArguments, match=words.replace("(", r"\(")):
        refuse(**options)
