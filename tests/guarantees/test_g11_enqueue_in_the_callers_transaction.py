"""G11: an enqueue in the caller's transaction, and a change of a schedule in it, happen exactly when that commits."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from onebeat import (
    Every,
    InvalidArguments,
    JobNotFound,
    NewSchedule,
    NotStarted,
    ScheduleExists,
    ScheduleNotFound,
    Scheduler,
    Task,
)
from onebeat.errors import ConfigurationError
from tests.guarantees.conftest import do_nothing
from tests.store.test_callers_session import engine_on
from tests.support.databases import waits_until

HOURLY = Every(timedelta(hours=1))


class Wakes:
    """Counts the wake-ups of one kind in this process."""

    def __init__(self, scheduler: Scheduler, kind: str) -> None:
        self.count = 0
        getattr(scheduler._wakeups, kind).subscribe(self._wake)

    def _wake(self, *_: object) -> None:
        self.count += 1


@pytest.fixture
async def task(scheduler: Scheduler) -> Task[..., Any]:
    task: Task[..., Any] = scheduler.task(do_nothing, name="nothing")
    await scheduler.start()
    await (await task.enqueue()).result(10)  # the worker runs, and waits for the next wake-up or poll
    return task


# ── jobs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_job_runs_at_once_after_the_commit_and_not_before(
    engine: AsyncEngine, scheduler: Scheduler, task: Task[..., Any]
) -> None:
    async with AsyncSession(engine) as session:
        job = await task.options(session=session, tags=["a"]).enqueue(1)
        with pytest.raises(JobNotFound):
            await job.refresh()
        committed = time.monotonic()
        await session.commit()
    await job.result(10)
    assert time.monotonic() - committed < 5, "it was found by the poll, not by the wake-up"
    assert (await job.refresh()).tags == ("a",)


async def test_a_rollback_leaves_no_job_and_wakes_nobody(
    engine: AsyncEngine, scheduler: Scheduler, task: Task[..., Any]
) -> None:
    wakes = Wakes(scheduler, "jobs_queued")
    async with AsyncSession(engine) as session:
        gone = [await task.options(session=session).enqueue(), *await task.options(session=session).enqueue_many([()])]
        await session.rollback()
    async with engine.connect() as connection, connection.begin():
        kept = await task.options(session=connection).enqueue()
        savepoint = await connection.begin_nested()
        gone.append(await task.options(session=connection).enqueue())
        await savepoint.rollback()
        assert wakes.count == 0
    await kept.result(10)
    assert wakes.count == 1
    async with AsyncSession(engine) as session, session.begin():
        inner = await session.begin_nested()
        gone.append(await task.options(session=session).enqueue())
        await inner.rollback()
    await asyncio.sleep(0.05)  # far longer than the first looks at the end of a transaction
    assert wakes.count == 1
    for job in gone:
        with pytest.raises(JobNotFound):
            await job.refresh()


async def test_a_thousand_jobs_of_a_transaction_wake_once(
    engine: AsyncEngine, scheduler: Scheduler, task: Task[..., Any]
) -> None:
    queued, delayed = Wakes(scheduler, "jobs_queued"), Wakes(scheduler, "jobs_delayed")
    async with AsyncSession(engine) as session, session.begin():
        for _ in range(3):
            jobs = await task.options(session=session).enqueue_many([(number,) for number in range(300)])
        later = await task.options(session=session, delay=3600).enqueue()
    await jobs[-1].result(30)
    assert (queued.count, delayed.count) == (1, 1)
    assert (await later.refresh()).state == "scheduled"


async def test_synchronous_sessions_take_enqueue_sync_on_any_thread(
    engine: AsyncEngine, scheduler: Scheduler, task: Task[..., Any]
) -> None:
    jobs = []

    def in_session(own: Session) -> None:
        jobs.append(task.options(session=own).enqueue_sync(1))
        jobs.append(task.options(session=own.connection()).enqueue_sync(2))

    async with AsyncSession(engine) as session:
        await session.run_sync(in_session)
        await session.commit()
        for job in jobs:
            await job.result(10)
        await session.run_sync(in_session)
        await session.rollback()
    with pytest.raises(JobNotFound):
        await jobs[-1].refresh()


async def test_two_phase_commits_are_understood(
    engine: AsyncEngine, database_kind: str, scheduler: Scheduler, task: Task[..., Any]
) -> None:
    if database_kind != "mariadb":
        pytest.skip("SQLite has no two-phase commit, and the PostgreSQL of the tests allows no prepared transactions")

    async def two_phases(connection: AsyncConnection, end: str) -> Any:
        transaction = await connection.run_sync(lambda own: own.begin_twophase())
        job = await task.options(session=connection).enqueue()
        await connection.run_sync(lambda _: transaction.prepare())
        await connection.run_sync(lambda _: getattr(transaction, end)())
        return job

    async with engine.connect() as connection:
        await (await two_phases(connection, "commit")).result(10)
        gone = await two_phases(connection, "rollback")
        assert (await connection.execute(text("XA RECOVER"))).all() == []
    with pytest.raises(JobNotFound):
        await gone.refresh()


async def test_a_session_that_cannot_work_is_refused_with_the_way_out(
    engine: AsyncEngine, database_kind: str, scheduler: Scheduler, tmp_path: Any
) -> None:
    task: Task[..., Any] = scheduler.task(do_nothing, name="nothing")
    async with AsyncSession(engine) as session, AsyncSession(engine) as another:
        with pytest.raises(NotStarted, match="install"):
            await task.options(session=session).enqueue()
        await scheduler.start()
        with pytest.raises(ConfigurationError, match=r"session is Session; pass an AsyncSession or AsyncConnection"):
            await task.options(session=session.sync_session).enqueue()
        with pytest.raises(ConfigurationError, match=r"session is AsyncSession"):
            task.options(session=session).enqueue_sync()
        with pytest.raises(InvalidArguments, match="different sessions"):
            await task.options(session=session).enqueue_many([(1,), task.options(session=another).call(2)])
    elsewhere = engine_on(f"sqlite:///{tmp_path / 'elsewhere.db'}", "sqlite")
    async with AsyncSession(elsewhere) as session:
        with pytest.raises(ConfigurationError, match="pass a session of that database"):
            await task.options(session=session).enqueue()
    await elsewhere.dispose()


# ── schedules ─────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_changes_of_schedules_take_effect_with_the_commit(
    engine: AsyncEngine, scheduler: Scheduler, task: Task[..., Any]
) -> None:
    wakes, schedules = Wakes(scheduler, "schedules_changed"), scheduler.schedules
    async with AsyncSession(engine) as session:
        await schedules.add("hourly", task, HOURLY, session=session)
        await session.rollback()
        with pytest.raises(ScheduleNotFound):
            await schedules.get("hourly")
        added = await schedules.add("hourly", task, HOURLY, session=session)
        changed = await schedules.update("hourly", note="ink", session=session)
        assert (added.rev + 1, changed.note) == (changed.rev, "ink")
        assert wakes.count == 0
        await session.commit()
        assert (await schedules.get("hourly")).note == "ink"
        await waits_until(lambda: wakes.count == 1)
        assert (await schedules.pause("hourly", "audit", session=session)).state == "paused"
        await session.rollback()
        assert (await schedules.get("hourly")).state == "active"
        await schedules.pause("hourly", session=session)
        await session.commit()
        assert (await schedules.resume("hourly", session=session)).state == "active"
        await schedules.remove("hourly", session=session)
        assert (await schedules.get("hourly")).state == "paused"
        await session.commit()
    with pytest.raises(ScheduleNotFound):
        await schedules.get("hourly")


async def test_many_schedules_are_added_together_or_not_at_all(
    engine: AsyncEngine, scheduler: Scheduler, task: Task[..., Any]
) -> None:
    schedules = scheduler.schedules
    new = [NewSchedule(f"report:{number}", task, HOURLY, args=(number,), tags=("report",)) for number in range(12)]
    added = await schedules.add_many(reversed(new))
    assert [(item.id, item.args) for item in added] == [(item.id, tuple(item.args)) for item in reversed(new)]
    with pytest.raises(ScheduleExists, match="'report:3'"):
        await schedules.add_many([NewSchedule("report:0a", "nothing", HOURLY), new[3]])
    with pytest.raises(InvalidArguments, match="2 of these schedules have the id 'twice'"):
        await schedules.add_many([NewSchedule("twice", task, HOURLY)] * 2)
    async with AsyncSession(engine) as session:
        with pytest.raises(ScheduleExists):
            await schedules.add_many([NewSchedule("report:0a", task, HOURLY), new[3]], session=session)
        kept = NewSchedule("report:3", task, HOURLY, if_exists="keep")
        found = await schedules.add_many([kept, NewSchedule("other", task, HOURLY)], session=session)
        assert [item.args for item in found] == [(3,), ()]
        await session.commit()
    listed = await schedules.list()
    assert {item.id for item in listed} == {item.id for item in new} | {"other"}


async def test_a_schedule_that_is_newer_than_the_callers_snapshot_is_found(
    engine: AsyncEngine, database_kind: str, scheduler: Scheduler, task: Task[..., Any]
) -> None:
    if database_kind != "mariadb":
        pytest.skip("only MySQL and MariaDB read at REPEATABLE READ by default and go on")
    async with AsyncSession(engine) as session:
        await session.execute(text("SELECT count(*) FROM onebeat_schedules"))
        await scheduler.schedules.add("hourly", task, HOURLY, note="first")
        info = await scheduler.schedules.add("hourly", task, HOURLY, if_exists="keep", session=session)
        assert info.note == "first"
        assert (await scheduler.schedules.update("hourly", note="second", session=session)).note == "second"
        await session.commit()
