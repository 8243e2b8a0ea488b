"""The watcher ends every wait for a job."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

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
    await waits_until(lambda: scheduler._open_watcher()._waiting.keys() == {job.id for job in far})
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
