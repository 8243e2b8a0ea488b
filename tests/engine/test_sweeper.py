"""The sweeper marks dead workers, rescues their jobs, prunes by age, and says when to sweep again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from random import Random
from typing import Any

import pytest
from sqlalchemy import func, select, update

from onebeat.engine import run_file, sweeper as sweeper_module
from onebeat.engine.sweeper import PRUNE_EACH, RetentionAges, Sweeper
from onebeat.model.events import JobRescued, WorkerDied
from onebeat.model.job import JobState, NewJob
from onebeat.model.schedule import waits_for
from onebeat.store import reports, retention, workers
from onebeat.store.connection.database import Database
from onebeat.store.jobs import control, insert, release, rescue
from onebeat.store.schedules import rezone
from onebeat.store.tx import Tx
from onebeat.timing.clock import HOUR
from onebeat.timing.triggers import Cron
from tests.engine.parts import SWEEP, Parts
from tests.guarantees.arrange import added
from tests.support.builders import SECOND, HeldLease, a_job, claimed, ended, jobs_by_state, registered
from tests.support.simulated_worker import a_schedule

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


async def swept(sweeper: Sweeper, now: int) -> int | None:
    """One sweep and what there is to prune; when the next sweep is due."""
    while (again := await sweeper.tick(now)) == now:
        pass
    return again


async def test_it_sweeps_again_after_its_interval_and_a_tenth_more_or_less(parts: Parts) -> None:
    sweeper, same = parts.sweeper(), Random(1)
    for _ in range(3):
        now = parts.clock.advance(2 * SWEEP / SECOND)
        assert await swept(sweeper, now) == now + int(SWEEP * (0.9 + 0.2 * same.random()))


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

    def prune(*_: object, **__: object) -> int:
        pruned.append(parts.clock.now)
        return 0

    monkeypatch.setattr(control, "prune", prune)
    sweeper, began = parts.sweeper(), parts.clock.now
    for _ in range(3):
        await swept(sweeper, parts.clock.now)
        parts.clock.advance(PRUNE_EACH / SECOND / 2)
    assert pruned == [began, began + PRUNE_EACH]


async def test_a_rescue_waits_for_one_batch_of_the_pruning_at_most(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "prune", partial(control.prune, limit=1))
    for job in await parts.claimed(*(a_job() for _ in range(4))):
        parts.settler.put(ended(job), seconds=0)
    await parts.settled()
    sweeper, orphan = parts.sweeper(retention=RetentionAges(succeeded=SECOND)), a_job()
    await running_elsewhere(parts, orphan)
    now = parts.clock.advance(2)
    assert await sweeper.tick(now) == now, "it sweeps, and begins to prune"
    assert await sweeper.tick(now) == now
    now = parts.clock.advance(2 * SWEEP / SECOND)
    assert await sweeper.tick(now) == now, "it goes on pruning"
    assert await state(parts.database, orphan) == ("queued", None)
    assert await parts.database.read(jobs_by_state) == {"succeeded": 3, "queued": 1}
    await swept(sweeper, now)
    assert await parts.database.read(jobs_by_state) == {"queued": 1}


async def test_it_sweeps_although_the_local_clock_was_set_back(parts: Parts) -> None:
    sweeper, orphan = parts.sweeper(), a_job()
    now = parts.clock.now
    await swept(sweeper, now)
    await running_elsewhere(parts, orphan)
    parts.clock.advance(4)
    await sweeper.tick(now - 3600 * SECOND)
    assert await state(parts.database, orphan) == ("queued", None)


async def test_a_rescue_that_takes_too_long_is_done_in_halves(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []
    original = rescue.rescue

    def slow(tx: Tx, *, random: Random, limit: int) -> Any:
        limits.append(limit)
        parts.clock.advance(0.2 * limit)
        return original(tx, random=random, limit=limit)

    monkeypatch.setattr(rescue, "rescue", slow)
    await running_elsewhere(parts, *(a_job() for _ in range(3)))
    parts.clock.advance(4)
    await parts.sweeper().tick(parts.clock.now)
    assert limits[:2] == [200, 100]
    assert await parts.database.read(jobs_by_state) == {"queued": 3}


async def test_next_fires_of_other_zone_data_move_a_part_in_each_sweep(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All schedules in one transaction would hold up their fires, and rescues, for as long as it takes."""
    monkeypatch.setattr(rezone, "rezone", partial(rezone.rezone, limit=2))
    monkeypatch.setattr(sweeper_module, "REZONED_AT_ONCE", 2)
    cron = Cron("30 2 * * *", "Europe/Berlin")
    await added(parts.database, *(a_schedule(f"s{n}", cron) for n in range(6)))
    right = cron.next_fire(parts.clock.now)
    assert right is not None

    def spoil(tx: Tx) -> None:
        table = tx.tables.schedules
        tx.execute(update(table).values(next_fire_us=right.at + HOUR, zone_fingerprint="20000:" + "0" * 24))
        tx.execute(update(table).where(table.c.id == "s1").values(trigger_json='{"kind":"of the future"}'))

    def moved(tx: Tx) -> int:
        c = tx.tables.schedules.c
        return int(tx.execute(select(func.count()).where(c.next_fire_us == right.at)).scalar_one())

    await parts.database.write(spoil)
    sweeper = parts.sweeper()
    found = []
    for _ in range(3):
        await swept(sweeper, parts.clock.now)
        found.append(await parts.database.read(moved))
        parts.clock.advance(2 * SWEEP / SECOND)
    assert found == [3, 5, 5], "the unreadable one stops nobody"
    assert parts.woken.count("schedules_changed") == 3


async def test_too_many_fire_records_are_found_a_few_schedules_at_a_time_and_at_once_where_fires_are_frequent(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MOST_FIRES", 5)
    monkeypatch.setattr(retention, "following", partial(retention.following, limit=2))
    await added(parts.database, *(a_schedule(f"s{n}") for n in range(5)))

    def fires(tx: Tx, ids: Sequence[str], decided: int) -> None:
        values = {"origin": "schedule", "decision": "started", "decided_by": "w", "decided_us": decided}
        rows = [{"schedule_id": id, "fire_key": f"{n}", "fire_us": n} | values for id in ids for n in range(7)]
        tx.execute(tx.tables.fires.insert(), rows)

    def counted(tx: Tx) -> list[int]:
        c = tx.tables.fires.c
        query = select(func.count()).group_by(c.schedule_id).order_by(c.schedule_id)
        return list(tx.execute(query.select_from(tx.tables.fires)).scalars())

    now = parts.clock.now
    await parts.database.write(fires, ["s0", "s1", "s2", "s3"], now - HOUR)
    await parts.database.write(fires, ["s4"], now - SECOND)
    sweeper = parts.sweeper()
    found = []
    for _ in range(2):
        await swept(sweeper, parts.clock.now)
        found.append(await parts.database.read(counted))
        parts.clock.advance(PRUNE_EACH / SECOND)
    assert found == [[5, 5, 7, 7, 5], [5, 5, 5, 5, 5]]


async def test_lost_releases_beyond_the_first_page_are_healed(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held ones come first: they must not be all that the sweeper looks at."""
    monkeypatch.setattr(release, "lost_releases", partial(release.lost_releases, limit=2))
    held = [a_job(schedule_id=f"s{n}") for n in range(3)]
    waiting = [a_job(schedule_id=f"s{n}", state=JobState.WAITING, waits_for=waits_for(f"s{n}")) for n in range(5)]
    await parts.stored(*held, *waiting)
    await parts.sweeper().tick(parts.clock.now)
    states = [(await parts.database.read(reports.job, job.id)).state for job in waiting]
    assert states == ["waiting", "waiting", "waiting", "queued", "queued"]
    assert "jobs_queued" in parts.woken
