"""Names, times and arguments that cannot work are refused where they are given, and nothing is stored."""

from __future__ import annotations

import functools
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from onebeat import (
    At,
    ConfigurationError,
    DuplicateTask,
    Every,
    InvalidArguments,
    InvalidCron,
    InvalidTrigger,
    ScheduleExists,
    ScheduleNotFound,
)
from tests.scheduler.arrange import do_nothing, do_nothing_else, jobs_in, scheduler_on


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)
    scheduler.task(name="mail")(do_nothing)
    with pytest.raises(DuplicateTask, match="mail"):
        scheduler.task(name="mail")(do_nothing_else)


@pytest.mark.parametrize("name", ["x" * 201, "", "naïve", "a\nb"])
def test_a_task_name_that_cannot_be_stored_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError):
        scheduler_on(tmp_path).task(name=name)(do_nothing)


def test_a_task_name_of_two_hundred_characters_is_fine(tmp_path: Path) -> None:
    assert scheduler_on(tmp_path).task(name="x" * 200)(do_nothing).name == "x" * 200


def test_two_schedules_of_one_id_are_refused_in_code(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)
    task = scheduler.task(name="mail")(do_nothing)
    scheduler.declare("nightly", task, Every(60))
    with pytest.raises(ScheduleExists, match="nightly"):
        scheduler.declare("nightly", task, Every(30))


async def test_a_second_schedule_of_one_id_is_refused_at_run_time_and_the_first_stays(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)
    task = scheduler.task(name="mail")(do_nothing)
    async with scheduler:
        await scheduler.schedules.add("nightly", task, Every(3600))
        with pytest.raises(ScheduleExists, match="if_exists"):
            await scheduler.schedules.add("nightly", task, Every(60))
        assert (await scheduler.schedules.get("nightly")).trigger == Every(3600)
        with pytest.raises((ConfigurationError, InvalidArguments)):
            await scheduler.schedules.add("x" * 201, task, Every(60))
        with pytest.raises(ScheduleNotFound):
            await scheduler.schedules.get("unknown")


async def test_a_naive_datetime_is_refused_with_a_hint(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)
    task = scheduler.task(name="mail")(do_nothing)
    naive = datetime(2030, 1, 1)
    async with scheduler:
        with pytest.raises(InvalidArguments, match="time zone"):
            await task.options(run_at=naive).enqueue()
        with pytest.raises((InvalidTrigger, InvalidArguments), match="time zone"):
            await scheduler.schedules.add("once", task, At(naive))
    assert jobs_in(tmp_path) == 0


@pytest.mark.parametrize("delay", [-1, -0.001, timedelta(seconds=-1), math.nan, math.inf])
async def test_a_delay_that_is_no_time_ahead_is_refused(tmp_path: Path, delay: float | timedelta) -> None:
    scheduler = scheduler_on(tmp_path)
    task = scheduler.task(name="mail")(do_nothing)
    async with scheduler:
        with pytest.raises(InvalidArguments, match="delay"):
            await task.options(delay=delay).enqueue()
    assert jobs_in(tmp_path) == 0


async def test_a_run_at_in_the_past_runs_now_and_an_at_in_the_past_is_refused(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)
    task = scheduler.task(name="mail")(do_nothing)
    past = datetime.now(UTC) - timedelta(hours=1)
    async with scheduler:
        job = await task.options(run_at=past).enqueue()
        assert (await job.wait(30)).state == "succeeded"
        with pytest.raises((InvalidTrigger, InvalidArguments), match="past"):
            await scheduler.schedules.add("once", task, At(past))


def test_a_wrong_cron_expression_is_refused_where_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidCron) as caught:
        scheduler_on(tmp_path).cron("61 * * * *")(do_nothing)
    assert caught.value.position == 0


async def test_what_is_no_trigger_is_refused_with_what_to_write(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)
    task = scheduler.task(name="mail")(do_nothing)
    text: Any = "*/5 * * * *"
    with pytest.raises(InvalidTrigger, match=r"write Cron\('\*/5 \* \* \* \*'\)"):
        scheduler.declare("often", task, text)
    async with scheduler:
        wrong: Any
        for wrong in (text, None, 5):
            with pytest.raises(InvalidTrigger, match="needs a trigger"):
                await scheduler.schedules.add("often", task, wrong)


async def test_arguments_that_do_not_fit_are_refused_by_name_and_nothing_is_stored(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)

    @scheduler.task(name="mail")
    async def mail(user_id: int, note: Any = None) -> None: ...

    bad: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        (("seven",), {}, "user_id"),
        ((), {}, "user_id"),
        ((1,), {"nobody": 2}, "nobody"),
        ((1, object()), {}, "note"),
        ((1, math.nan), {}, ""),
        ((1, "x" * 70_000), {}, "65,536"),
        ((1, _nested(40)), {}, "32"),
    ]
    async with scheduler:
        for args, kwargs, word in bad:
            with pytest.raises(InvalidArguments) as caught:
                await mail.enqueue(*args, **kwargs)
            assert word in str(caught.value), (args, str(caught.value))
            assert len(str(caught.value)) < 1_000, "a message is no dump"
        with pytest.raises(InvalidArguments):
            await mail.enqueue_many([(1,), ("seven",)])
    assert jobs_in(tmp_path) == 0


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("number", [10**5000, -(10**2000)], ids=["5,000 digits", "2,000 digits"])
async def test_a_number_that_few_can_read_is_refused(number: int, tmp_path: Path) -> None:
    async with scheduler_on(tmp_path) as scheduler:

        @scheduler.task(name="count")
        async def count(number: Any) -> None: ...

        with pytest.raises(InvalidArguments, match="pass it as text"):
            await count.enqueue(number)
        assert jobs_in(tmp_path) == 0


def test_what_is_no_function_is_refused_as_a_task_by_its_name(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)

    async def greet(name: str, times: int) -> None: ...

    with pytest.raises(ConfigurationError, match="task 'greet' is a partial, not a function"):
        scheduler.task(name="greet")(functools.partial(greet, times=2))
