"""A job from enqueue to its end, through the whole engine, on every database."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from onebeat.errors import JobCancelled, JobExists, JobFailed, NotStarted
from onebeat.model.events import ValueDropped
from onebeat.model.job import JobState
from onebeat.scheduler.scheduler import Scheduler
from onebeat.tasks.context import JobContext, current_job
from onebeat.timing.backoff import Cancel, Retry, Snooze
from tests.engine.conftest import Make
from tests.support.databases import waits_until


async def test_arguments_arrive_with_their_types_and_the_value_comes_back(make: Make) -> None:
    scheduler = make()

    @scheduler.task(name="later")
    async def later(start: datetime, days: int = 1) -> dict[str, Any]:
        return {"end": start + timedelta(days=days)}

    await scheduler.start()
    job = await later.enqueue(datetime(2026, 1, 1, tzinfo=UTC), days=2)
    assert await job.result(10) == {"end": "2026-01-03T00:00:00Z"}
    info = await job.refresh()
    assert (info.attempt, info.state, info.duplicate) == (1, JobState.SUCCEEDED, False)


async def test_a_sync_function_never_runs_on_the_event_loop(make: Make) -> None:
    scheduler = make()

    @scheduler.task(name="where")
    def where() -> str:
        return threading.current_thread().name

    await scheduler.start()
    assert await (await where.enqueue()).result(10) != threading.current_thread().name


async def test_a_delayed_job_waits_for_its_time(make: Make) -> None:
    scheduler = make()

    @scheduler.task(name="when")
    async def when() -> float:
        return time.time()

    await scheduler.start()
    asked = time.time()
    job = await when.options(delay=1).enqueue()
    assert job.state is JobState.SCHEDULED
    assert 0.99 <= await job.result(10) - asked < 5
    past = await when.options(run_at=datetime.now(UTC) - timedelta(hours=1)).enqueue()
    assert await past.result(10) > asked


async def test_the_attempt_of_a_job_that_succeeds_at_once_is_shown(make: Make) -> None:
    scheduler = make()

    @scheduler.task(name="work")
    async def work() -> None: ...

    await scheduler.start()
    job = await work.enqueue()
    await job.wait(10)
    [attempt] = await scheduler.jobs.attempts(job.id)
    assert (attempt.attempt, attempt.outcome, attempt.error) == (1, "succeeded", None)
    assert attempt.worker is not None
    assert attempt.started_at is not None
    assert attempt.finished_at is not None
    assert attempt.started_at <= attempt.finished_at


async def test_a_failing_job_is_tried_again_and_its_history_is_kept(make: Make) -> None:
    scheduler = make()

    @scheduler.task(name="third", retry=Retry(attempts=3, base=0.05))
    async def third(context: JobContext) -> int:
        if context.attempt < 3:
            raise ValueError(f"not at attempt {context.attempt}")
        return current_job().attempt

    @scheduler.task(name="never", retry=Retry(attempts=2, base=0.05))
    async def never() -> None:
        raise ValueError("no")

    await scheduler.start()
    job, hopeless = await third.enqueue(), await never.enqueue()
    assert await job.result(10) == 3
    attempts = await scheduler.jobs.attempts(job.id)
    assert [(a.attempt, a.outcome) for a in attempts] == [(1, "error"), (2, "error"), (3, "succeeded")]
    with pytest.raises(JobFailed, match="exhausted: ValueError: no"):
        await hopeless.result(10)
    assert "raise ValueError" in str((await scheduler.jobs.attempts(hopeless.id))[0].traceback)


async def test_snooze_uses_no_attempt_and_cancel_stops_for_good(make: Make) -> None:
    scheduler = make()
    seen: list[int] = []

    @scheduler.task(name="patient", retry=Retry(attempts=1))
    async def patient(context: JobContext) -> str:
        seen.append(context.attempt)
        if len(seen) < 3:
            raise Snooze(0.05)
        return "done"

    @scheduler.task(name="gone")
    async def gone() -> None:
        raise Cancel("the user is gone")

    await scheduler.start()
    assert await (await patient.enqueue()).result(10) == "done"
    assert seen == [1, 2, 3]
    with pytest.raises(JobCancelled, match="the user is gone"):
        await (await gone.enqueue()).result(10)


@pytest.mark.parametrize("words", ["nicht nötig – ß", "日本" * 60, "a\nb\x00c", "x" * 500], ids=ascii)
async def test_a_task_may_say_in_any_script_why_it_stops(make: Make, words: str) -> None:
    scheduler = make()

    @scheduler.task(name="stop")
    async def stop(why: str) -> None:
        raise Cancel(why)

    await scheduler.start()
    ended = await (await stop.enqueue(words)).wait(10)
    assert ended.state == JobState.CANCELLED
    assert ended.reason is not None
    assert ended.reason[:8] == words[:8].replace("\x00", "\\x00")
    assert len(ended.reason) <= 64


async def test_the_last_progress_is_written_however_soon_the_function_returns(make: Make) -> None:
    scheduler = make()

    @scheduler.task(name="quick")
    async def quick(job: JobContext) -> None:
        for done in range(1, 4):
            await job.progress(done, 3, f"{done} of drei – ß")

    @scheduler.task(name="threaded", retry=Retry(attempts=1))
    def threaded(job: JobContext) -> None:
        job.sync.progress(1)
        job.sync.progress(2)
        raise RuntimeError("half way")

    await scheduler.start()
    ended = await (await quick.enqueue()).wait(10)
    assert ended.progress == {"done": 3, "total": 3, "message": "3 of drei – ß"}
    failed = await (await threaded.enqueue()).wait(10)
    assert (failed.state, failed.progress) == (JobState.FAILED, {"done": 2, "total": None, "message": None})


async def test_a_coroutine_past_its_timeout_is_cancelled(make: Make) -> None:
    scheduler = make()

    @scheduler.task(name="slow", timeout=0.2, retry=Retry(attempts=1))
    async def slow() -> None:
        await asyncio.sleep(60)

    await scheduler.start()
    with pytest.raises(JobFailed, match=r"longer than its timeout of 0\.2 s"):
        await (await slow.enqueue()).result(10)


async def test_a_thread_past_its_timeout_keeps_its_slot_until_it_returns(make: Make) -> None:
    scheduler = make()
    release = threading.Event()

    @scheduler.task(name="stuck", timeout=0.2, retry=Retry(attempts=1))
    def stuck(context: JobContext) -> None:
        release.wait(20)
        assert context.cancelled

    await scheduler.start()
    job = await stuck.enqueue()
    await _until(lambda: _reason(job, "timeout"))
    assert (await job.refresh()).state is JobState.RUNNING
    release.set()
    with pytest.raises(JobFailed, match="timeout"):
        await job.result(10)


async def test_a_running_job_learns_of_its_cancel_within_two_seconds(make: Make) -> None:
    scheduler = make()
    started = asyncio.Event()

    @scheduler.task(name="endless")
    async def endless() -> None:
        started.set()
        await asyncio.sleep(60)

    await scheduler.start()
    job = await endless.enqueue()
    await asyncio.wait_for(started.wait(), 10)
    asked = time.monotonic()
    await job.cancel()
    with pytest.raises(JobCancelled):
        await job.result(10)
    assert time.monotonic() - asked < 4


async def test_a_job_that_swallows_its_cancel_has_succeeded(make: Make) -> None:
    scheduler = make()
    started = asyncio.Event()

    @scheduler.task(name="stubborn")
    async def stubborn() -> str:
        try:
            started.set()
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "finished all the same"
        return "never"

    await scheduler.start()
    job = await stubborn.enqueue()
    await asyncio.wait_for(started.wait(), 10)
    await job.cancel()
    ended = await job.wait(10)
    assert (ended.state, ended.reason, ended.value) == (JobState.SUCCEEDED, "cancel ignored", "finished all the same")


async def test_a_drain_gives_running_jobs_back_without_using_a_budget(make: Make) -> None:
    first, second = make(drain=0.2), make()
    started = asyncio.Event()
    runs: list[int] = []

    for scheduler in (first, second):

        @scheduler.task(name="long", retry=Retry(attempts=1))
        async def long(context: JobContext) -> int:
            runs.append(context.attempt)
            started.set()
            if context.attempt == 1:
                await asyncio.sleep(60)
            return context.attempt

    await first.start()
    job = await first.registry.get("long").enqueue()
    await asyncio.wait_for(started.wait(), 10)
    await first.stop()
    await second.start()
    ended = await second.jobs.wait(job.id, 10)
    assert (ended.state, ended.value, runs) == (JobState.SUCCEEDED, 2, [1, 2])


async def test_queues_of_ones_own_have_slots_of_their_own(make: Make) -> None:
    scheduler = make(queues={"mail": 2}, slots=10)
    peaks: list[int] = []
    at_once = 0

    @scheduler.task(name="send", queue="mail")
    async def send() -> None:
        nonlocal at_once
        at_once += 1
        peaks.append(at_once)
        await asyncio.sleep(0.05)
        at_once -= 1

    await scheduler.start()
    sent = await send.enqueue_many([()] * 8)
    await asyncio.gather(*(job.wait(10) for job in sent))
    assert max(peaks) == 2


async def test_many_jobs_each_run_once(make: Make) -> None:
    scheduler = make(slots=50)
    ran: list[int] = []

    @scheduler.task(name="count")
    async def count(n: int) -> None:
        ran.append(n)

    await scheduler.start()
    jobs = await count.enqueue_many([(n,) for n in range(1000)])
    await asyncio.gather(*(job.wait(30) for job in jobs))
    assert sorted(ran) == list(range(1000))
    assert await scheduler.jobs.count(state="succeeded") == 1000


async def test_an_ended_job_can_be_retried_and_deleted_and_an_unended_one_cannot(make: Make) -> None:
    scheduler = make()
    gate = asyncio.Event()

    @scheduler.task(name="gated")
    async def gated() -> None:
        await gate.wait()

    await scheduler.start()
    job = await gated.enqueue()
    with pytest.raises(JobExists):
        await scheduler.jobs.retry(job.id)
    gate.set()
    await job.wait(10)
    again = await scheduler.jobs.retry(job.id)
    assert (await again.wait(10)).attempt == 2
    await scheduler.jobs.delete(job.id)
    assert await scheduler.jobs.count() == 0


async def test_a_value_that_is_no_json_does_not_fail_the_work(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    scheduler = make()
    told: list[ValueDropped] = []
    scheduler.on(ValueDropped)(told.append)

    @scheduler.task(name="odd")
    async def odd() -> object:
        return object()

    await scheduler.start()
    for _ in range(3):
        ended = await (await odd.enqueue()).wait(10)
        assert (ended.state, ended.value) == (JobState.SUCCEEDED, None)
    assert [event.again for event in told] == [False, True, True]
    warnings = [record for record in caplog.records if "was not stored" in record.getMessage()]
    assert len(warnings) == 1, "one warning a task"


async def test_an_unknown_task_stays_queued_until_a_worker_knows_it(make: Make) -> None:
    client, knowing = make(role="client"), make()

    @client.task(name="rare")
    async def rare() -> None: ...

    knowing.task(rare.function, name="rare")
    blind = make()
    await client.start()
    job = await rare.enqueue()
    await blind.start()
    await asyncio.sleep(0.5)  # several polls of a worker that must not touch it
    assert (await client.jobs.get(job.id)).state is JobState.QUEUED
    await knowing.start()
    assert (await client.jobs.wait(job.id, 10)).state is JobState.SUCCEEDED


async def test_jobs_enqueue_jobs_and_threads_enqueue_too(make: Make) -> None:
    scheduler = make()

    @scheduler.task(name="leaf")
    async def leaf(n: int) -> int:
        return n * 2

    @scheduler.task(name="parent")
    async def parent() -> str:
        return str((await leaf.enqueue(1)).id)

    @scheduler.task(name="threaded")
    def threaded() -> str:
        return str(leaf.enqueue_sync(2).id)

    await scheduler.start()
    for task, wanted in ((parent, 2), (threaded, 4)):
        id = await (await task.enqueue()).result(10)
        assert (await scheduler.jobs.wait(id, 10)).value == wanted


async def test_another_event_loop_is_told_how_to_enqueue_on_every_database(make: Make) -> None:
    scheduler = make(role="client")

    @scheduler.task(name="greet")
    async def greet() -> None: ...

    async def elsewhere() -> JobState:
        for ask in (greet.enqueue, scheduler.jobs.list):
            with pytest.raises(NotStarted, match="enqueue_sync"):
                await ask()
        return (await asyncio.to_thread(greet.enqueue_sync)).state

    await scheduler.start()
    assert await asyncio.to_thread(lambda: asyncio.run(elsewhere())) == JobState.QUEUED
    assert await scheduler.jobs.count() == 1


async def test_enqueue_before_start_says_how_to_start(make: Make) -> None:
    scheduler = make()

    @scheduler.task(name="early")
    async def early() -> None: ...

    with pytest.raises(NotStarted, match=r"install\(app, scheduler\)"):
        await early.enqueue()


async def test_a_script_enqueues_without_an_event_loop(database_url: str) -> None:
    scheduler = Scheduler(database_url)

    @scheduler.task(name="script")
    async def script() -> None: ...

    def run() -> JobState:
        with scheduler:
            return script.enqueue_sync().state

    assert await asyncio.to_thread(run) is JobState.QUEUED


async def _reason(job: Any, wanted: str) -> bool:
    return bool((await job.refresh()).reason == wanted)


async def _until(condition: Callable[[], Any], timeout: float = 10) -> None:
    async with asyncio.timeout(timeout):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_health_says_draining_until_the_last_job_has_ended(make: Make) -> None:
    scheduler = make(drain=30)
    running, go = asyncio.Event(), asyncio.Event()

    @scheduler.task(name="slow")
    async def slow() -> None:
        running.set()
        await go.wait()

    await scheduler.start()
    await slow.enqueue()
    await running.wait()
    assert (await scheduler.health()).worker == "working"
    stopping = asyncio.create_task(scheduler.stop())
    await waits_until(lambda: scheduler_drains(scheduler))
    assert not (await scheduler.health()).ok, "a load balancer should look elsewhere"
    go.set()
    await stopping
    assert (await scheduler.health()).worker == "stopped"


async def scheduler_drains(scheduler: Scheduler) -> bool:
    return (await scheduler.health()).worker == "draining"


async def test_starting_and_stopping_again_and_again_leaves_no_thread(database_url: str) -> None:
    scheduler = Scheduler(database_url)
    for _ in range(2):
        async with scheduler:
            pass
    before = len(_threads_of_onebeat())
    for _ in range(5):
        async with scheduler:
            pass
    await waits_until(lambda: len(_threads_of_onebeat()) <= before)


def _threads_of_onebeat() -> list[str]:
    """All but those of the loop's own executor, which starts up to six of them as chance will have it."""
    return [thread.name for thread in threading.enumerate() if not thread.name.startswith("asyncio_")]
