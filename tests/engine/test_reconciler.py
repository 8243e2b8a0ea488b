"""The reconciler stops cancelled runs, and gives back claims that nobody runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from onebeat.engine.loop import Loop
from onebeat.engine.reconciler import WHILE_IDLE, WHILE_RUNNING
from onebeat.scheduler.scheduler import Scheduler
from onebeat.store import reports
from onebeat.store.connection.database import Database
from onebeat.store.jobs import control
from onebeat.tasks.router import TaskRouter
from tests.engine.conftest import Make
from tests.engine.parts import Parts, reconciled
from tests.support.builders import a_job, ended
from tests.support.databases import waits_until


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


async def test_a_claim_whose_answer_comes_during_a_drain_goes_back_unstarted(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, scheduler, starts, answered = make(role="client"), make(), [], asyncio.Event()
    router = TaskRouter()

    @router.task(name="pay", at_most_once=True)
    async def pay() -> None:
        starts.append(1)

    client.include(router)
    scheduler.include(router)
    await client.start()
    job = await pay.enqueue()
    for name in ("write", "write_one"):
        monkeypatch.setattr(Database, name, answer_of_claims_after(answered, getattr(Database, name)))
    monkeypatch.setattr(Loop.stop, "__defaults__", (0.1,))  # seconds; the answer takes longer
    await scheduler.start()
    await waits_until(lambda: is_running(client, job.id))
    stopping = asyncio.create_task(scheduler.stop())
    await asyncio.wait({stopping}, timeout=0.5)
    answered.set()
    await stopping
    info = await client.jobs.get(job.id)
    assert (info.state, info.attempt, starts) == ("queued", 0, [])
    assert [worker.state for worker in await client.workers.list()] == ["stopped"]


def answer_of_claims_after(answered: asyncio.Event, call: Callable[..., Any]) -> Callable[..., Any]:
    async def write(self: Database, function: Any, *args: Any, **keywords: Any) -> Any:
        answer = await call(self, function, *args, **keywords)
        if getattr(function, "__name__", "") == "claim" and answer:
            await answered.wait()
        return answer

    return write


async def is_running(scheduler: Scheduler, id: UUID) -> bool:
    return (await scheduler.jobs.get(id)).state == "running"


# ── ticks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
class Hold:
    """A task `work` that runs until the test lets it end."""

    def __init__(self, parts: Parts) -> None:
        self.go, self.cancelled = asyncio.Event(), 0

        @parts.router.task(name="work")
        async def work() -> None:
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise


async def started(parts: Parts) -> UUID:
    """A job that runs here."""
    [job] = await parts.claimed()
    parts.executor.start(job)
    await asyncio.sleep(0)
    return job.id


async def test_an_idle_worker_looks_seldom_and_a_busy_one_each_second(parts: Parts) -> None:
    hold = Hold(parts)
    assert await parts.reconciler.tick(0) == WHILE_IDLE
    await started(parts)
    assert "run_started" in parts.woken, "an idle worker's long sleep is cut short"
    parts.clock.advance(2)
    assert await parts.reconciler.tick(0) == WHILE_RUNNING
    hold.go.set()
    await parts.settled()


async def test_without_a_trusted_lease_it_touches_nothing(parts: Parts) -> None:
    [job] = await parts.claimed()
    parts.identity.lease = None
    for _ in range(3):
        assert await parts.reconciler.tick(0) == WHILE_RUNNING
    assert (await parts.database.read(reports.job, job.id)).state == "running"


async def test_a_claim_that_nobody_runs_is_given_back_when_it_is_seen_twice(parts: Parts) -> None:
    [job] = await parts.claimed()
    await parts.reconciler.tick(0)
    assert (await parts.database.read(reports.job, job.id)).state == "running", "its answer may be on its way"
    await parts.reconciler.tick(0)
    info = await parts.database.read(reports.job, job.id)
    assert (info.state, info.attempt) == ("queued", 0)


async def test_a_claim_whose_answer_is_awaited_or_whose_outcome_is_unwritten_is_no_stray(parts: Parts) -> None:
    awaited, unwritten = await parts.claimed(a_job(), a_job())
    parts.claimer.in_flight.add(awaited.lease_token)
    parts.settler.put(ended(unwritten), seconds=0)
    for _ in range(3):
        await parts.reconciler.tick(0)
    assert {(await parts.database.read(reports.job, job.id)).state for job in (awaited, unwritten)} == {"running"}


async def test_a_cancelled_run_is_asked_to_stop_once(parts: Parts) -> None:
    hold = Hold(parts)
    id = await started(parts)
    await parts.database.write(control.cancel, [id])
    parts.clock.advance(2)
    await parts.reconciler.tick(0)
    await parts.reconciler.tick(0)
    await parts.settled()
    assert hold.cancelled == 1
    assert (await parts.database.read(reports.job, id)).state == "cancelled"


async def test_runs_younger_than_a_second_cost_no_look_unless_a_cancel_was_hinted(parts: Parts) -> None:
    Hold(parts)
    id = await started(parts)
    await parts.database.write(control.cancel, [id])
    await parts.reconciler.tick(0)
    assert parts.executor.running[id].stop_reason is None
    assert parts.reconciler.cancel_requested(id)
    await parts.reconciler.tick(0)
    await parts.settled()
    assert (await parts.database.read(reports.job, id)).state == "cancelled"


async def test_a_steady_flow_of_short_jobs_hides_no_stray(parts: Parts) -> None:
    """Some run is always young while short jobs keep coming; a claim whose answer was lost is found all the same."""
    hold = Hold(parts)
    [stray] = await parts.claimed()
    for _ in range(40):  # each a job of half a second
        if (await parts.database.read(reports.job, stray.id)).state == "queued":
            return
        id = await started(parts)
        await parts.reconciler.tick(parts.clock.advance(0.5))
        hold.go.set()
        await parts.settled()
        hold.go.clear()
        assert (await parts.database.read(reports.job, id)).state == "succeeded"
    pytest.fail("the stray is still running after 20 s")


async def test_a_hint_about_a_job_that_runs_elsewhere_costs_no_look(parts: Parts) -> None:
    assert not parts.reconciler.cancel_requested(a_job().id)
