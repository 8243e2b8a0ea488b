"""What a claimed job becomes: run, refused, stopped or timed out, it ends exactly once."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import Annotated, Any
from uuid import UUID

import pytest
from pydantic import AfterValidator, BaseModel, computed_field
from sqlalchemy import update

from onebeat.engine.heartbeat import WorkerLease
from onebeat.errors import JobFailed, LeaseLost
from onebeat.model.events import JobSettled, JobStarted
from onebeat.model.job import Claimed, JobState
from onebeat.offload.runners import ThreadRunner
from onebeat.store import reports
from onebeat.store.connection.database import Database
from onebeat.store.jobs import control
from onebeat.tasks.context import JobContext
from onebeat.timing.backoff import Retry, Snooze
from tests.engine.conftest import Make
from tests.engine.parts import Parts, reconciled
from tests.support.builders import SECOND, a_job, ended
from tests.support.databases import waits_until


class Odd(BaseModel):
    @computed_field
    def total(self) -> int:
        raise LookupError("no total")


TROUBLED: set[str] = set()


def picky(value: str) -> str:
    if value in TROUBLED:
        raise KeyError(value)
    return value


async def test_a_value_that_raises_while_it_is_stored_starts_nothing_again(make: Make) -> None:
    scheduler, starts = make(), []

    @scheduler.task(name="pay", at_most_once=True)
    async def pay() -> Odd:
        starts.append(1)
        return Odd()

    await scheduler.start()
    job = await pay.enqueue()
    await job.wait(10)
    await reconciled(scheduler)
    assert (len(starts), (await job.refresh()).state) == (1, JobState.SUCCEEDED)


async def test_stored_arguments_whose_validator_raises_anything_fail_the_job(make: Make) -> None:
    scheduler = make()

    @scheduler.task(name="pick")
    async def pick(name: Annotated[str, AfterValidator(picky)]) -> None: ...

    job = None
    try:
        await scheduler.start()
        job = await pick.options(delay=0.5).enqueue("a")
        TROUBLED.add("a")
        info = await job.wait(10)
    finally:
        TROUBLED.clear()
    assert (info.state, info.reason) == (JobState.FAILED, "undecodable")


class Interrupting(BaseModel):
    @computed_field
    def total(self) -> int:
        raise KeyboardInterrupt


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit], ids=["KeyboardInterrupt", "SystemExit"])
async def test_what_would_end_the_process_ends_the_job_that_raised_it_alone(
    make: Make, error: type[BaseException]
) -> None:
    scheduler, started, go = make(), asyncio.Event(), asyncio.Event()

    @scheduler.task(name="neighbour")
    async def neighbour() -> None:
        started.set()
        await go.wait()

    @scheduler.task(name="coroutine", retry=Retry(1))
    async def coroutine() -> None:
        raise error

    @scheduler.task(name="thread", retry=Retry(1))
    def thread() -> None:
        raise error

    await scheduler.start()
    beside = await neighbour.enqueue()
    await asyncio.wait_for(started.wait(), 10)
    for task in (coroutine, thread):
        info = await (await task.enqueue()).wait(10)
        assert info.state is JobState.FAILED
        assert error.__name__ in str(info.error)
    go.set()
    assert (await beside.wait(10)).state is JobState.SUCCEEDED
    assert scheduler._running().worker is not None


async def test_a_value_whose_field_interrupts_is_dropped_and_the_job_succeeds(make: Make) -> None:
    scheduler = make()

    @scheduler.task(name="pay")
    async def pay() -> Interrupting:
        return Interrupting()

    await scheduler.start()
    assert (await (await pay.enqueue()).wait(10)).state is JobState.SUCCEEDED


async def test_a_snooze_starts_no_task_twice_that_may_start_once(make: Make) -> None:
    scheduler, starts = make(), []

    @scheduler.task(name="pay", at_most_once=True)
    async def pay() -> None:
        starts.append(1)
        raise Snooze(0.1)

    await scheduler.start()
    with pytest.raises(JobFailed, match="at most once"):
        await (await pay.enqueue()).result(10)
    assert len(starts) == 1


@pytest.mark.parametrize("retry", ['{"attempts":3,"newer":1}', '{"attempts":-5}', "[]"])
async def test_a_retry_that_cannot_be_read_harms_no_other_job(retry: str, make: Make, database: Database) -> None:
    scheduler, ran = make(), []

    @scheduler.task(name="count")
    async def count(number: int) -> None:
        ran.append(number)

    client = make(role="client")
    client.include(scheduler)
    await client.start()
    jobs = [await client.registry.get("count").enqueue(number) for number in range(4)]
    table = database.tables.jobs
    await database.write(
        lambda tx: tx.execute(update(table).where(table.c.id == jobs[1].id).values(retry=retry)) and None
    )
    await scheduler.start()
    for job in jobs:
        await job.wait(10)
    assert sorted(ran) == [0, 1, 2, 3]


async def test_a_job_that_learns_that_its_lease_is_over_has_used_up_no_attempt(make: Make) -> None:
    scheduler, seen = make(), []

    @scheduler.task(name="careful", retry=Retry(1))
    async def careful() -> None:
        from onebeat.tasks.context import current_job

        acting = scheduler._running().worker
        assert acting is not None
        lease = acting.identity.lease
        assert isinstance(lease, WorkerLease)
        lease._over = True
        try:
            await current_job().ensure_owned()
        except LeaseLost:
            seen.append(1)
            raise

    await scheduler.start()
    job = await careful.enqueue()
    await waits_until(lambda: bool(seen))
    worker = scheduler._running().worker
    assert worker is not None
    await waits_until(lambda: worker.executor.idle and not worker._settler.unsettled)
    assert (await scheduler.jobs.get(job.id)).state == "running", "for others to take, when the lease has run out"


async def test_what_clean_up_raises_while_a_worker_drains_is_not_the_jobs_error(make: Make) -> None:
    scheduler, client = make(drain=0.2), make(role="client")
    started = asyncio.Event()

    @scheduler.task(name="long", retry=Retry(1))
    async def long() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            raise RuntimeError("the connection was gone already")

    client.include(scheduler)
    await client.start()
    job = await long.enqueue()
    await scheduler.start()
    await asyncio.wait_for(started.wait(), 10)
    await scheduler.stop()
    info = await client.jobs.get(job.id)
    assert (info.state, info.error) == (JobState.QUEUED, None)


# ── one run at a time ─────────────────────────────────────────────────────────────────────────────────────────────────
async def state_of(parts: Parts, job: Claimed) -> tuple[str, str | None]:
    info = await parts.database.read(reports.job, job.id)
    return str(info.state), info.reason


async def test_a_run_is_announced_settled_and_its_seconds_are_measured(parts: Parts) -> None:
    @parts.router.task(name="work")
    async def work() -> str:
        parts.clock.advance(2.5)
        return "done"

    [job] = await parts.claimed()
    parts.executor.start(job)
    assert (parts.executor.free, parts.executor.idle) == (9, False)
    await parts.settled()
    assert (parts.executor.free, parts.executor.idle) == (10, True)
    assert [event.job_id for event in parts.told(JobStarted)] == [job.id]
    assert [event.seconds for event in parts.told(JobSettled)] == [2.5]
    assert await state_of(parts, job) == ("succeeded", None)


async def test_only_the_first_run_after_an_idle_time_wakes_the_reconciler(parts: Parts) -> None:
    @parts.router.task(name="work")
    async def work() -> None: ...

    for job in await parts.claimed(a_job(), a_job()):
        parts.executor.start(job)
    await parts.settled()
    assert parts.woken.count("run_started") == 1


async def test_a_task_that_this_code_does_not_know_goes_back_unstarted(parts: Parts) -> None:
    [job] = await parts.claimed()
    parts.executor.start(job)
    await parts.settled()
    info = await parts.database.read(reports.job, job.id)
    assert (info.state, info.attempt) == ("queued", 0)


async def test_without_a_trusted_lease_nothing_starts(parts: Parts) -> None:
    ran = []

    @parts.router.task(name="work")
    async def work() -> None:
        ran.append(1)

    [job] = await parts.claimed()
    parts.identity.lease = None
    parts.executor.start(job)
    await parts.settled()
    assert ran == []
    assert await state_of(parts, job) == ("queued", None)


async def test_a_run_whose_lease_is_lost_is_stopped_and_writes_nothing(parts: Parts) -> None:
    started = asyncio.Event()

    @parts.router.task(name="work")
    async def work() -> None:
        started.set()
        await asyncio.Event().wait()

    [job] = await parts.claimed()
    parts.executor.start(job)
    await started.wait()
    parts.executor.stop("lost")
    assert await parts.executor.wait_idle(10)
    assert parts.settler.unsettled == 0
    assert await state_of(parts, job) == ("running", None)


async def test_stop_ends_the_named_runs_alone(parts: Parts) -> None:
    go = asyncio.Event()

    @parts.router.task(name="work")
    async def work() -> None:
        await go.wait()

    one, other = await parts.claimed(a_job(), a_job())
    parts.executor.start(one)
    parts.executor.start(other)
    await asyncio.sleep(0)
    parts.executor.stop("cancel", [one.id])
    go.set()
    await parts.settled()
    assert await state_of(parts, one) == ("cancelled", "requested")
    assert await state_of(parts, other) == ("succeeded", None)


async def test_nothing_runs_beside_a_suspect(parts: Parts) -> None:
    go = asyncio.Event()

    @parts.router.task(name="work")
    async def work() -> None:
        await go.wait()

    [job] = await parts.claimed()
    parts.executor.start(job._replace(crashes=2))
    assert parts.executor.free == 0
    go.set()
    await parts.settled()
    assert parts.executor.free == 10


async def test_few_jobs_start_while_outcomes_pile_up_unwritten(parts: Parts) -> None:
    [job] = await parts.claimed()
    for _ in range(115):
        parts.settler.put(ended(job), 0)
    assert parts.executor.free == 5
    for _ in range(20):
        parts.settler.put(ended(job), 0)
    assert parts.executor.free == 0


async def test_the_oldest_runs_age_is_read_from_the_clock(parts: Parts) -> None:
    go = asyncio.Event()

    @parts.router.task(name="work")
    async def work() -> None:
        await go.wait()

    assert parts.executor.oldest == 0
    for job in await parts.claimed():
        parts.executor.start(job)
    parts.clock.advance(4)
    assert parts.executor.oldest == 4
    go.set()
    await parts.settled()


async def test_a_function_sees_what_is_left_of_its_timeout(parts: Parts) -> None:
    seen: list[float | None] = []

    @parts.router.task(name="work", timeout=10)
    async def work(context: JobContext) -> None:
        seen.append(context.remaining)
        parts.clock.advance(4)
        seen.append(context.remaining)

    for job in await parts.claimed():
        parts.executor.start(job)
    await parts.settled()
    assert seen == [10.0, 6.0]


async def test_progress_is_written_at_most_twice_a_second_and_the_last_report_always(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    original = control.progress

    def progress(tx: Any, id: UUID, token: str, text: str) -> bool:
        written.append(json.loads(text)["done"])
        return original(tx, id, token, text)

    @parts.router.task(name="work")
    async def work(context: JobContext) -> None:
        for done in range(5):
            await context.progress(done)
        parts.clock.advance(0.5)
        await context.progress(5)
        await context.progress(6)

    monkeypatch.setattr(control, "progress", progress)
    for job in await parts.claimed():
        parts.executor.start(job)
    await parts.settled()
    assert written == [0, 5, 6]


async def test_the_jitter_of_a_retry_comes_from_the_generator_that_was_given(parts: Parts) -> None:
    @parts.router.task(name="work", retry=Retry(3))
    async def work() -> None:
        raise ValueError("again")

    [job] = await parts.claimed()
    parts.executor.start(job)
    await parts.settled()
    [event] = parts.told(JobSettled)
    assert event.retry_in == Retry(3).delay_us(1, Random(1).random()) / SECOND


async def test_a_place_that_is_scarce_is_claimed_for_first(parts: Parts) -> None:
    """Two threads are free and ten slots: a backlog of coroutines must not keep thread tasks from their threads."""

    @parts.router.task(name="work")
    async def work() -> None: ...

    @parts.router.task(name="block")
    def block() -> None: ...

    executor = Parts(parts.database, parts.clock, parts.worker_id, {"thread": ThreadRunner(2)}, parts.router).executor
    assert executor.startable(10) == [(("block",), 2), (("work",), 10)]
    assert executor.startable(2) == [(("block", "work"), 2)]
