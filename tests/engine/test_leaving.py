"""A worker that drained but could not stop all its work leaves: its jobs count as drained, never as lost."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from onebeat.engine import membership, run_file, stopping
from onebeat.model.events import JobRescued, WorkerDied
from onebeat.model.job import SUSPECT_CRASHES
from onebeat.store import reports, workers
from onebeat.store.tx import Tx
from onebeat.tasks.router import TaskRouter
from onebeat.tasks.task import Task
from tests.engine.conftest import Make
from tests.engine.parts import Parts
from tests.support import rows
from tests.support.builders import SECOND, a_job, claimed, registered
from tests.support.databases import waits_until

LEASE = 5 * SECOND


async def leaving(parts: Parts, **changes: Any) -> str:
    """Another worker holds what it claimed and is leaving; its id."""
    other = await registered(parts.database, **changes)
    await claimed(parts.database, other)
    assert await parts.database.write(workers.leave, other, LEASE)
    return other


async def budgets(parts: Parts, id: UUID) -> tuple[str, int, int]:
    """The state of a job, its errors and the deaths of its workers."""
    return await parts.database.read(_budgets, id)


def _budgets(tx: Tx, id: UUID) -> tuple[str, int, int]:
    c = tx.tables.jobs.c
    row = tx.execute(select(c.state, c.errors, c.crashes).where(c.id == id)).one()
    return row.state, row.errors, row.crashes


async def outcomes(parts: Parts, id: UUID) -> list[str]:
    return [str(attempt.outcome) for attempt in await parts.database.read(reports.attempts, id)]


async def test_jobs_of_a_leaving_worker_stay_its_own_until_its_short_lease_is_over(parts: Parts) -> None:
    [job] = await parts.stored()
    other = await leaving(parts)
    parts.clock.advance(4)
    await parts.sweeper().tick(parts.clock.now)
    assert (await parts.database.read(reports.job, job.id)).state == "running"
    assert [(w.id, w.state) for w in await parts.database.read(reports.workers) if w.id == other] == [
        (other, "leaving")
    ]
    parts.clock.advance(2)
    assert {w.state for w in await parts.database.read(reports.workers) if w.id == other} == {"stopped"}
    await parts.sweeper().tick(parts.clock.now)
    assert await budgets(parts, job.id) == ("queued", 0, 0)
    assert await outcomes(parts, job.id) == ["drained"]
    assert parts.told(WorkerDied) == []
    assert [event.from_worker for event in parts.told(JobRescued)] == [other]


async def test_a_job_that_may_start_once_fails_as_lost_when_its_leaving_worker_is_gone(parts: Parts) -> None:
    [job] = await parts.stored(a_job(at_most_once=True))
    await leaving(parts)
    parts.clock.advance(6)
    await parts.sweeper().tick(parts.clock.now)
    info = await parts.database.read(reports.job, job.id)
    assert (info.state, info.reason) == ("failed", "lost")


async def test_a_leaving_worker_whose_process_is_gone_is_stopped_at_once(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = run_file.boot_id() or "this boot"
    monkeypatch.setattr(run_file, "boot_id", lambda: boot)
    monkeypatch.setattr(run_file, "dead_siblings", lambda ids: list(ids))
    [job] = await parts.stored()
    await leaving(parts, boot_id=boot)
    await parts.sweeper().tick(parts.clock.now)
    assert await budgets(parts, job.id) == ("queued", 0, 0)
    assert parts.told(WorkerDied) == []


async def test_a_leaving_worker_neither_claims_nor_prolongs_its_lease(parts: Parts) -> None:
    other = await leaving(parts)
    await parts.stored()
    assert await claimed(parts.database, other) == []
    assert not await parts.database.write(workers.renew, other, 60 * SECOND)
    assert other not in {worker.id for worker in await parts.database.read(workers.live)}


async def test_many_drains_that_leave_a_job_behind_do_not_make_it_suspect(parts: Parts) -> None:
    [job] = await parts.stored()
    sweeper = parts.sweeper()
    for _ in range(SUSPECT_CRASHES + 2):
        await leaving(parts)
        parts.clock.advance(6)
        await sweeper.tick(parts.clock.now)
    assert await budgets(parts, job.id) == ("queued", 0, 0)


# ── what cannot be stopped ────────────────────────────────────────────────────────────────────────────────────────────
class Stubborn:
    """A thread and a coroutine that go on until the test lets them end, whatever they are asked."""

    def __init__(self) -> None:
        self.router = router = TaskRouter()
        self.go = threading.Event()
        self.starts = 0

        @router.task(name="thread")
        def thread() -> None:
            self.starts += 1
            self.go.wait(30)

        @router.task(name="coroutine")
        async def coroutine() -> None:
            self.starts += 1
            while not self.go.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.02)

        self.tasks: dict[str, Task[[], Any]] = {"thread": thread, "coroutine": coroutine}

    def has_started(self, times: int) -> Callable[[], bool]:
        return lambda: self.starts >= times


@pytest.mark.parametrize("kind", ["thread", "coroutine"])
async def test_three_deploys_over_a_job_that_cannot_be_stopped_use_no_budget(
    kind: str, make: Make, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "AFTER_DRAIN", 0.4)
    monkeypatch.setattr(membership, "LEAVING_LEASE", SECOND // 2)
    stubborn = Stubborn()
    client = make(role="client")
    client.include(stubborn.router)
    await client.start()
    job = await stubborn.tasks[kind].enqueue()
    for deploy in range(4):
        scheduler = make(drain=0.1, heartbeat=0.5, lease=60)
        scheduler.include(stubborn.router)
        await scheduler.start()
        await waits_until(stubborn.has_started(deploy + 1))
        if deploy == 3:
            stubborn.go.set()
            await job.wait(10)
        await scheduler.stop()
    [row] = (await rows.read(database_url)).jobs
    assert (row.state, row.errors, row.crashes, row.attempt) == ("succeeded", 0, 0, 4)
    assert {worker.state for worker in await client.workers.list()} == {"stopped"}
