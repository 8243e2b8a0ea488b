"""What a task, a call and a filter may be told: what works, what adds up, and what is refused where it is given."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from onebeat import (
    ConfigurationError,
    Every,
    InvalidArguments,
    InvalidTrigger,
    JobNotFound,
    Retry,
    Scheduler,
    Snooze,
    TaskRouter,
    UnknownTask,
)

FAR = 10**30


async def add(left: int, right: int = 2) -> int:
    return left + right


def plain(left: int) -> int:
    return left


@pytest.fixture
def scheduler(tmp_path: Path) -> Scheduler:
    return Scheduler(f"sqlite:///{tmp_path / 'app.db'}", poll=0.1)


# ── refused where it is given ─────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    "option",
    [
        {"priority": FAR},
        {"priority": -FAR},
        {"priority": 1.5},
        {"priority": "high"},
        {"priority": True},
        {"retry": 5},
        {"tags": "mail"},
        {"tags": 5},
        {"delay": FAR},
        {"delay": timedelta(days=999_999_999)},
        {"timeout": FAR},
        {"timeout": 0},
        {"run_at": "2026-01-01"},
    ],
    ids=str,
)
def test_what_no_database_could_hold_is_refused_where_it_is_given(scheduler: Scheduler, option: dict[str, Any]) -> None:
    task = scheduler.task(add)
    with pytest.raises((ConfigurationError, InvalidArguments)) as caught:
        task.options(**option)
    assert next(iter(option)) in str(caught.value)
    if "tags" in option or "priority" in option:
        with pytest.raises(ConfigurationError):
            scheduler.declare("s", task, Every(60), **option)
    if "priority" in option or "retry" in option or "timeout" in option:
        with pytest.raises((ConfigurationError, InvalidArguments)):
            scheduler.task(plain, **option)


def test_one_text_is_no_list_of_aliases(scheduler: Scheduler) -> None:
    with pytest.raises(ConfigurationError, match=r"write \['old'\]"):
        scheduler.task(plain, aliases="old")


@pytest.mark.parametrize("interval", [math.nan, math.inf, FAR, "30", -1])
def test_an_interval_that_is_none_is_refused_in_either_spelling(scheduler: Scheduler, interval: Any) -> None:
    with pytest.raises((InvalidTrigger, ConfigurationError)):
        scheduler.every(interval)
    with pytest.raises((InvalidTrigger, ConfigurationError)):
        scheduler.every(seconds=interval)


def test_a_wrong_option_of_a_router_is_refused_where_the_router_is_made() -> None:
    with pytest.raises(ConfigurationError, match="unknown task option colour"):
        TaskRouter(colour="red")  # type: ignore[call-arg]  # what is refused


def test_a_snooze_beyond_a_year_is_an_error_of_the_attempt() -> None:
    with pytest.raises(ConfigurationError, match="over a year"):
        Snooze(FAR)


@pytest.mark.parametrize("trigger", ["*/5 * * * *", 30, None])
def test_what_is_no_time_rule_is_refused_with_those_there_are(scheduler: Scheduler, trigger: Any) -> None:
    with pytest.raises(InvalidTrigger, match="Cron"):
        scheduler.declare("s", scheduler.task(add), trigger)


@pytest.mark.parametrize("text", ["a\x00b", "half \ud800", 5, "x" * 10_001], ids=ascii)
async def test_words_that_only_some_databases_would_hold_are_refused_on_all(database_url: str, text: Any) -> None:
    scheduler = Scheduler(database_url, role="client")
    task = scheduler.task(add)
    with pytest.raises(ConfigurationError, match="note"):
        scheduler.declare("s", task, Every(60), note=text)
    with pytest.raises(ConfigurationError, match="app"):
        Scheduler(database_url, app=text)
    async with scheduler:
        await scheduler.schedules.add("s", task, Every(3600), args=(1,), note="bis zur Prüfung – 日本")
        with pytest.raises(ConfigurationError, match="reason"):
            await scheduler.schedules.pause("s", reason=text)
        paused = await scheduler.schedules.pause("s", reason="日本")
        assert (paused.note, paused.paused_reason) == ("bis zur Prüfung – 日本", "日本")


# ── options add up ────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_options_after_options_add_to_them(scheduler: Scheduler) -> None:
    task = scheduler.task(add)
    async with scheduler:
        later = task.options(delay=3600, tags=["a", "a", "b"])
        job = await (await later.options(priority=4, queue="mail").enqueue(1)).refresh()
        assert (job.state, job.priority, job.queue, job.tags) == ("scheduled", 4, "mail", ("a", "b"))
        moment = datetime(2090, 1, 1, tzinfo=UTC)
        assert (await later.options(run_at=moment).enqueue(1)).run_at == moment, "the later word about the time counts"
        plainly = await task.enqueue(1)
        assert plainly.priority == 0, "the task itself stays as it was"


async def test_many_takes_calls_and_tuples_and_says_what_is_neither(scheduler: Scheduler) -> None:
    task = scheduler.task(add)
    stranger = Scheduler("sqlite:///never-opened.db").task(plain)
    async with scheduler:
        jobs = await task.enqueue_many([(1,), task.options(priority=7).call(2, right=3)])
        assert [(await job.result(30), job.priority) for job in jobs] == [(3, 0), (5, 7)]
        assert await task.enqueue_many([]) == []
        for wrong in ("ab", 1, {"left": 1}, None):
            with pytest.raises(InvalidArguments, match="enqueue_many takes tuples"):
                await task.enqueue_many([wrong])  # type: ignore[list-item]  # what is refused
        with pytest.raises(UnknownTask, match="plain"):
            await task.enqueue_many([stranger.call(1)])  # type: ignore[list-item]  # a call of another task
        assert await scheduler.jobs.count() == 2


# ── looking ───────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_filter_or_cursor_that_fits_no_job_is_refused_and_not_answered_with_nothing(
    scheduler: Scheduler,
) -> None:
    async with scheduler:
        refused: list[Callable[[], Awaitable[object]]] = [
            lambda: scheduler.jobs.list(state="finished"),
            lambda: scheduler.jobs.count(state="finished"),
            lambda: scheduler.jobs.list(tracking_id="two words"),
            lambda: scheduler.jobs.count(tracking_id="two words"),
            lambda: scheduler.jobs.list(cursor="page 2"),
            lambda: scheduler.schedules.fires("s", cursor="page 2"),
        ]
        for ask in refused:
            with pytest.raises(ConfigurationError):
                await ask()
        with pytest.raises(JobNotFound):
            await scheduler.jobs.attempts(uuid4())


async def test_every_filter_counts_what_it_lists_and_pages_follow_each_other(database_url: str) -> None:
    scheduler = Scheduler(database_url, role="client")
    task = scheduler.task(add)
    async with scheduler:
        made = await task.enqueue_many([(number,) for number in range(25)])
        marked = await task.options(tags=["red"], queue="mail", tracking_id="story-1").enqueue(1)
        seen, cursor = [], None
        while True:
            page = await scheduler.jobs.list(task="add", limit=7, cursor=cursor)
            seen += [job.id for job in page]
            if (cursor := page.cursor) is None:
                break
        assert seen == sorted([*(job.id for job in made), marked.id], reverse=True), "newest first, each once"
        filters: list[dict[str, Any]] = [{"tag": "red"}, {"queue": "mail"}, {"tracking_id": "story-1"}]
        for one in filters:
            assert [job.id for job in await scheduler.jobs.list(**one)] == [marked.id]
            assert await scheduler.jobs.count(**one) == 1
        assert await scheduler.jobs.count(state="queued", task="add") == 26
        assert await scheduler.jobs.count(schedule_id="none") == 0


async def test_a_wait_takes_seconds_or_a_timedelta_and_says_what_it_waited_for(scheduler: Scheduler) -> None:
    scheduler.task(add, retry=Retry(attempts=1))
    task = scheduler.registry.get("add")
    async with scheduler:
        job = await task.options(delay=3600).enqueue(1)
        for timeout in (0.05, timedelta(milliseconds=50), 0, -1):
            with pytest.raises(TimeoutError, match="add"):
                await job.wait(timeout)
        for wrong in (math.nan, "5", True):
            with pytest.raises(InvalidArguments, match="timeout"):
                await job.wait(wrong)  # type: ignore[arg-type]  # what is refused
