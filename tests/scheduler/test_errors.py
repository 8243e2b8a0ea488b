"""Errors of calls: each is an `OnebeatError`, exported, and says what happened."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

import onebeat
from onebeat import Every, JobCancelled, JobFailed, JobNotFound, LockTimeout, OnebeatError, Retry, StaleRevision, errors
from tests.scheduler.arrange import do_nothing, scheduler_on


def test_every_error_is_an_onebeat_error_and_names_are_exported() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(classes) > 15
    for found in classes:
        assert issubclass(found, OnebeatError)
        assert getattr(onebeat, found.__name__) is found


async def test_a_lock_that_is_held_says_so_after_its_wait(tmp_path: Path) -> None:
    async with scheduler_on(tmp_path) as scheduler, scheduler.lock("rebuild", ttl=30):
        with pytest.raises(LockTimeout, match="rebuild"):
            async with scheduler.lock("rebuild", wait=0):
                pytest.fail("two holders")


async def test_a_job_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    async with scheduler_on(tmp_path) as scheduler:
        with pytest.raises(JobNotFound):
            await scheduler.jobs.get(uuid4())


async def test_awaiting_the_value_of_a_failed_or_cancelled_job_raises_with_the_reason(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)

    @scheduler.task(name="break", retry=Retry(attempts=1))
    async def break_down() -> None:
        raise RuntimeError("the printer is on fire")

    task = scheduler.task(name="mail")(do_nothing)
    async with scheduler:
        with pytest.raises(JobFailed, match="the printer is on fire"):
            await (await break_down.enqueue()).result(30)
        job = await task.options(delay=3600).enqueue()
        await job.cancel()
        with pytest.raises(JobCancelled):
            await job.result(30)


async def test_an_edit_of_a_schedule_that_someone_else_edited_is_refused(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)
    task = scheduler.task(name="mail")(do_nothing)
    async with scheduler:
        seen = await scheduler.schedules.add("nightly", task, Every(3600))
        await scheduler.schedules.update("nightly", expected_rev=seen.rev, trigger=Every(1800))
        with pytest.raises(StaleRevision):
            await scheduler.schedules.update("nightly", expected_rev=seen.rev, trigger=Every(60))
        assert (await scheduler.schedules.get("nightly")).trigger == Every(1800)
