"""Starting a scheduler: not yet, twice, beside another app, after a fork, and after a deploy."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from onebeat import ConfigurationError, Every, NotStarted, OnebeatError, Scheduler, SchemaOutOfDate, UnknownTask
from tests.scheduler.arrange import do_nothing, do_nothing_else, jobs_in, scheduler_on


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


async def test_a_job_of_a_removed_task_waits_until_the_task_returns(tmp_path: Path) -> None:
    old = scheduler_on(tmp_path, role="client")
    gone = old.task(name="gone")(do_nothing)
    async with old:
        job = await gone.enqueue()

    without = scheduler_on(tmp_path)
    other = without.task(name="other")(do_nothing_else)
    async with without:
        assert (await (await other.enqueue()).wait(30)).state == "succeeded"
        assert (await without.jobs.get(job.id)).state == "queued", "unknown here, kept for whoever knows it"
        with pytest.raises(UnknownTask):
            await without.schedules.add("late", "gone", Every(60))

    back = scheduler_on(tmp_path)
    back.task(name="gone")(do_nothing)
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


async def test_a_forked_child_is_told_to_start_a_scheduler_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scheduler_on(tmp_path) as scheduler:

        @scheduler.task(name="greet")
        async def greet() -> None: ...

        with monkeypatch.context() as child:
            child.setattr("onebeat.scheduler.runtime.os.getpid", lambda: -1)
            with pytest.raises(NotStarted, match="after the fork"):
                await greet.enqueue()
            with pytest.raises(NotStarted, match="after the fork"):
                await asyncio.to_thread(greet.enqueue_sync)
        assert jobs_in(tmp_path) == 0
