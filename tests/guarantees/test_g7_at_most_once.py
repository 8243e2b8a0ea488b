"""G7: a job that may start once never starts twice; when its worker dies it ends as lost, in sight."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from onebeat.model.job import Ending, JobState, Outcome, Settlement, settle
from onebeat.store import reports, workers
from onebeat.store.jobs import insert, rescue, settle as settle_rows
from tests.conftest import MakeDatabase
from tests.guarantees.arrange import LEASE
from tests.support.builders import a_job, claimed, ended, registered
from tests.support.virtual import VirtualClock


async def it_starts_once(url: str, make: MakeDatabase) -> None:
    """Its worker dies, and every way back to the queue is tried."""
    clock = VirtualClock()
    database = await make(url, database_clock=clock)
    job = a_job(at_most_once=True, max_attempts=1)
    await database.write(insert.add, [job])
    dying = await registered(database, lease=LEASE)
    starts = len(await claimed(database, dying))
    clock.advance(LEASE / 1e6 + 1)
    await database.write(workers.mark_dead)
    await database.write(rescue.rescue, random=Random(1))
    clock.advance(3600)
    await database.write(insert.promote)
    other = await registered(database, lease=LEASE)
    starts += len(await claimed(database, other))
    assert starts == 1
    end = await database.read(reports.job, job.id)
    assert (end.state, end.reason) == (JobState.FAILED, "lost")


async def test_g7_an_at_most_once_job_of_a_dead_worker_is_lost_not_repeated(
    database_url: str, make_database: MakeDatabase
) -> None:
    await it_starts_once(database_url, make_database)


async def test_without_the_rule_a_rescue_starts_it_again(
    database_url: str, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(**values: Any) -> Settlement:
        return settle(**(values | {"at_most_once": False}))

    monkeypatch.setattr(rescue, "decide", forgetful)
    with pytest.raises(AssertionError):
        await it_starts_once(database_url, make_database)


@pytest.mark.parametrize("ending", [Ending.ERROR, Ending.TIMEOUT, Ending.DRAINED, Ending.LOST])
async def test_g7_no_way_of_ending_puts_it_back(ending: Ending, database_url: str, make_database: MakeDatabase) -> None:
    database = await make_database(database_url)
    job = a_job(at_most_once=True, max_attempts=1)
    await database.write(insert.add, [job])
    worker = await registered(database)
    (got,) = await claimed(database, worker)
    await database.write(settle_rows.settle, [ended(got, Outcome(ending=ending))], worker_id=worker)
    assert (await database.read(reports.job, job.id)).state is JobState.FAILED
    assert await claimed(database, worker) == []
