"""Bad input and bad days at the facade: each has a typed error with a next step, and loses nothing."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import re
import sqlite3
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from examples.shop.__main__ import free_port
from sqlalchemy import make_url

import onebeat
from onebeat import (
    At,
    ConfigurationError,
    DatabaseUnavailable,
    DuplicateTask,
    Every,
    InvalidArguments,
    InvalidCron,
    InvalidTrigger,
    JobCancelled,
    JobFailed,
    JobInfo,
    JobNotFound,
    LockTimeout,
    NotStarted,
    OnebeatError,
    Retry,
    ScheduleExists,
    ScheduleNotFound,
    Scheduler,
    SchemaOutOfDate,
    StaleRevision,
    UnknownTask,
    errors,
)
from onebeat.model.events import DatabaseTrouble
from onebeat.store.tx import Tx
from tests.support.databases import find_servers, waits_until
from tests.support.proxy import Proxy

SERVER_KINDS = [kind for kind in find_servers() if kind in ("postgresql", "mariadb")]


def scheduler_on(folder: Path, **settings: Any) -> Scheduler:
    """A scheduler on a new SQLite file."""
    return Scheduler(f"sqlite:///{folder / 'app.db'}", **settings)


def test_every_error_is_an_onebeat_error_and_names_are_exported() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(classes) > 15
    for found in classes:
        assert issubclass(found, OnebeatError)
        assert getattr(onebeat, found.__name__) is found


def jobs_in(folder: Path) -> int:
    """How many job rows an independent reader sees."""
    with sqlite3.connect(folder / "app.db") as connection:
        [(count,)] = connection.execute("select count(*) from onebeat_jobs").fetchall()
    return int(count)


# ── before the start ──────────────────────────────────────────────────────────────────────────────────────────────────
async def test_an_enqueue_before_start_names_the_three_ways_to_start(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)

    @scheduler.task(name="greet")
    async def greet() -> None: ...

    with pytest.raises(NotStarted) as caught:
        await greet.enqueue()
    words = str(caught.value)
    for way in ("install(", "async with", "with scheduler"):
        assert way in words
    assert not (tmp_path / "app.db").exists(), "nothing may be opened before start"


async def test_starting_twice_is_an_error_and_starting_again_after_stop_is_not(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)
    async with scheduler:
        with pytest.raises(OnebeatError):
            await scheduler.start()
    async with scheduler:
        assert len(await scheduler.jobs.list()) == 0


@pytest.mark.parametrize("url", ["oracle://scott:tiger@localhost/xe", "mongodb://localhost/x", "not a url", ""])
async def test_an_unknown_url_scheme_is_refused_with_those_that_work(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await Scheduler(url).start()
    assert {"sqlite", "postgresql"} <= set(re.findall(r"\w+", str(caught.value)))
    assert "tiger" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
async def test_an_unreachable_server_is_reported_after_start_timeout_without_the_password(
    scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = f"{scheme}://shop:very-secret@127.0.0.1:{free_port()}/shop"
    started = asyncio.get_running_loop().time()
    with pytest.raises(DatabaseUnavailable) as caught:
        await Scheduler(url, start_timeout=1).start()
    assert 0.3 <= asyncio.get_running_loop().time() - started < 30, "it tries again for a while, and not for ever"
    assert "very-secret" not in everything_of(caught.value) + caplog.text
    assert "127.0.0.1" in str(caught.value)


def everything_of(error: BaseException) -> str:
    """What a log would hold of it: the traceback with all causes."""
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize("database_kind", SERVER_KINDS)
async def test_a_server_that_goes_away_and_comes_back_loses_nothing(database_url: str) -> None:
    proxy = Proxy(database_url)
    await proxy.start()
    scheduler = Scheduler(proxy.url, poll=0.2, start_timeout=10)
    task = scheduler.task(name="mail")(_nothing)
    async with scheduler:
        later = await task.options(delay=1).enqueue()
        proxy.refuse = True
        proxy.cut()
        with pytest.raises(DatabaseUnavailable) as caught:
            await task.enqueue()
        assert str(make_url(database_url).database) in str(caught.value)
        assert not (await scheduler.health()).ok
        proxy.refuse = False
        assert (await _answered(scheduler, later.id)).state == "succeeded", "the engine went on by itself"
        assert (await (await task.enqueue()).wait(30)).state == "succeeded"
        assert len(await scheduler.jobs.list()) == 2, "what was refused was not stored"
    await proxy.close()


@pytest.mark.parametrize("database_kind", SERVER_KINDS)
async def test_a_refused_login_is_said_at_once_without_the_password(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = make_url(database_url).set(username="onebeat_nobody", password="very-secret")
    with pytest.raises(DatabaseUnavailable) as caught:
        await Scheduler(url.render_as_string(hide_password=False), start_timeout=60).start()
    assert caught.value.reason == "login"
    assert "very-secret" not in everything_of(caught.value) + caplog.text


async def test_a_disk_that_is_full_holds_the_work_up_and_loses_none(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path, poll=0.1)
    running, go = asyncio.Event(), asyncio.Event()

    @scheduler.task(name="work")
    async def work(load: str) -> str:
        running.set()
        await go.wait()
        return "v" * 20_000

    def room(tx: Tx, pages: int) -> None:
        present = tx.connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        tx.connection.exec_driver_sql(f"PRAGMA max_page_count = {present + pages}")

    async with scheduler:
        job = await work.enqueue("first")
        await running.wait()
        troubles: list[DatabaseTrouble] = []
        scheduler.on(DatabaseTrouble)(troubles.append)
        await scheduler._open_database().write(room, 2)
        with pytest.raises(DatabaseUnavailable, match="no room left") as caught:
            await work.enqueue("y" * 30_000)
        assert caught.value.reason == "full"
        go.set()
        await waits_until(lambda: [trouble for trouble in troubles if trouble.part == "settler"] != [])
        assert (await job.refresh()).state == "running", "its end is not written yet, and not forgotten"
        await scheduler._open_database().write(room, 10_000)
        assert len(await job.result(30)) == 20_000
        assert await scheduler.jobs.count() == 1, "what was refused was not stored"


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)
    scheduler.task(name="mail")(_nothing)
    with pytest.raises(DuplicateTask, match="mail"):
        scheduler.task(name="mail")(_other)


@pytest.mark.parametrize("name", ["x" * 201, "", "naïve", "a\nb"])
def test_a_task_name_that_cannot_be_stored_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError):
        scheduler_on(tmp_path).task(name=name)(_nothing)


def test_a_task_name_of_two_hundred_characters_is_fine(tmp_path: Path) -> None:
    assert scheduler_on(tmp_path).task(name="x" * 200)(_nothing).name == "x" * 200


def test_a_function_made_inside_a_function_needs_a_name(tmp_path: Path) -> None:
    async def local() -> None: ...

    with pytest.raises(ConfigurationError, match="name="):
        scheduler_on(tmp_path).task(local)


def test_two_schedules_of_one_id_are_refused_in_code(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)
    task = scheduler.task(name="mail")(_nothing)
    scheduler.declare("nightly", task, Every(60))
    with pytest.raises(ScheduleExists, match="nightly"):
        scheduler.declare("nightly", task, Every(30))


async def test_a_second_schedule_of_one_id_is_refused_at_run_time_and_the_first_stays(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)
    task = scheduler.task(name="mail")(_nothing)
    async with scheduler:
        await scheduler.schedules.add("nightly", task, Every(3600))
        with pytest.raises(ScheduleExists, match="if_exists"):
            await scheduler.schedules.add("nightly", task, Every(60))
        assert (await scheduler.schedules.get("nightly")).trigger == Every(3600)
        with pytest.raises((ConfigurationError, InvalidArguments)):
            await scheduler.schedules.add("x" * 201, task, Every(60))
        with pytest.raises(ScheduleNotFound):
            await scheduler.schedules.get("unknown")


# ── times ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_naive_datetime_is_refused_with_a_hint(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)
    task = scheduler.task(name="mail")(_nothing)
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
    task = scheduler.task(name="mail")(_nothing)
    async with scheduler:
        with pytest.raises(InvalidArguments, match="delay"):
            await task.options(delay=delay).enqueue()
    assert jobs_in(tmp_path) == 0


async def test_a_run_at_in_the_past_runs_now_and_an_at_in_the_past_is_refused(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)
    task = scheduler.task(name="mail")(_nothing)
    past = datetime.now(UTC) - timedelta(hours=1)
    async with scheduler:
        job = await task.options(run_at=past).enqueue()
        assert (await job.wait(30)).state == "succeeded"
        with pytest.raises((InvalidTrigger, InvalidArguments), match="past"):
            await scheduler.schedules.add("once", task, At(past))


def test_a_wrong_cron_expression_is_refused_where_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidCron) as caught:
        scheduler_on(tmp_path).cron("61 * * * *")(_nothing)
    assert caught.value.position == 0


async def test_what_is_no_trigger_is_refused_with_what_to_write(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)
    task = scheduler.task(name="mail")(_nothing)
    text: Any = "*/5 * * * *"
    with pytest.raises(InvalidTrigger, match=r"write Cron\('\*/5 \* \* \* \*'\)"):
        scheduler.declare("often", task, text)
    async with scheduler:
        wrong: Any
        for wrong in (text, None, 5):
            with pytest.raises(InvalidTrigger, match="needs a trigger"):
                await scheduler.schedules.add("often", task, wrong)


# ── arguments ─────────────────────────────────────────────────────────────────────────────────────────────────────────
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

    task = scheduler.task(name="mail")(_nothing)
    async with scheduler:
        with pytest.raises(JobFailed, match="the printer is on fire"):
            await (await break_down.enqueue()).result(30)
        job = await task.options(delay=3600).enqueue()
        await job.cancel()
        with pytest.raises(JobCancelled):
            await job.result(30)


async def test_an_edit_of_a_schedule_that_someone_else_edited_is_refused(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)
    task = scheduler.task(name="mail")(_nothing)
    async with scheduler:
        seen = await scheduler.schedules.add("nightly", task, Every(3600))
        await scheduler.schedules.update("nightly", expected_rev=seen.rev, trigger=Every(1800))
        with pytest.raises(StaleRevision):
            await scheduler.schedules.update("nightly", expected_rev=seen.rev, trigger=Every(60))
        assert (await scheduler.schedules.get("nightly")).trigger == Every(1800)


# ── deploys ───────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_job_of_a_removed_task_waits_until_the_task_returns(tmp_path: Path) -> None:
    old = scheduler_on(tmp_path, role="client")
    gone = old.task(name="gone")(_nothing)
    async with old:
        job = await gone.enqueue()

    without = scheduler_on(tmp_path)
    other = without.task(name="other")(_other)
    async with without:
        assert (await (await other.enqueue()).wait(30)).state == "succeeded"
        assert (await without.jobs.get(job.id)).state == "queued", "unknown here, kept for whoever knows it"
        with pytest.raises(UnknownTask):
            await without.schedules.add("late", "gone", Every(60))

    back = scheduler_on(tmp_path)
    back.task(name="gone")(_nothing)
    async with back:
        assert (await back.jobs.wait(job.id, 30)).state == "succeeded"


async def test_two_apps_on_the_same_tables_are_refused_with_the_two_ways_out(tmp_path: Path) -> None:
    async with scheduler_on(tmp_path, app="shop"):
        pass
    with pytest.raises(ConfigurationError, match="table_prefix") as caught:
        await scheduler_on(tmp_path, app="blog").start()
    assert "shop" in str(caught.value)
    async with scheduler_on(tmp_path, app="blog", table_prefix="blog_"):
        pass


async def test_missing_tables_with_migrate_off_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(SchemaOutOfDate, match="onebeat migrate"):
        await scheduler_on(tmp_path, migrate=False).start()


async def _answered(scheduler: Scheduler, job_id: UUID) -> JobInfo:
    """Wait for a job although the database may still be away."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await scheduler.jobs.wait(job_id, 30)
            except DatabaseUnavailable:
                await asyncio.sleep(0.05)  # the pause of a client that asks again


async def _nothing() -> None:
    """Do nothing."""


async def _other() -> None:
    """Do nothing either."""


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


async def test_what_is_no_function_is_refused_as_a_task_by_its_name(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)

    async def greet(name: str, times: int) -> None: ...

    scheduler.task(name="greet")(functools.partial(greet, times=2))
    with pytest.raises(ConfigurationError, match="task 'greet' is a partial, not a function"):
        await scheduler.start()


async def test_a_forked_child_is_told_to_start_a_scheduler_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scheduler_on(tmp_path) as scheduler:

        @scheduler.task(name="greet")
        async def greet() -> None: ...

        with monkeypatch.context() as child:
            child.setattr("onebeat.scheduler.scheduler.os.getpid", lambda: -1)
            with pytest.raises(NotStarted, match="after the fork"):
                await greet.enqueue()
            with pytest.raises(NotStarted, match="after the fork"):
                await asyncio.to_thread(greet.enqueue_sync)
        assert jobs_in(tmp_path) == 0
