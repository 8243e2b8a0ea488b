"""G10: a free worker starts a job within a poll interval, and what an outage left behind is caught up within bounds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from onebeat import Scheduler
from onebeat.engine import loop
from onebeat.engine.claimer import Claimer
from onebeat.model import schedule
from onebeat.scheduler.integration import integration_of
from tests.conftest import MakeDatabase
from tests.guarantees.arrange import a_schedule, added, fired
from tests.support import rows
from tests.support.checker import SECOND, Facts, every, i1
from tests.support.virtual import START, VirtualClock

POLL = 0.5  # seconds
PATIENCE = 3.0  # seconds beyond it, for a busy machine


async def a_job_from_elsewhere_starts_soon(url: str, patience: float = PATIENCE) -> None:
    """Enqueued by a process that cannot wake the worker: only its polling finds the job."""
    worker = Scheduler(url, poll=POLL, hints=False, slots=4)
    client = Scheduler(url, role="client", hints=False)
    for scheduler in (worker, client):

        @scheduler.task(name="soon")
        async def soon() -> None: ...

    async with worker, client:
        await asyncio.sleep(2 * POLL)  # it has nothing left to do and sleeps between two polls
        with integration_of(client).activate():
            job = await soon.enqueue()
        async with asyncio.timeout(POLL + patience):
            await client.jobs.wait(job.id)


async def test_g10_a_free_worker_finds_a_job_within_its_poll_interval(database_url: str) -> None:
    await a_job_from_elsewhere_starts_soon(database_url)


async def test_without_polling_a_job_from_elsewhere_waits(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tick = Claimer.tick

    async def once(self: Claimer, now: int) -> int | None:
        at = await tick(self, now)
        return at if at == now else None

    monkeypatch.setattr(Claimer, "tick", once)
    monkeypatch.setattr(loop, "LONGEST_SLEEP", 60 * SECOND)
    with pytest.raises(TimeoutError):
        await a_job_from_elsewhere_starts_soon(database_url, patience=1.0)


async def an_outage_of_three_days_is_caught_up(url: str, make: MakeDatabase) -> None:
    """A schedule of each second comes back: a hundred jobs at most, and every instant has its verdict."""
    clock = VirtualClock()
    database = await make(url, database_clock=clock)
    await added(database, a_schedule())
    clock.advance(3 * 86_400)
    await fired(database)
    found = await rows.read(url)
    facts = Facts(jobs=found.jobs, fires=found.fires, due=every("beat", SECOND, START, clock.now + 1))
    assert [str(violation) for violation in i1(facts)] == []
    assert len(found.jobs) <= 100 + 6, "a hundred caught up, and those on time"
    assert len(found.fires) < 1_100


async def test_g10_an_outage_of_three_days_is_caught_up_within_bounds(
    database_url: str, make_database: MakeDatabase
) -> None:
    await an_outage_of_three_days_is_caught_up(database_url, make_database)


async def test_without_bounds_an_outage_ends_in_a_flood(
    database_url: str, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_of_them(policies: Any, late: Any, *rest: Any) -> Any:
        return [(fire, fire.at, None, "late") for fire in late]

    monkeypatch.setattr(schedule, "_catch_up", all_of_them)
    with pytest.raises(AssertionError):
        await an_outage_of_three_days_is_caught_up(database_url, make_database)


@pytest.mark.parametrize(("catch_up", "most"), [("latest", 6), ("skip", 6), ("all", 106)])
async def test_g10_each_catch_up_policy_bounds_what_runs_late(
    catch_up: str, most: int, database_url: str, make_database: MakeDatabase
) -> None:
    clock = VirtualClock()
    database = await make_database(database_url, database_clock=clock)
    await added(database, a_schedule(catch_up=catch_up))
    clock.advance(5_000)
    await fired(database)
    found = await rows.read(database_url)
    facts = Facts(jobs=found.jobs, fires=found.fires, due=every("beat", SECOND, START, clock.now + 1))
    assert [str(violation) for violation in i1(facts)] == []
    assert len(found.jobs) <= most
