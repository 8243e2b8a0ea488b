"""G4: a worker that lost a job can neither end it, nor requeue it, nor report progress, nor give it back."""

from __future__ import annotations

from random import Random
from uuid import UUID

import pytest
from sqlalchemy import ColumnElement, or_, select

from onebeat.model.job import Claimed, Ending, Outcome
from onebeat.store import workers
from onebeat.store.connection.database import Database
from onebeat.store.jobs import control, insert, rescue, settle
from onebeat.store.tx import Tx
from tests.conftest import MakeDatabase
from tests.guarantees.arrange import LEASE
from tests.support.builders import a_job, claimed, ended, registered
from tests.support.virtual import VirtualClock

OUTCOMES = {
    "a success": Outcome(ending=Ending.SUCCEEDED),
    "a success with a value": Outcome(ending=Ending.SUCCEEDED, value="1"),
    "an error": Outcome(ending=Ending.ERROR, error="boom"),
    "a snooze": Outcome(ending=Ending.SNOOZED, delay=1),
    "a cancel": Outcome(ending=Ending.CANCELLED),
}


async def lost_and_taken_over(database: Database, clock: VirtualClock) -> tuple[Claimed, str, Claimed, str]:
    """The claim of a worker that was away too long, its id, and the claim and id of the one that has the job now."""
    await database.write(insert.add, [a_job()])
    late = await registered(database, lease=LEASE)
    (stale,) = await claimed(database, late)
    clock.advance(LEASE / 1e6 + 1)
    await database.write(workers.mark_dead)
    await database.write(rescue.rescue, random=Random(1))
    other = await registered(database, lease=LEASE)
    (current,) = await claimed(database, other)
    assert current.id == stale.id
    return stale, late, current, other


def row_of(tx: Tx, id: UUID) -> tuple[object, ...]:
    return tuple(tx.execute(select(tx.tables.jobs).where(tx.tables.jobs.c.id == id)).one())


async def a_stale_settlement_is_refused(url: str, make: MakeDatabase, outcome: Outcome) -> None:
    clock = VirtualClock()
    database = await make(url, database_clock=clock)
    stale, late, current, other = await lost_and_taken_over(database, clock)
    before = await database.read(row_of, current.id)
    assert await database.write(settle.settle, [ended(stale, outcome)], worker_id=late) == {}
    assert await database.read(row_of, current.id) == before, "the refused settlement changed the row"
    assert (await database.write(settle.settle, [ended(current, outcome)], worker_id=other)).keys() == {current.id}


async def stale_words_are_refused(url: str, make: MakeDatabase) -> None:
    clock = VirtualClock()
    database = await make(url, database_clock=clock)
    stale, late, current, _ = await lost_and_taken_over(database, clock)
    before = await database.read(row_of, current.id)
    assert not await database.read(control.owned, stale.id, stale.lease_token)
    assert not await database.write(control.progress, stale.id, stale.lease_token, '{"done":1}')
    assert not await database.write(control.note_overrun, stale.id, stale.lease_token)
    assert await database.write(rescue.give_back, [(stale.id, stale.lease_token)]) == []
    assert not await database.write(workers.renew, late, LEASE)
    assert await database.read(row_of, current.id) == before
    assert await database.read(control.owned, current.id, current.lease_token)


def whoever_runs_it(tx: Tx, token: ColumnElement[str] | str) -> ColumnElement[bool]:
    """Is it running? Not: is it running under this claim?"""
    c = tx.tables.jobs.c
    return or_(c.state == "running", c.lease_token == token)


def off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "claim_holds", whoever_runs_it)
    monkeypatch.setattr(rescue, "claim_holds", whoever_runs_it)
    monkeypatch.setattr(control, "claim_holds", whoever_runs_it)


@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES)
async def test_g4_a_worker_that_lost_the_job_settles_nothing(
    outcome: Outcome, database_url: str, make_database: MakeDatabase
) -> None:
    await a_stale_settlement_is_refused(database_url, make_database, outcome)


@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES)
async def test_without_the_token_a_stale_settlement_is_written(
    outcome: Outcome, database_url: str, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    off(monkeypatch)
    with pytest.raises(AssertionError):
        await a_stale_settlement_is_refused(database_url, make_database, outcome)


async def test_g4_a_worker_that_lost_the_job_has_no_other_word_either(
    database_url: str, make_database: MakeDatabase
) -> None:
    await stale_words_are_refused(database_url, make_database)


async def test_without_the_token_stale_words_are_written(
    database_url: str, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    off(monkeypatch)
    with pytest.raises(AssertionError):
        await stale_words_are_refused(database_url, make_database)


async def test_g4_one_lost_job_of_a_batch_does_not_cost_the_others(
    database_url: str, make_database: MakeDatabase
) -> None:
    """A batch shares one token; the job that was taken is refused, its neighbours are settled."""
    clock = VirtualClock()
    database = await make_database(database_url, database_clock=clock)
    await database.write(insert.add, [a_job() for _ in range(3)])
    worker = await registered(database)
    batch = await claimed(database, worker)
    await database.write(rescue.give_back, [(batch[1].id, batch[1].lease_token)])
    kept = await database.write(settle.settle, [ended(job) for job in batch], worker_id=worker)
    assert kept.keys() == {batch[0].id, batch[2].id}
