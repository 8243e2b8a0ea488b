"""G2: a committed job is run at least once, or ends in a visible final state, whatever happens to its workers."""

from __future__ import annotations

from random import Random

import pytest

from onebeat.model.job import JobState
from onebeat.store import reports, workers
from onebeat.store.jobs import insert, rescue, settle
from tests.conftest import MakeDatabase
from tests.guarantees.arrange import LEASE
from tests.support.builders import a_job, claimed, claimed_suspects, ended, registered
from tests.support.virtual import VirtualClock


async def a_job_outlives_its_worker(url: str, make: MakeDatabase) -> None:
    """The first worker claims and is never heard of again; the second sweeps, claims and ends the job."""
    clock = VirtualClock()
    database = await make(url, database_clock=clock)
    job = a_job()
    await database.write(insert.add, [job])
    gone = await registered(database, lease=LEASE)
    assert len(await claimed(database, gone)) == 1
    clock.advance(LEASE / 1e6 + 1)
    other = await registered(database, lease=LEASE)
    await database.write(workers.mark_dead)
    await database.write(rescue.rescue, random=Random(1))
    got = await claimed(database, other)
    assert [(again.id, again.attempt, again.crashes) for again in got] == [(job.id, 2, 1)]
    assert (await database.write(settle.settle, [ended(got[0])], worker_id=other)).keys() == {job.id}
    assert (await database.read(reports.job, job.id)).state is JobState.SUCCEEDED


async def test_g2_a_job_outlives_its_worker(database_url: str, make_database: MakeDatabase) -> None:
    await a_job_outlives_its_worker(database_url, make_database)


async def test_without_rescue_a_job_of_a_dead_worker_never_ends(
    database_url: str, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescue, "rescue", lambda tx, *, random: [])
    with pytest.raises(AssertionError):
        await a_job_outlives_its_worker(database_url, make_database)


async def a_job_that_kills_its_workers_ends(url: str, make: MakeDatabase) -> None:
    """Each worker that takes it dies; after the third death it ends, and the reason is on its row."""
    clock = VirtualClock()
    database = await make(url, database_clock=clock)
    job = a_job()
    await database.write(insert.add, [job])
    for death in range(3):
        worker = await registered(database, lease=LEASE)
        await database.write(insert.promote)
        got = await (claimed_suspects if death == 2 else claimed)(database, worker)
        assert [again.attempt for again in got] == [death + 1]
        clock.advance(LEASE / 1e6 + 1)
        await database.write(workers.mark_dead)
        await database.write(rescue.rescue, random=Random(1))
        clock.advance(3600)
    end = await database.read(reports.job, job.id)
    assert (end.state, end.reason, end.attempt) == (JobState.FAILED, "quarantined", 3)


async def test_g2_a_job_that_kills_its_workers_ends_in_quarantine(
    database_url: str, make_database: MakeDatabase
) -> None:
    await a_job_that_kills_its_workers_ends(database_url, make_database)


async def test_without_a_crash_budget_poison_goes_round_for_ever(
    database_url: str, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onebeat.model.job.MAX_CRASHES", 1_000)
    with pytest.raises(AssertionError):
        await a_job_that_kills_its_workers_ends(database_url, make_database)
