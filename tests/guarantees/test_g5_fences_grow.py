"""G5: the fences of a job strictly grow, over attempts, a clock that steps back, and a restored back-up."""

from __future__ import annotations

from itertools import pairwise

import pytest
from sqlalchemy import update

from onebeat.model.job import Ending, Outcome
from onebeat.store.connection.database import Database
from onebeat.store.jobs import claim, control, insert, rescue, settle
from onebeat.store.tx import Tx
from tests.conftest import MakeDatabase
from tests.support.builders import a_job, claimed, ended, registered
from tests.support.virtual import VirtualClock


async def fences(url: str, make: MakeDatabase, *, step: float = 0, restored: bool = False) -> list[int]:
    """The fences of four claims of one job: after an error, after a give-back, and after a retry by hand."""
    clock = VirtualClock()
    database = await make(url, database_clock=clock)
    job = a_job(max_attempts=10)
    await database.write(insert.add, [job])
    worker = await registered(database)
    found = []
    for number in range(4):
        (got,) = await claimed(database, worker)
        found.append(got.fence)
        if number == 0:
            outcome = Outcome(ending=Ending.SNOOZED, delay=0)
            assert await database.write(settle.settle, [ended(got, outcome)], worker_id=worker)
            clock.advance(0.001)
            await database.write(insert.promote)
        elif number == 1:
            assert await database.write(rescue.give_back, [(got.id, got.lease_token)])
        else:
            assert await database.write(settle.settle, [ended(got)], worker_id=worker)
            assert await database.write(control.retry, got.id)
        clock.advance(step)
        if restored:
            await forget_fences(database)
    return found


async def forget_fences(database: Database) -> None:
    """The rows come from a back-up that was made before the claims."""
    await database.write(lambda tx: tx.execute(update(tx.tables.jobs).values(fence=0)))


def grow(found: list[int]) -> None:
    assert all(after > before for before, after in pairwise(found)), found


async def test_g5_fences_grow_while_the_clock_steps_back(database_url: str, make_database: MakeDatabase) -> None:
    grow(await fences(database_url, make_database, step=-30))


async def test_g5_fences_grow_over_a_restored_back_up(database_url: str, make_database: MakeDatabase) -> None:
    grow(await fences(database_url, make_database, step=1, restored=True))


def by_the_clock_alone(tx: Tx, now: object) -> object:
    return now


def by_counting_alone(tx: Tx, now: object) -> object:
    return tx.tables.jobs.c.fence + 1


async def test_by_the_clock_alone_fences_fall_with_it(
    database_url: str, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "next_fence", by_the_clock_alone)
    with pytest.raises(AssertionError):
        grow(await fences(database_url, make_database, step=-30))


async def test_by_counting_alone_a_restored_back_up_repeats_fences(
    database_url: str, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "next_fence", by_counting_alone)
    with pytest.raises(AssertionError):
        grow(await fences(database_url, make_database, step=1, restored=True))
