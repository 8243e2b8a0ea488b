"""Attempts and claims that end as nobody planned: each ends once, and harms no other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import pytest
from pydantic import AfterValidator, BaseModel, computed_field
from sqlalchemy import update

from onebeat.engine import run_file
from onebeat.engine.heartbeat import Heartbeat, WorkerLease
from onebeat.engine.worker import Worker
from onebeat.errors import JobFailed, LeaseLost
from onebeat.model.events import Event, PartFailed
from onebeat.model.job import JobState
from onebeat.scheduler import watcher
from onebeat.scheduler.hooks import EventHooks
from onebeat.scheduler.integration import integration_of
from onebeat.scheduler.scheduler import Scheduler
from onebeat.store import reports
from onebeat.store.connection.database import Database
from onebeat.store.jobs import settle
from onebeat.timing.backoff import Retry, Snooze
from onebeat.timing.clock import SystemClock
from tests.engine.conftest import Make
from tests.support.databases import waits_until

SECOND = 1_000_000


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


async def test_a_claim_whose_answer_is_late_is_run_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, starts, answered = make(), [], asyncio.Event()

    @scheduler.task(name="pay", at_most_once=True)
    async def pay() -> None:
        starts.append(1)

    for name in ("write", "write_one"):
        monkeypatch.setattr(Database, name, answer_of_claims_after(answered, getattr(Database, name)))
    await scheduler.start()
    job = await pay.enqueue()
    await waits_until(lambda: is_running(scheduler, job.id))
    await reconciled(scheduler)  # which finds a row that nobody runs
    assert (await scheduler.jobs.get(job.id)).state == "running", "late is not lost"
    answered.set()
    await job.wait(10)
    assert starts == [1]


def answer_of_claims_after(answered: asyncio.Event, call: Callable[..., Any]) -> Callable[..., Any]:
    async def write(self: Database, function: Any, *args: Any, **keywords: Any) -> Any:
        answer = await call(self, function, *args, **keywords)
        if getattr(function, "__name__", "") == "claim" and answer:
            await answered.wait()
        return answer

    return write


async def reconciled(scheduler: Scheduler) -> None:
    """A stray is given back when it is seen twice."""
    worker = scheduler._running().worker
    assert worker is not None
    for _ in range(3):
        await worker._reconciling._tick(SystemClock().now())


async def is_running(scheduler: Scheduler, id: UUID) -> bool:
    return (await scheduler.jobs.get(id)).state == "running"


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

        worker = scheduler._running().worker
        assert worker is not None
        lease = worker._lease
        assert lease is not None
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


async def test_an_end_that_the_database_refuses_holds_up_no_other(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = make(role="client")
    runner = make()
    refused: list[UUID] = []

    def refusing(call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(tx: Any, ended: Any, **keywords: Any) -> Any:
            if refused and any(item.job.id == refused[0] for item in ended):
                raise ValueError("this one not")
            return call(tx, ended, **keywords)

        checked.__name__ = call.__name__
        return checked

    monkeypatch.setattr(settle, "settle", refusing(settle.settle))
    monkeypatch.setattr(settle, "succeed", refusing(settle.succeed))

    @runner.task(name="count")
    async def count(number: int) -> None: ...

    scheduler.include(runner)
    await scheduler.start()
    jobs = [await scheduler.registry.get("count").enqueue(number) for number in range(20)]
    refused.append(jobs[3].id)
    await runner.start()
    for job in jobs[:3] + jobs[4:]:
        assert (await job.wait(10)).state is JobState.SUCCEEDED
    refused.clear()
    assert (await jobs[3].wait(10)).state is JobState.SUCCEEDED


async def test_a_heartbeat_that_gets_no_answer_tells_at_the_deadline_and_not_after_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, told = SystemClock(), []
    lease = WorkerLease("w", 6 * SECOND, clock=clock, lost=lambda reason: told.append(clock.boot()))
    beat = Heartbeat(database, interval=4 * SECOND, clock=clock)

    async def never(self: Database, *_: Any, **__: Any) -> bool:
        await asyncio.sleep(60)
        return True

    monkeypatch.setattr(Database, "write_one", never)
    monkeypatch.setattr(lease, "interval", SECOND * 3)
    sent = clock.boot()
    lease.granted(sent)
    beat.add(lease)
    try:
        await waits_until(lambda: bool(told))
    finally:
        await asyncio.to_thread(beat.stop, 0.1)
    assert lease.deadline <= told[0] < lease.deadline + SECOND // 2


def test_a_word_that_cannot_be_said_ends_no_part_of_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Event] = []

    def mute(event: Event) -> None:
        raise OSError("a filter of someone else")

    announce = EventHooks(mute)
    announce.on(Event, heard.append)
    announce(Event())
    assert len(heard) == 1
    assert "a filter of someone else" in caplog.text


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="run files need locks of files, which Windows has not")
def test_without_a_folder_of_its_own_a_worker_goes_by_its_lease_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / f"onebeat-{os.getuid()}"
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    assert run_file.directory() == folder
    folder.chmod(0o777)  # anyone could put files there that say who is dead
    assert run_file.directory() is None
    with contextlib.suppress(OSError):
        folder.rmdir()
    folder.write_text("no folder")
    assert run_file.directory() is None
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "missing"))
    assert run_file.directory() is None
    file = run_file.RunFile("w")
    file.hold()
    file.release()
    assert run_file.dead_siblings(["w"]) == []


async def test_however_many_jobs_are_waited_for_each_wait_ends(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "AT_ONCE", 2)
    scheduler = make()

    @scheduler.task(name="count")
    async def count(number: int) -> None: ...

    await scheduler.start()
    far = [await count.options(delay=3600).enqueue(number) for number in range(5)]
    waits = [asyncio.create_task(job.wait()) for job in far]
    await waits_until(lambda: scheduler._running().watcher._waiting.keys() == {job.id for job in far})
    assert (await (await count.enqueue(6)).wait(10)).state is JobState.SUCCEEDED
    for wait in waits:
        wait.cancel()


async def test_a_look_that_fails_is_said_and_another_follows(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = make()
    said: list[PartFailed] = []
    scheduler.on(PartFailed)(said.append)
    original = reports.states

    def once(tx: Any, ids: Any) -> Any:
        monkeypatch.setattr(reports, "states", original)
        raise LookupError("something unforeseen")

    @scheduler.task(name="count")
    async def count() -> None: ...

    await scheduler.start()
    job = await count.options(delay=0.5).enqueue()
    monkeypatch.setattr(reports, "states", once)
    assert (await job.wait(10)).state is JobState.SUCCEEDED
    assert [event.part for event in said] == ["watcher"]


@pytest.mark.parametrize("cancelled", [False, True], ids=["both wait", "the first is cancelled"])
async def test_who_stops_while_another_drains_waits_for_that_drain(cancelled: bool, make: Make) -> None:
    scheduler, client = make(drain=10), make(role="client")
    started, go = asyncio.Event(), asyncio.Event()

    @scheduler.task(name="long", at_most_once=True)
    async def long() -> None:
        started.set()
        await go.wait()

    client.include(scheduler)
    await client.start()
    job = await long.enqueue()
    await scheduler.start()
    await asyncio.wait_for(started.wait(), 10)
    first = asyncio.create_task(scheduler.stop())
    await waits_until(lambda: scheduler._stopping is not None)
    second = asyncio.create_task(scheduler.stop())
    if cancelled:
        first.cancel()
        await asyncio.wait({first})
    go.set()
    await asyncio.wait_for(second, 10)
    assert (await client.jobs.get(job.id)).state is JobState.SUCCEEDED
    assert not [task for task in asyncio.all_tasks() if task.get_name() in ("onebeat-settler", "onebeat-stop")]
    await asyncio.wait({first})


async def test_a_start_that_is_cancelled_ends_what_it_began(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, client, waiting = make(), make(role="client"), asyncio.Event()

    async def never(self: Worker) -> None:
        waiting.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Worker, "_warn_of_unserved", never)
    await client.start()
    starting = asyncio.create_task(scheduler.start())
    await asyncio.wait_for(waiting.wait(), 10)
    starting.cancel()
    await asyncio.wait({starting})
    assert starting.cancelled()
    assert not integration_of(scheduler).started
    assert [worker.state for worker in await client.workers.list()] == ["stopped"]
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "onebeat-settler"]


async def test_a_fire_by_hand_whose_commit_was_not_heard_of_is_one_fire(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = make(role="client")

    @scheduler.every(hours=1, id="beat", overlap="allow")
    @scheduler.task(name="beat")
    async def beat() -> None: ...

    worker = make()
    worker.include(scheduler)
    await worker.start()
    await scheduler.start()
    write = scheduler._running().database.write

    async def twice(call: Any, *args: Any, **keywords: Any) -> Any:
        await write(call, *args, **keywords)
        return await write(call, *args, **keywords)

    monkeypatch.setattr(scheduler._running().database, "write", twice)
    fire = await scheduler.schedules.fire_now("beat")
    assert fire.decision == "started"
    assert [found.key for found in await scheduler.schedules.fires("beat")] == [fire.key]
    assert await scheduler.jobs.count(task="beat") == 1
