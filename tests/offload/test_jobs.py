"""Jobs off the event loop, through a real scheduler on SQLite."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from onebeat import At, JobInfo, Retry, Scheduler, TaskRouter
from onebeat.errors import ConfigurationError, NotStarted
from onebeat.model.events import JobStarted
from onebeat.model.job import JobState
from onebeat.offload import setup_offload, to_process
from onebeat.offload.processes import close_processes
from onebeat.offload.runners import ProcessRunner
from onebeat.tasks.task import Task
from onebeat.tracking import tracking
from tests.offload import jobs, work


@pytest.fixture
async def scheduler(tmp_path: Path) -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(f"sqlite:///{tmp_path / 'jobs.db'}", poll=0.1, drain=2)
    scheduler.include(jobs.router)
    async with scheduler:
        yield scheduler


async def until_running(job: JobInfo) -> None:
    async with asyncio.timeout(30):
        while (await job.refresh()).state is not JobState.RUNNING:
            await asyncio.sleep(0.01)


async def test_a_process_job_that_spins_for_ever_ends_at_its_timeout_and_its_neighbour_finishes(
    scheduler: Scheduler, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    (tmp_path / "warm").touch()
    with tracking("order-7"):
        warm = await jobs.where.enqueue(str(tmp_path / "warm"))
        neighbour = await jobs.where.enqueue(str(go))
    await warm.result(30)
    spinning = await jobs.spins.enqueue()
    await until_running(spinning)
    before = time.monotonic()
    ended = await spinning.wait(30)
    assert ended.state is JobState.FAILED
    assert "timeout of 1 s" in (ended.error or "")
    assert time.monotonic() - before < 1.5 + 2, "1.5 s are promised; 2 more for a loaded machine"
    go.touch()
    told = await neighbour.result(30)
    assert told["tracking_id"] == "order-7"
    assert told["pid"] != os.getpid()
    again = await jobs.where.enqueue(str(go))
    assert (await again.result(30))["pid"] > 0, "its place is back"


@pytest.fixture
def _one_process() -> Iterator[None]:
    close_processes()
    setup_offload(processes=1)
    yield
    close_processes()
    setup_offload()


@pytest.mark.usefixtures("_one_process")
async def test_no_more_process_jobs_start_than_there_are_processes(tmp_path: Path) -> None:
    """Neither out of one claim nor out of two that follow each other."""
    database = f"sqlite:///{tmp_path / 'jobs.db'}"
    client = Scheduler(database, role="client")
    client.registry.add(jobs.where)
    async with client:  # all of them wait before the first claim
        made = [await jobs.where.options(queue=queue).enqueue(str(tmp_path)) for queue in ["left", "right"] * 6]
    scheduler = Scheduler(database, poll=0.1, drain=2, queues={"left": 8, "right": 8})
    scheduler.registry.add(jobs.where)  # nothing else to claim, which would give a job time to reach its process
    started: list[object] = []
    scheduler.on(JobStarted)(started.append)
    async with scheduler:
        ended = [await (await scheduler.jobs.get(job.id)).wait(30) for job in made]
    assert {(job.state, job.attempt) for job in ended} == {(JobState.SUCCEEDED, 1)}, ended
    assert len(started) == len(made), "and none was claimed in vain"


async def test_a_job_whose_process_went_to_somebody_else_is_given_back_unstarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at what is free and the start, another worker of this server may take the last one."""
    monkeypatch.setattr(ProcessRunner, "free", 100)  # always too late
    scheduler = Scheduler(f"sqlite:///{tmp_path / 'jobs.db'}", poll=0.1, drain=2)
    scheduler.include(jobs.router)
    async with scheduler:
        made = [await jobs.where.enqueue(str(tmp_path)) for _ in range(6)]
        ended = [await job.wait(30) for job in made]
    assert {(job.state, job.error) for job in ended} == {(JobState.SUCCEEDED, None)}, ended


async def test_a_process_that_dies_fails_its_job_alone(scheduler: Scheduler) -> None:
    ended = await (await jobs.dies.enqueue()).wait(30)
    assert ended.state is JobState.FAILED
    assert "exit code 9" in (ended.error or "")


async def test_a_sync_task_goes_to_a_thread_by_itself_and_knows_its_time(scheduler: Scheduler) -> None:
    name, left = await (await jobs.on_a_thread.enqueue()).result(30)
    assert name.startswith("onebeat-jobs-")
    assert 20 < left <= 30


@pytest.mark.parametrize("task", [jobs.hasty, jobs.hasty_in_a_process], ids=["thread", "process"])
async def test_a_job_that_leaves_at_a_checkpoint_when_its_time_is_over_has_timed_out(
    task: Task[[], None], scheduler: Scheduler
) -> None:
    """The function sees the end of its time a moment before the loop does; it was once failed as `Stopped`."""
    for _ in range(5):
        ended = await (await task.enqueue()).wait(30)
        assert (ended.state, ended.reason) == (JobState.FAILED, "timeout")
        assert "timeout of 0.2 s" in (ended.error or "")


async def test_a_cancelled_thread_job_that_leaves_at_a_checkpoint_is_cancelled(scheduler: Scheduler) -> None:
    job = await jobs.polite.enqueue()
    await until_running(job)
    await job.cancel()
    ended = await job.wait(30)
    assert ended.state is JobState.CANCELLED
    assert jobs.asked_to_stop.is_set()


async def test_jobs_call_processes_and_take_their_tracking_id_along(scheduler: Scheduler) -> None:
    with tracking("order-8"):
        asynchronous, threaded = await jobs.asks_a_process.enqueue(), await jobs.asks_a_process_from_a_thread.enqueue()
    assert await asynchronous.result(30) == "order-8"
    assert await threaded.result(30) == "order-8"


def test_what_cannot_run_in_a_process_is_refused_at_its_declaration() -> None:
    router = TaskRouter()
    with pytest.raises(ConfigurationError, match=r"neither a JobContext .* its parameter 'context'"):
        router.task(run_in="process")(jobs.wants_its_context)
    for wants in (jobs.depends_by_annotation, jobs.depends_by_default):
        with pytest.raises(ConfigurationError, match=r"nor what Depends makes .* its parameter 'value'"):
            router.task(run_in="process")(wants)

    def local() -> None: ...

    for nameless in (local, lambda: None):
        with pytest.raises(ConfigurationError, match="a child process cannot find it"):
            router.task(run_in="process", name="nameless")(nameless)
    with pytest.raises(ConfigurationError, match="async and runs on the event loop"):
        router.task(run_in="process")(jobs.asks_a_process.function)
    for run_in in ("auto", "thread", "process"):
        with pytest.raises(ConfigurationError, match="is a generator"):
            router.task(run_in=run_in)(work.counting)
    router.task(jobs.wants_its_context)
    router.task(name="local")(local)


async def test_a_job_in_a_process_knows_itself_and_refuses_what_needs_the_database(tmp_path: Path) -> None:
    scheduler = Scheduler(f"sqlite:///{tmp_path / 'jobs.db'}", poll=0.1, drain=2, timezone="Europe/Berlin")
    facts = scheduler.task(run_in="process", timeout=30, retry=Retry(1))(jobs.facts)
    nested = scheduler.task(timeout=30)(jobs.asks_for_its_job_in_a_process)
    fire = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=1)
    async with scheduler:
        await scheduler.schedules.add("once", facts, At(fire))
        with tracking("order-7"):
            job = await facts.enqueue()
        told = await job.result(30)
        fence, pid = told.pop("fence"), told.pop("pid")
        refused = told.pop("refused")
        assert told == {
            "id": str(job.id), "attempt": 1, "task": "facts", "tracking_id": "order-7", "schedule_id": None,
            "fire_time": "None", "has_time": True, "cancelled": False,
        }  # fmt: skip
        assert fence >= 1
        assert pid != os.getpid()
        assert [text.partition(",")[0] for text in refused] == ["this job runs in a child process"] * 3
        assert await (await nested.enqueue()).result(30) == "asks_for_its_job_in_a_process"
        async with asyncio.timeout(30):
            while not (made := (await scheduler.jobs.list(schedule_id="once")).items):
                await asyncio.sleep(0.05)
        fired = await made[0].result(30)
    assert fired["schedule_id"] == "once"
    assert datetime.fromisoformat(fired["fire_time"]) == fire
    with pytest.raises(NotStarted, match="no job is running here"):
        await to_process(jobs.job_of_a_call)
