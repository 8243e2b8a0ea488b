"""G3: what a function writes in a transaction that completes its job happens exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from onebeat import JobContext, JobInfo, LeaseLost, Retry, Scheduler, Snooze
from onebeat.errors import ConfigurationError
from onebeat.model.events import FailedAfterComplete
from onebeat.store.tables import build
from onebeat.store.tx import Tx

INSERT = text("INSERT INTO effects (job) VALUES (:job)")
Effects = Callable[[], Awaitable[list[str]]]


@pytest.fixture
async def effects(engine: AsyncEngine) -> AsyncIterator[Effects]:
    """The application's own table, and what is committed in it."""
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE effects (job VARCHAR(32))"))

    async def read() -> list[str]:
        async with engine.connect() as connection:
            return list((await connection.execute(text("SELECT job FROM effects"))).scalars())

    yield read
    async with engine.begin() as connection:
        await connection.execute(text("DROP TABLE effects"))


@pytest.fixture
async def told(scheduler: Scheduler) -> list[FailedAfterComplete]:
    events: list[FailedAfterComplete] = []
    scheduler.on(FailedAfterComplete)(events.append)
    return events


async def run(scheduler: Scheduler, function: Any, **options: Any) -> JobInfo:
    """Run one job of the function to its end."""
    task = scheduler.task(function, name="work", **options)
    await scheduler.start()
    job: JobInfo = await task.enqueue()
    await job.wait(15)
    return await job.refresh()


async def test_a_completed_job_commits_with_the_functions_writes(
    engine: AsyncEngine, scheduler: Scheduler, effects: Effects, told: list[FailedAfterComplete]
) -> None:
    async def work(ctx: JobContext) -> str:
        async with AsyncSession(engine) as session:
            await session.execute(INSERT, {"job": ctx.id.hex})
            await ctx.complete(session, {"rows": 1})
            assert (await scheduler.jobs.get(ctx.id)).state == "running"
            await session.commit()
        assert (await scheduler.jobs.get(ctx.id)).state == "succeeded"
        with pytest.raises(LeaseLost, match="completed before"):
            async with engine.begin() as connection:
                await ctx.complete(connection)
        return "not stored"

    job = await run(scheduler, work)
    assert (job.state, job.value, job.attempt, await effects()) == ("succeeded", {"rows": 1}, 1, [job.id.hex])
    assert told == []


async def test_a_transaction_completes_at_its_end_and_rolls_back_with_an_exception(
    scheduler: Scheduler, effects: Effects
) -> None:
    async def work(ctx: JobContext) -> None:
        async with ctx.transaction() as session:
            await session.execute(INSERT, {"job": ctx.id.hex})
            if ctx.attempt == 1:
                raise ValueError("before the end")
            await ctx.complete(session, ctx.attempt)

    job = await run(scheduler, work, retry=Retry(attempts=2, base=0.01))
    assert (job.state, job.value, job.attempt, await effects()) == ("succeeded", 2, 2, [job.id.hex])
    assert [item.outcome for item in await scheduler.jobs.attempts(job.id)] == ["error", "succeeded"]


@pytest.mark.parametrize("ending", ["error", "snoozed", "timeout", "cancelled"])
async def test_what_follows_the_commit_changes_nothing(
    scheduler: Scheduler, effects: Effects, told: list[FailedAfterComplete], ending: str
) -> None:
    async def work(ctx: JobContext) -> None:
        async with ctx.transaction() as session:
            await session.execute(INSERT, {"job": ctx.id.hex})
        if ending == "error":
            raise ValueError("too late")
        if ending == "snoozed":
            raise Snooze(60)
        if ending == "cancelled":
            await scheduler.jobs.cancel(ctx.id)
            raise asyncio.CancelledError
        await asyncio.sleep(60)

    job = await run(scheduler, work, timeout=1 if ending == "timeout" else 60)
    assert (job.state, job.reason, job.attempt) == ("succeeded", None, 1)
    await scheduler.stop()  # every end is written by then
    assert [event.ending for event in told] == ["error" if ending == "cancelled" else ending]
    assert await effects() == [job.id.hex]
    await scheduler.start()
    assert [item.outcome for item in await scheduler.jobs.attempts(job.id)] == ["succeeded"]


async def test_a_completion_that_is_rolled_back_leaves_the_job_to_the_functions_end(
    engine: AsyncEngine, scheduler: Scheduler, effects: Effects
) -> None:
    async def work(ctx: JobContext) -> str:
        async with AsyncSession(engine) as session:
            await session.execute(INSERT, {"job": ctx.id.hex})
            await ctx.complete(session, "gone")
            await session.rollback()
        if ctx.attempt == 1:
            raise ValueError("once more")
        return "kept"

    job = await run(scheduler, work, retry=Retry(attempts=2, base=0.01))
    assert (job.state, job.value, job.attempt, await effects()) == ("succeeded", "kept", 2, [])


async def test_a_worker_that_lost_the_job_commits_nothing(scheduler: Scheduler, effects: Effects) -> None:
    raised: list[BaseException] = []

    def taken(tx: Tx, id: UUID) -> None:
        """What another worker's claim would write after a rescue."""
        jobs = tx.tables.jobs
        tx.execute(update(jobs).where(jobs.c.id == id).values(lease_token="other"))

    async def work(ctx: JobContext) -> None:
        await scheduler._database().write(taken, ctx.id)
        try:
            async with ctx.transaction() as session:
                await session.execute(INSERT, {"job": ctx.id.hex})
        except BaseException as error:
            raised.append(error)
            raise

    task = scheduler.task(work, name="work")
    await scheduler.start()
    job = await task.enqueue()
    with pytest.raises(TimeoutError):
        await job.wait(1)
    assert [type(error) for error in raised] == [LeaseLost]
    assert await effects() == []
    assert (await job.refresh()).state == "running"


async def test_nobody_takes_a_job_back_between_its_completion_and_the_commit(
    engine: AsyncEngine, database_kind: str, scheduler: Scheduler
) -> None:
    if database_kind == "sqlite":
        pytest.skip("a write transaction of SQLite holds the whole file")
    jobs = build().jobs

    async def work(ctx: JobContext) -> list[Any]:
        async with AsyncSession(engine) as session, engine.connect() as rescuer:
            await ctx.complete(session)
            free = await rescuer.execute(select(jobs.c.id).where(jobs.c.id == ctx.id).with_for_update(skip_locked=True))
            found = list(free.all())
            await session.rollback()
        return found

    job = await run(scheduler, work)
    assert (job.state, job.value) == ("succeeded", [])


async def test_a_task_in_a_thread_completes_in_its_own_session(
    engine: AsyncEngine, database_kind: str, scheduler: Scheduler, effects: Effects
) -> None:
    async def in_session(ctx: JobContext) -> None:
        def effect(own: Session) -> None:
            own.execute(INSERT, {"job": ctx.id.hex})
            ctx.sync.complete(own, "done")

        async with AsyncSession(engine) as session, session.begin():
            await session.run_sync(effect)

    def work(ctx: JobContext) -> None:
        if database_kind != "sqlite":
            with pytest.raises(ConfigurationError, match=r"SQLite only.*ctx\.sync\.complete\(session\)"):
                ctx.sync.transaction().__enter__()
            asyncio.run_coroutine_threadsafe(in_session(ctx), scheduler._running().loop).result()
            return
        with ctx.sync.transaction() as session:
            session.execute(INSERT, {"job": ctx.id.hex})
            ctx.sync.complete(session, "done")

    job = await run(scheduler, work)
    assert (job.state, job.value, await effects()) == ("succeeded", "done", [job.id.hex])


async def test_a_cancel_during_the_commit_waits_for_its_answer(scheduler: Scheduler, effects: Effects) -> None:
    async def work(ctx: JobContext) -> None:
        me = asyncio.current_task()
        assert me is not None
        async with ctx.transaction() as session:
            await session.execute(INSERT, {"job": ctx.id.hex})
            await ctx.complete(session)
            commit = session.commit

            async def slow() -> None:
                me.cancel()
                await asyncio.sleep(0.05)
                await commit()

            session.commit = slow  # type: ignore[method-assign]

    job = await run(scheduler, work)
    assert (job.state, job.attempt, await effects()) == ("succeeded", 1, [job.id.hex])
