"""The watcher ends every wait for a job."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from onebeat.errors import JobNotFound
from onebeat.model.events import PartFailed
from onebeat.model.job import JobState
from onebeat.scheduler import watcher
from onebeat.store import reports
from tests.engine.conftest import Make
from tests.support.databases import waits_until


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


async def test_a_thousand_waits_are_served_by_few_reads(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, reads = make(slots=100), Counter[str]()

    @scheduler.task(name="count")
    async def count(number: int) -> int:
        return number

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(reports, name)

        def call(*arguments: Any) -> Any:
            reads[name] += 1
            return original(*arguments)

        return call

    for name in ("job", "jobs_by_id", "states"):
        monkeypatch.setattr(reports, name, counted(name))
    await scheduler.start()
    far = [await count.options(delay=3600).enqueue(number) for number in range(200)]
    others = [asyncio.create_task(job.wait()) for job in far]
    jobs = await count.enqueue_many([(number,) for number in range(800)])
    done = await asyncio.gather(*(job.wait(30) for job in jobs))
    assert [job.value for job in done] == list(range(800))
    assert reads["job"] == 0
    assert reads.total() < 200, reads
    for wait in others:
        wait.cancel()


async def test_a_wait_for_an_ended_job_returns_it_however_short_the_time(make: Make) -> None:
    scheduler = make()

    @scheduler.task(name="count")
    async def count() -> str:
        return "done"

    await scheduler.start()
    job = await (await count.enqueue()).wait(10)
    assert (await scheduler.jobs.wait(job.id, 0)).value == "done"
    assert (await scheduler.jobs.wait(job.id, -1)).value == "done"
    later = await count.options(delay=3600).enqueue()
    with pytest.raises(TimeoutError, match=rf"job {later.id} \(count\) has not ended within 0 s"):
        await later.wait(0)
    with pytest.raises(JobNotFound, match="no job"):
        await scheduler.jobs.wait(uuid4(), 5)


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
