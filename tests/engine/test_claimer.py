"""What one look for jobs takes, what it leaves to others, and when it looks again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from sqlalchemy import SelectBase, select
from sqlalchemy.util import await_only

from onebeat.engine.claimer import Claimer
from onebeat.model.job import Claimed
from onebeat.store import reports
from onebeat.store.connection.database import Database
from onebeat.store.jobs import insert
from onebeat.store.tx import Tx
from onebeat.timing.clock import SystemClock
from tests.conftest import MakeDatabase
from tests.support.builders import SECOND, a_job, identity_of, registered

POLL = 30 * SECOND


class Places:
    """Ten free slots that keep what they are given."""

    idle = True
    accepts_suspect = True
    few = False

    def __init__(self) -> None:
        self.started: list[Claimed] = []

    @property
    def free(self) -> int:
        return 10 - len(self.started)

    def free_in(self, queue: str) -> int:
        return self.free

    def startable(self, limit: int) -> Sequence[tuple[Sequence[str], int]]:
        return [(("work",), limit)]

    def start(self, job: Claimed) -> None:
        self.started.append(job)


def a_claimer(database: Database, worker: str, places: Places) -> Claimer:
    return Claimer(
        database=database,
        slots=places,
        identity=identity_of(worker),
        queues=None,
        own_slots={},
        poll=POLL,
        sweep=15 * SECOND,
        clock=SystemClock(),
    )


async def test_a_job_whose_row_another_search_held_is_not_left_until_the_next_poll(
    database_url: str, make_database: MakeDatabase
) -> None:
    """InnoDB locks each row that a locking search passes, also one that it then does not want."""
    database = await make_database(database_url)
    if database.dialect.one_writer:
        return  # nobody else looks while one writes
    places = Places()
    claimer = a_claimer(database, await registered(database), places)
    job = a_job()
    await database.write(insert.add, [job])
    held, go = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def hold(tx: Tx) -> None:
        c = tx.tables.jobs.c
        tx.execute(tx.dialect.lock_rows(select(c.id).where(c.id == job.id)))
        loop.call_soon(held.set)
        await_only(go.wait())

    other = asyncio.create_task(database.write(hold))
    await held.wait()
    first, second = await claimer.tick(0), await claimer.tick(0)
    assert not places.started
    if database.dialect.locks_in_passing:
        assert (first, second) == (10_000, 20_000)
    else:
        assert first == POLL  # whoever locks a queued row there takes it
    go.set()
    await other
    assert await claimer.tick(0) == POLL
    assert [started.id for started in places.started] == [job.id]


class Statements:
    """What was sent, in order."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def reach(self, name: str, tx: Tx) -> None:
        if name == "statement":
            self.sent.append(tx.statement)


async def test_an_idle_worker_looks_for_suspects_without_a_lock(database_url: str, make_database: MakeDatabase) -> None:
    """A locking look would hide ordinary jobs from the claims of others, once in each poll of each idle worker."""
    statements = Statements()
    database = await make_database(database_url, points=statements)
    claimer = a_claimer(database, await registered(database), Places())
    statements.sent.clear()
    assert await claimer.tick(0) == POLL
    looks = statements.sent[1:]  # after the claim
    assert len(looks) == (2 if database.dialect.locks_in_passing else 1)
    assert all(isinstance(look, SelectBase) and "FOR UPDATE" not in str(look) for look in looks)


async def test_a_suspect_is_taken_by_an_idle_worker_alone(database: Database) -> None:
    places = Places()
    claimer = a_claimer(database, await registered(database), places)
    suspect = a_job()
    await database.write(insert.add, [suspect, a_job()])
    await database.write(_was_running_when_two_died, suspect.id)
    await claimer.tick(0)
    assert len(places.started) == 2  # these places always say that they are idle
    assert places.started[1].id == suspect.id


def _was_running_when_two_died(tx: Tx, id: Any) -> None:
    table = tx.tables.jobs
    tx.execute(table.update().where(table.c.id == id).values(crashes=2))


async def test_a_claim_of_a_worker_that_lost_its_lease_meanwhile_starts_nothing_and_goes_back(
    database: Database,
) -> None:
    """Its jobs are another's any moment: started here too, they would run twice."""
    places, worker = Places(), await registered(database)
    job = a_job()
    await database.write(insert.add, [job])
    claimer = Claimer(
        database=database,
        slots=places,
        identity=identity_of("anew"),
        queues=None,
        own_slots={},
        poll=POLL,
        sweep=15 * SECOND,
        clock=SystemClock(),
    )
    await claimer._claim(worker, 10, None, ())
    info = await database.read(reports.job, job.id)
    assert not places.started
    assert (info.state, info.attempt) == ("queued", 0)


async def test_many_queued_jobs_are_claimed_while_ends_are_written_once_half_of_the_slots_are_free(
    database: Database,
) -> None:
    places = Places()
    claimer = a_claimer(database, await registered(database), places)
    await database.write(insert.add, [a_job() for _ in range(40)])
    await claimer.tick(0)
    assert (len(places.started), claimer.behind) == (10, True)
    places.started, places.few = places.started[:8], True
    assert await claimer.tick(0) == POLL
    assert len(places.started) == 8  # two places are not worth a claim: the ends under way bring more
    claimer.settled()
    await claimer.tick(0)
    assert len(places.started) == 10
    places.started, places.few = [], False
    await claimer.tick(0)
    assert len(places.started) == 10
