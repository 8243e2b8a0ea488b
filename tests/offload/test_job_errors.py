"""What a job raises decides about its retry, by its own class: on the event loop, in a thread and in a process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from onebeat import Retry, Scheduler
from onebeat.errors import JobFailed, RemoteError
from onebeat.model.events import ValueDropped
from onebeat.model.job import JobState
from onebeat.offload import to_process
from tests.offload import jobs

PLACES = ("loop", "thread", "process")


@pytest.fixture
def scheduler(tmp_path: Path) -> Scheduler:
    return Scheduler(f"sqlite:///{tmp_path / 'jobs.db'}", poll=0.1, drain=2)


DECISIONS: list[tuple[str, tuple[Any, ...], tuple[Any, ...], int]] = [
    # what the function raises, `on`, `give_up_on`, and how often the job is started, of at most two starts
    ("value", (ValueError,), (), 2),
    ("value", (LookupError,), (), 1),
    ("rebuilt never", (jobs.OutOfStock,), (), 2),
    ("rebuilt never", (LookupError,), (), 2),
    ("rebuilt never", (Exception,), (), 2),
    ("rebuilt never", (Exception,), (LookupError,), 1),
    ("rebuilt never", (OSError,), (), 1),
    ("exit", (Exception,), (), 1),
    ("exit", (SystemExit,), (), 2),
    ("exit", (BaseException,), (SystemExit,), 1),
    ("iteration", (StopIteration,), (), 2),
    ("iteration", (RuntimeError,), (), 1),
    ("cancelled", (Exception,), (), 2),
    ("cancelled", (asyncio.CancelledError,), (), 2),
    ("cancelled", (Exception,), (asyncio.CancelledError,), 1),
    ("base", (jobs.Closing,), (), 2),
    ("base", (Exception,), (), 1),
    ("frozen", (jobs.Frozen,), (), 2),
    ("frozen", (Exception,), (jobs.Frozen,), 1),
    ("frozen and empty", (jobs.FrozenAndEmpty,), (), 2),
]


@pytest.mark.parametrize("place", PLACES)
async def test_a_retry_is_decided_by_the_class_that_the_function_raised(scheduler: Scheduler, place: Any) -> None:
    """All decisions of a place are made by one scheduler and its child processes."""
    function: Any = jobs.raises_on_the_loop if place == "loop" else jobs.raises
    tasks = [
        scheduler.task(
            name=f"raises-{n}", run_in=place, timeout=30, retry=Retry(2, base=0, on=on, give_up_on=give_up_on)
        )(function)
        for n, (_, on, give_up_on, _) in enumerate(DECISIONS)
    ]
    async with scheduler:
        handles = [await task.enqueue(kind) for task, (kind, *_) in zip(tasks, DECISIONS, strict=True)]
        ended = [await handle.wait(30) for handle in handles]
    assert [
        (kind, on, give_up_on, job.attempt) for (kind, on, give_up_on, _), job in zip(DECISIONS, ended, strict=True)
    ] == (DECISIONS)
    for (kind, *_), job in zip(DECISIONS, ended, strict=True):
        raised = jobs.RAISED[kind]()
        assert job.state is JobState.FAILED, kind
        assert job.reason == ("gave up" if job.attempt == 1 else "exhausted"), kind
        assert str(job.error).startswith(type(raised).__name__), f"{kind}: the error names the class that was raised"
        assert str(raised) in str(job.error), kind


@pytest.mark.parametrize("place", ["thread", "process"])
async def test_snooze_and_cancel_work_off_the_loop(scheduler: Scheduler, place: Any, tmp_path: Path) -> None:
    snoozes = scheduler.task(run_in=place, timeout=30, retry=Retry(1))(jobs.snoozes)
    cancels = scheduler.task(run_in=place, timeout=30, retry=Retry(1))(jobs.cancels)
    async with scheduler:
        assert await (await snoozes.enqueue(str(tmp_path))).result(30) == "done"
        ended = await (await cancels.enqueue()).wait(30)
    assert (ended.state, ended.reason) == (JobState.CANCELLED, "nothing to do")


async def test_an_exception_that_refuses_attributes_comes_back_from_a_process() -> None:
    with pytest.raises(jobs.FrozenAndEmpty) as itself:
        await to_process(jobs.raises, "frozen and empty")
    assert "in raises" in str(itself.value.__cause__)
    with pytest.raises(RemoteError, match="Frozen: bread") as described:
        await to_process(jobs.raises, "frozen")
    assert described.value.type_names[:2] == ("tests.offload.jobs.Frozen", "builtins.Exception")


def without_secret(shown: str) -> str:
    assert not [secret for secret in jobs.SECRETS if secret in shown], shown
    return shown


@pytest.mark.parametrize("place", PLACES)
async def test_no_secret_of_an_exception_reaches_the_database_the_log_or_the_caller(
    scheduler: Scheduler, place: Any, caplog: pytest.LogCaptureFixture
) -> None:
    function: Any = jobs.tells_secrets_on_the_loop if place == "loop" else jobs.tells_secrets
    task = scheduler.task(name="tells", run_in=place, timeout=30, retry=Retry(2, base=0))(function)
    async with scheduler:
        ended = await (await task.enqueue()).wait(30)
        attempts = await scheduler.jobs.attempts(ended.id)
        with pytest.raises(JobFailed) as caught:
            await ended.result(0)
    assert "postgresql://shop:[redacted]@db" in without_secret(str(ended.error))
    assert "INSERT INTO cards" in str(ended.error)
    without_secret(str(caught.value))
    for attempt in attempts:
        without_secret(str(attempt.error))
        assert "tells_secrets" in without_secret(str(attempt.traceback))
        assert "see redis://:[redacted]@cache" in str(attempt.traceback)
    told = [record.getMessage() for record in caplog.records if record.name == "onebeat.jobs"]
    assert len(told) == 2
    for message in told:
        assert "\n" not in without_secret(message)
        assert jobs.FORGED in message


async def test_a_value_that_cannot_be_stored_tells_no_secret(
    scheduler: Scheduler, caplog: pytest.LogCaptureFixture
) -> None:
    dropped: list[ValueDropped] = []
    scheduler.on(ValueDropped)(dropped.append)
    task = scheduler.task(name="returns", timeout=30)(jobs.returns_what_tells_secrets)
    async with scheduler:
        await (await task.enqueue()).result(30)
    assert [without_secret(event.problem) for event in dropped]
    told = [record.getMessage() for record in caplog.records if "was not stored" in record.getMessage()]
    assert len(told) == 1
    assert "\n" not in without_secret(told[0])
