"""Two actors at the same rows, in every order of their statements: one of them wins, and both know who."""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from onebeat.model import payload
from onebeat.store import workers
from onebeat.store.connection.database import Database
from onebeat.store.jobs import control, insert, rescue, settle as settle_rows
from onebeat.store.schedules import edit, fire
from onebeat.store.tx import Tx
from onebeat.timing.triggers import Every
from tests.conftest import SERVERS, MakeDatabase
from tests.guarantees.arrange import LEASE, a_schedule, added, fired, or_whatever
from tests.support import rows
from tests.support.builders import a_job, claimed, ended, registered
from tests.support.checker import SECOND, Facts, every, i1
from tests.support.databases import RAN
from tests.support.orders import Turnstile, in_order, orders
from tests.support.virtual import START, VirtualClock

SAMPLE = 12  # orders of each pair in `make test`
MANY = 400  # and in `make soak`: all there are, or so many of them; two dispatchers alone have tens of thousands
Actor = Callable[[], Awaitable[Any]]


@pytest.fixture(params=[kind for kind in ("postgresql", "mariadb") if kind in SERVERS])
def database_kind(request: pytest.FixtureRequest) -> str:
    """SQLite has one writer: there, two transactions have no order but one after the other."""
    RAN.add(request.param)
    return str(request.param)


class Pair:
    """Two databases on one URL whose statements can be ordered, a third that arranges and looks, and their clock."""

    def __init__(self, url: str, clock: VirtualClock, turnstiles: list[Turnstile], databases: list[Database]) -> None:
        self.url = url
        self.clock = clock
        self.turnstiles = turnstiles
        self.one, self.two, self.third = databases

    async def in_every_order(
        self,
        most: int | None,
        arrange: Callable[[], Awaitable[list[Actor]]],
        look: Callable[[list[Any]], Awaitable[None]],
    ) -> int:
        """Arrange afresh, run the two actors in an order, and look; for each order. How many there were."""
        seed = int(os.environ.get("PROOF_SEED") or random.SystemRandom().randrange(1 << 32))
        print(f"PROOF_SEED={seed}")
        count = 0
        first, second = await self._steps(arrange, look)
        for order in orders(first, second, most, random.Random(seed)):
            actors = await arrange()
            results = await in_order(order, self.turnstiles, actors)
            errors = [result for result in results if isinstance(result, BaseException)]
            assert errors == [], f"in the order {order}: {errors}"
            try:
                await look(results)
            except AssertionError as error:
                raise AssertionError(f"in the order {order}: {error}") from error
            count += 1
        return count

    async def _steps(
        self, arrange: Callable[[], Awaitable[list[Actor]]], look: Callable[[list[Any]], Awaitable[None]]
    ) -> list[int]:
        """How many statements and commits each actor needs when it comes first."""
        found = []
        for first in (0, 1):
            actors = await arrange()
            self.turnstiles[first].steps = 0
            results: list[Any] = [None, None]
            results[first] = await actors[first]()
            found.append(self.turnstiles[first].steps)
            results[1 - first] = await actors[1 - first]()
            await look(results)
        return found


@pytest.fixture
async def pair(database_url: str, make_database: MakeDatabase) -> Pair:
    clock = VirtualClock()
    turnstiles = [Turnstile(), Turnstile()]
    databases = [await make_database(database_url, database_clock=clock, points=points) for points in turnstiles]
    return Pair(database_url, clock, turnstiles, [*databases, await make_database(database_url, database_clock=clock)])


async def two_fires(pair: Pair, most: int | None) -> int:
    """Of two dispatchers one decides the three instants, and the other nothing."""
    names = iter(range(1_000_000))
    current = ""

    async def arrange() -> list[Actor]:
        nonlocal current
        current = f"beat-{next(names)}"
        pair.clock.now = START
        await pair.third.write(lambda tx: tx.execute(tx.tables.schedules.update().values(state="paused")))
        await added(pair.third, a_schedule(current))
        pair.clock.advance(3)
        return [lambda: fired(pair.one), lambda: fired(pair.two)]

    async def look(results: list[Any]) -> None:
        assert sorted(report.decided for report in results) == [0, 1]
        assert [report.conflicts for report in results] == [[], []]
        found = await rows.read(pair.url)
        mine = [row for row in found.fires if row.schedule_id == current]
        made = [row for row in found.jobs if row.schedule_id == current]
        facts = Facts(jobs=made, fires=mine, due=every(current, SECOND, START, pair.clock.now + 1))
        assert [str(violation) for violation in i1(facts)] == []

    return await pair.in_every_order(most, arrange, look)


async def two_claims(pair: Pair, most: int | None) -> int:
    """Two workers claim two of three jobs each: no job twice, and none is left that both could have had."""
    one, two = await registered(pair.third), await registered(pair.third)

    async def arrange() -> list[Actor]:
        await pair.third.write(lambda tx: tx.execute(tx.tables.jobs.delete()))
        await pair.third.write(insert.add, [a_job() for _ in range(3)])
        return [lambda: claimed(pair.one, one, 2), lambda: claimed(pair.two, two, 2)]

    async def look(results: list[Any]) -> None:
        ids = [job.id for batch in results for job in batch]
        assert len(ids) == len(set(ids)), "a job was claimed twice"
        assert len(ids) >= 2
        held = {job.id: job.worker_id for job in (await rows.read(pair.url)).jobs if job.state == "running"}
        assert held == {job.id: worker for worker, batch in zip((one, two), results, strict=True) for job in batch}

    return await pair.in_every_order(most, arrange, look)


async def settle_and_rescue(pair: Pair, most: int | None) -> int:
    """A worker that was marked dead comes back with its result while a sweeper takes the job: one of them gets it."""

    async def arrange() -> list[Actor]:
        await pair.third.write(lambda tx: tx.execute(tx.tables.jobs.delete()))
        await pair.third.write(insert.add, [a_job()])
        worker = await registered(pair.third, lease=LEASE)
        (job,) = await claimed(pair.third, worker)
        await pair.third.write(workers.mark_dead_by_id, [worker])
        settle: Actor = lambda: pair.one.write(settle_rows.settle, [ended(job)], worker_id=worker)  # noqa: E731 - beside its twin
        return [settle, lambda: pair.two.write(rescue.rescue, random=random.Random(1))]

    async def look(results: list[Any]) -> None:
        kept, rescued = results
        (job,) = (await rows.read(pair.url)).jobs
        if kept:
            assert (job.state, rescued) == ("succeeded", [])
        else:
            assert (job.state, job.crashes, [item.id for item in rescued]) == ("queued", 1, [job.id])

    return await pair.in_every_order(most, arrange, look)


async def beat_and_burial(url: str, make: MakeDatabase, most: int | None) -> int:
    """A beat just in time, and a sweep just after: renewed and alive, or refused and dead; never renewed and dead."""
    early, late = VirtualClock(), VirtualClock(START + 2)
    turnstiles = [Turnstile(), Turnstile()]
    one = await make(url, database_clock=early, points=turnstiles[0])
    two = await make(url, database_clock=late, points=turnstiles[1])
    pair = Pair(url, early, turnstiles, [one, two, await make(url, database_clock=VirtualClock(START - LEASE + 1))])
    current = ""

    async def arrange() -> list[Actor]:
        nonlocal current
        await pair.third.write(lambda tx: tx.execute(tx.tables.workers.delete()))
        current = await registered(pair.third, lease=LEASE)  # it ends at START + 1
        return [lambda: one.write(workers.renew, current, LEASE), lambda: two.write(workers.mark_dead)]

    def state(tx: Tx) -> str:
        return str(tx.execute(select(tx.tables.workers.c.state)).scalar_one())

    async def look(results: list[Any]) -> None:
        renewed, buried = results
        assert (renewed, len(buried), await pair.third.read(state)) in ((True, 0, "alive"), (False, 1, "dead"))

    return await pair.in_every_order(most, arrange, look)


async def edit_and_fire(pair: Pair, most: int | None) -> int:
    """Someone changes the rule while it is due: what was fired is fired, and the next instant is of the new rule."""
    new = payload.canonical(Every(60).to_json())

    async def arrange() -> list[Actor]:
        await pair.third.write(lambda tx: [tx.execute(t.delete()) for t in (tx.tables.schedules, tx.tables.fires)])
        pair.clock.now = START
        await added(pair.third, a_schedule())
        pair.clock.advance(3)
        edited = replace(a_schedule(), trigger=new)
        return [
            lambda: pair.one.write(edit.edit, edited, expected_rev=None, override=False),
            lambda: fired(pair.two),
        ]

    async def look(results: list[Any]) -> None:
        found = await rows.read(pair.url)
        (row,) = await rows.ask(pair.url, lambda c: list(c.execute(select(rows.TABLES.schedules))))
        assert len(found.fires) == (3 if results[1].decided else 0)
        assert row.rev == 2
        assert row.trigger_json == new, "the edit was undone"
        assert row.next_fire_us == START + 60 * SECOND

    return await pair.in_every_order(most, arrange, look)


async def cancel_and_claim(pair: Pair, most: int | None) -> int:
    """A job is cancelled while a worker takes it: it never starts, or its function is asked to stop."""
    worker = await registered(pair.third)

    async def arrange() -> list[Actor]:
        await pair.third.write(lambda tx: tx.execute(tx.tables.jobs.delete()))
        job = a_job()
        await pair.third.write(insert.add, [job])
        return [lambda: pair.one.write(control.cancel, [job.id]), lambda: claimed(pair.two, worker)]

    async def look(results: list[Any]) -> None:
        (row,) = await rows.ask(pair.url, lambda c: list(c.execute(select(rows.TABLES.jobs))))
        assert row.state == ("running" if results[1] else "cancelled")
        assert row.cancel_requested_us is not None

    return await pair.in_every_order(most, arrange, look)


PAIRS = {
    "fire and fire": two_fires,
    "claim and claim": two_claims,
    "settle and rescue": settle_and_rescue,
    "edit and fire": edit_and_fire,
    "cancel and claim": cancel_and_claim,
}


@pytest.mark.parametrize("run", PAIRS.values(), ids=PAIRS)
async def test_two_actors_agree_in_a_sample_of_orders(run: Callable[..., Awaitable[int]], pair: Pair) -> None:
    assert await run(pair, SAMPLE) >= 3


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("run", PAIRS.values(), ids=PAIRS)
async def test_soak_two_actors_agree_in_many_orders(run: Callable[..., Awaitable[int]], pair: Pair) -> None:
    print(f"{await run(pair, MANY)} orders")


async def test_a_beat_and_a_burial_agree_in_all_orders(database_url: str, make_database: MakeDatabase) -> None:
    assert await beat_and_burial(database_url, make_database, None) >= 3


async def test_without_row_locks_the_compare_and_set_alone_lets_one_dispatcher_win(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that drops the locking clause costs work, never a second verdict."""
    monkeypatch.setattr(type(pair.one.dialect), "skip_locked", lambda self, query: query)
    await two_fires(pair, SAMPLE)


async def test_without_both_locks_and_compare_and_set_two_dispatchers_collide(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(pair.one.dialect), "skip_locked", lambda self, query: query)
    monkeypatch.setattr(fire, "still_unfired", or_whatever)
    with pytest.raises(AssertionError):
        await two_fires(pair, MANY)  # it ends at the first order in which they collide
