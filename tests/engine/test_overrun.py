"""A run that was told to end and goes on: it is said, and with `on_overrun="replace"` its job ends without it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from onebeat.engine import attempt
from onebeat.errors import ConfigurationError
from onebeat.model.events import JobSettled, SettlementLost, StopIgnored
from onebeat.model.job import JobState
from onebeat.tasks.context import current_job
from onebeat.tasks.router import TaskRouter
from onebeat.timing.backoff import Retry
from onebeat.timing.triggers import Every
from tests.engine.conftest import Make


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "PATIENCE", 0.1)


class Stubborn:
    """Functions that go on until they are let go, whatever they are told."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.starts = 0

    async def coroutine(self) -> str:
        self.starts += 1
        while not self.go.is_set():
            try:
                await asyncio.sleep(0.02)
            except asyncio.CancelledError:
                continue
        return "in the end"

    def thread(self) -> str:
        self.starts += 1
        self.go.wait(30)
        return "in the end"


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(15):
        while not await condition():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("cause", ["timeout", "cancel"])
async def test_a_coroutine_that_swallows_its_end_is_said_and_noted(
    make: Make, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler, stubborn, heard = make(), Stubborn(), list[StopIgnored]()
    scheduler.on(StopIgnored)(heard.append)
    task = scheduler.task(name="swallows", timeout=0.2 if cause == "timeout" else 30)(stubborn.coroutine)
    await scheduler.start()
    job = await task.enqueue()
    await until(lambda: _is(job, JobState.RUNNING))
    if cause == "cancel":
        await job.cancel()
    noted = "timeout" if cause == "timeout" else "cancel ignored"
    await until(lambda: _is(job, JobState.RUNNING, noted))
    assert [(event.job_id, event.cause, event.replaced) for event in heard] == [(job.id, cause, False)]
    assert f"job swallows was told to end ({cause}) and goes on" in caplog.text
    stubborn.go.set()
    assert (await job.wait(10)).state is JobState.SUCCEEDED
    assert len(heard) == 1


async def test_a_cancelled_thread_that_goes_on_is_said(make: Make) -> None:
    scheduler, stubborn, heard = make(), Stubborn(), list[StopIgnored]()
    scheduler.on(StopIgnored)(heard.append)
    task = scheduler.task(name="hangs", timeout=30)(stubborn.thread)
    await scheduler.start()
    job = await task.enqueue()
    await until(lambda: _is(job, JobState.RUNNING))
    await job.cancel()
    await until(lambda: _is(job, JobState.RUNNING, "cancel ignored"))
    assert [event.cause for event in heard] == ["cancel"]
    stubborn.go.set()


async def test_a_run_that_ends_when_it_is_told_to_is_not_said(make: Make) -> None:
    scheduler, heard = make(), list[StopIgnored]()
    scheduler.on(StopIgnored)(heard.append)

    @scheduler.task(name="obeys", timeout=0.1, retry=Retry(1))
    async def obeys() -> None:
        await asyncio.sleep(30)

    await scheduler.start()
    assert (await (await obeys.enqueue()).wait(10)).reason == "timeout"
    await asyncio.sleep(0.2)
    assert not heard


@pytest.mark.parametrize("where", ["loop", "thread"])
async def test_replace_lets_the_schedule_go_on_and_keeps_the_old_run_from_writing(make: Make, where: str) -> None:
    """One hung run once stopped its schedule for ever: each fire was skipped because of it."""
    scheduler, stubborn = make(), Stubborn()
    settled: list[JobSettled] = []
    lost: list[SettlementLost] = []
    scheduler.on(JobSettled)(settled.append)
    scheduler.on(SettlementLost)(lost.append)
    function: Any = stubborn.coroutine if where == "loop" else stubborn.thread
    task = scheduler.task(name="hangs", timeout=0.3, on_overrun="replace")(function)
    await scheduler.start()
    await scheduler.schedules.add("often", task, Every(3600))
    await scheduler.schedules.fire_now("often")
    [oldest] = (await scheduler.jobs.list(schedule_id="often")).items
    oldest = await oldest.wait(10)
    await scheduler.schedules.fire_now("often")
    await until(lambda: _true(stubborn.starts == 2))
    assert (oldest.state, oldest.reason) == (JobState.FAILED, "replaced")
    assert "timeout of 0.3 s and goes on" in str(oldest.error)
    assert [(one.attempt, one.outcome) for one in await scheduler.jobs.attempts(oldest.id)] == [(1, "timeout")]
    stubborn.go.set()
    await until(lambda: _true(not scheduler_runs(scheduler)))
    assert await oldest.refresh() == oldest, "the old run wrote nothing when it ended"
    assert [event.state for event in settled if event.job_id == oldest.id] == ["failed"]
    assert not lost


async def test_a_replaced_run_learns_that_the_job_is_not_its_own_any_more(make: Make) -> None:
    scheduler, learnt = make(), threading.Event()

    @scheduler.task(name="asks", timeout=0.2, on_overrun="replace")
    def asks() -> None:
        job = current_job()
        while True:
            try:
                job.checkpoint()
            except Exception as error:
                if type(error).__name__ == "LeaseLost":
                    learnt.set()
                    return

    await scheduler.start()
    job = await asks.enqueue()
    assert (await job.wait(10)).reason == "replaced"
    assert await asyncio.to_thread(learnt.wait, 10)


async def test_replace_ends_a_job_whose_cancel_is_swallowed_as_cancelled(make: Make) -> None:
    scheduler, stubborn = make(), Stubborn()
    task = scheduler.task(name="swallows", timeout=30, on_overrun="replace")(stubborn.coroutine)
    await scheduler.start()
    job = await task.enqueue()
    await until(lambda: _is(job, JobState.RUNNING))
    await job.cancel()
    ended = await job.wait(10)
    assert (ended.state, ended.reason) == (JobState.CANCELLED, "requested")
    stubborn.go.set()


async def test_why_names_the_run_that_holds_the_schedule(make: Make) -> None:
    scheduler, stubborn = make(), Stubborn()
    task = scheduler.task(name="hangs", timeout=0.2)(stubborn.thread)
    await scheduler.start()
    await scheduler.schedules.add("often", task, Every(1))

    async def skipped() -> bool:
        return any(fire.decision == "skipped_overlap" for fire in (await scheduler.schedules.fires("often")).items)

    await until(skipped)
    fires = (await scheduler.schedules.fires("often")).items
    held = next(fire for fire in fires if fire.decision == "skipped_overlap")
    job = (await scheduler.jobs.list(schedule_id="often")).items[0]

    async def told() -> bool:  # the note that its timeout is over is written beside the fires
        why = str(await scheduler.schedules.why("often", held.fire_time))
        return why.endswith(f"; job {job.id} was told to end and goes on (its timeout is over)")

    await until(told)
    stubborn.go.set()


def test_other_words_for_on_overrun_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="on_overrun='kill'; give 'wait' or 'replace'"):
        TaskRouter().task(name="x", on_overrun="kill")(Stubborn().thread)  # type: ignore[call-overload]


def scheduler_runs(scheduler: Any) -> Any:
    return scheduler._runtime.worker.executor.running


async def _is(job: Any, state: JobState, reason: str | None = None) -> bool:
    now = await job.refresh()
    return now.state is state and now.reason == reason


async def _true(value: bool) -> bool:
    return value
