"""The sweeper marks dead workers, rescues their jobs, prunes by age, and says when to sweep again."""

from __future__ import annotations

from random import Random

import pytest
from sqlalchemy import update

from onebeat.engine import run_file, sweeper as sweeper_module
from onebeat.engine.sweeper import PRUNE_EACH
from onebeat.model.events import JobRescued, WorkerDied
from onebeat.model.job import NewJob
from onebeat.store import reports, workers
from onebeat.store.connection.database import Database
from onebeat.store.jobs import insert
from onebeat.store.tx import Tx
from tests.engine.parts import SWEEP, Parts
from tests.support.builders import SECOND, HeldLease, a_job, claimed, registered

LEASE = 3 * SECOND


async def running_elsewhere(parts: Parts, *jobs: NewJob, crashes: int = 0) -> str:
    """Another worker runs these jobs; its id."""
    other = await registered(parts.database, lease=LEASE)
    await parts.database.write(insert.add, jobs)
    if crashes:
        await parts.database.write(was_lost_before, crashes)
    await claimed(parts.database, other)
    return other


def was_lost_before(tx: Tx, crashes: int) -> None:
    tx.execute(update(tx.tables.jobs).values(crashes=crashes))


async def state(database: Database, job: NewJob) -> tuple[str, str | None]:
    info = await database.read(reports.job, job.id)
    return str(info.state), info.reason


async def test_it_sweeps_again_after_its_interval_and_a_tenth_more_or_less(parts: Parts) -> None:
    sweeper, same = parts.sweeper(), Random(1)
    for _ in range(3):
        now = parts.clock.advance(SWEEP / SECOND)
        assert await sweeper.tick(now) == now + int(SWEEP * (0.9 + 0.2 * same.random()))


async def test_jobs_of_a_worker_that_lives_are_left_alone(parts: Parts) -> None:
    job = a_job()
    await running_elsewhere(parts, job)
    parts.clock.advance(2)
    await parts.sweeper().tick(parts.clock.now)
    assert await state(parts.database, job) == ("running", None)
    assert (parts.events, parts.woken) == ([], [])


async def test_a_dead_workers_jobs_are_rescued_and_the_claimer_is_woken(parts: Parts) -> None:
    job = a_job()
    dead = await running_elsewhere(parts, job)
    parts.clock.advance(4)
    await parts.sweeper().tick(parts.clock.now)
    assert await state(parts.database, job) == ("queued", None)
    assert [event.worker_id for event in parts.told(WorkerDied)] == [dead]
    assert [(event.job_id, event.from_worker) for event in parts.told(JobRescued)] == [(job.id, dead)]
    assert parts.woken == ["jobs_queued"]


async def test_a_rescued_job_that_ended_is_told_to_those_who_wait_for_it(parts: Parts) -> None:
    job = a_job(at_most_once=True)
    await running_elsewhere(parts, job)
    parts.clock.advance(4)
    await parts.sweeper().tick(parts.clock.now)
    assert await state(parts.database, job) == ("failed", "lost")
    assert parts.woken == ["job_ended", "jobs_queued"], "it may have held up a job of its schedule"


async def test_a_second_loss_waits_and_wakes_the_promoter(parts: Parts) -> None:
    job = a_job()
    await running_elsewhere(parts, job, crashes=1)
    parts.clock.advance(4)
    await parts.sweeper().tick(parts.clock.now)
    assert await state(parts.database, job) == ("scheduled", "lost")
    assert parts.woken == ["jobs_queued", "jobs_delayed"]


async def test_a_sibling_on_this_host_whose_run_file_is_free_is_dead_before_its_lease_ends(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = run_file.boot_id() or "this boot"
    asked: list[list[str]] = []

    def dead_siblings(ids: list[str]) -> list[str]:
        asked.append(ids)
        return ids

    monkeypatch.setattr(run_file, "boot_id", lambda: boot)
    monkeypatch.setattr(run_file, "dead_siblings", dead_siblings)
    here = await registered(parts.database, boot_id=boot)
    await registered(parts.database, boot_id="another host")
    await parts.sweeper().tick(parts.clock.now)
    assert asked == [[here]]
    assert [event.worker_id for event in parts.told(WorkerDied)] == [here]


async def test_its_own_worker_is_not_asked_for_its_run_file(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    boot = run_file.boot_id() or "this boot"
    monkeypatch.setattr(run_file, "boot_id", lambda: boot)
    monkeypatch.setattr(run_file, "dead_siblings", lambda ids: list(ids))
    own = await registered(parts.database, boot_id=boot)
    parts.identity.take(HeldLease(own))
    await parts.sweeper().tick(parts.clock.now)
    assert own in {worker.id for worker in await parts.database.read(workers.live)}


async def test_it_prunes_at_first_and_then_each_five_minutes(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned: list[int] = []

    async def prune(database: Database, ages: object) -> int:
        pruned.append(parts.clock.now)
        return 0

    monkeypatch.setattr(sweeper_module, "prune", prune)
    sweeper, began = parts.sweeper(), parts.clock.now
    for _ in range(3):
        await sweeper.tick(parts.clock.now)
        parts.clock.advance(PRUNE_EACH / SECOND / 2)
    assert pruned == [began, began + PRUNE_EACH]
