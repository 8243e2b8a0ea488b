"""The promoter queues what is due, sleeps until the next job is due, and wakes the claimer."""

from __future__ import annotations

from uuid import UUID

import pytest

from onebeat.model.job import JobState
from onebeat.store import reports
from onebeat.store.connection.database import Database
from onebeat.store.jobs import insert
from onebeat.store.tx import Tx
from tests.engine.parts import POLL, Parts
from tests.support.builders import SECOND, a_job


def due(parts: Parts, seconds: float) -> dict[str, object]:
    """The values of a job that is due so many seconds from now."""
    return {"state": JobState.SCHEDULED, "run_at": parts.clock.now + round(seconds * SECOND)}


async def state(parts: Parts, job: UUID) -> str:
    return str((await parts.database.read(reports.job, job)).state)


async def test_without_delayed_jobs_it_looks_again_after_the_poll_interval(parts: Parts) -> None:
    await parts.stored()
    now = parts.clock.now
    assert await parts.promoter.tick(now) == now + POLL
    assert parts.woken == []


async def test_it_sleeps_until_the_earliest_job_is_due_and_queues_it_then(parts: Parts) -> None:
    early, late = a_job(**due(parts, 2)), a_job(**due(parts, 5))
    await parts.stored(late, early)
    now = parts.clock.now
    assert await parts.promoter.tick(now) == now + 2 * SECOND
    assert (await state(parts, early.id), parts.woken) == ("scheduled", [])
    now = parts.clock.advance(2)
    assert await parts.promoter.tick(now) == now + 3 * SECOND
    assert (await state(parts, early.id), await state(parts, late.id)) == ("queued", "scheduled")
    assert parts.woken == ["jobs_queued"]


async def test_only_a_job_that_is_due_before_the_next_look_needs_another_one(parts: Parts) -> None:
    parts.database.offset_us = 10 * SECOND
    local, now = parts.clock.now - 10 * SECOND, parts.clock.now
    assert not parts.promoter.is_awaited(now + 3600 * SECOND), "it has not looked yet"
    await parts.stored(a_job(**due(parts, 4)))
    await parts.promoter.tick(local)
    assert [parts.promoter.is_awaited(now + seconds * SECOND) for seconds in (3, 4, 5)] == [False, True, True]


async def test_a_job_that_is_stored_during_a_look_makes_another_one(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it reads may be older than that job."""
    await parts.promoter.tick(parts.clock.now)
    awaited: list[bool] = []

    def read(tx: Tx) -> int | None:
        awaited.append(parts.promoter.is_awaited(parts.clock.now + 3600 * SECOND))
        return None

    monkeypatch.setattr(insert, "next_run_at", read)
    await parts.promoter.tick(parts.clock.now)
    assert awaited == [False]


async def test_a_job_far_ahead_does_not_keep_it_from_polling(parts: Parts) -> None:
    await parts.stored(a_job(**due(parts, 3600)))
    now = parts.clock.now
    assert await parts.promoter.tick(now) == now + POLL


async def test_the_database_decides_what_is_due_and_the_offset_when_to_look(parts: Parts) -> None:
    """The local clock is ten seconds behind the database's."""
    job = a_job(**due(parts, 4))
    await parts.stored(job)
    parts.database.offset_us = 10 * SECOND
    local = parts.clock.now - 10 * SECOND
    assert await parts.promoter.tick(local) == local + 4 * SECOND
    parts.clock.advance(4)
    await parts.promoter.tick(local + 4 * SECOND)
    assert await state(parts, job.id) == "queued"


async def test_a_stepped_clock_is_asked_for_once_and_not_each_millisecond(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database's clock was set back by an hour after the offset was measured."""
    await parts.stored(a_job(**due(parts, 10)))
    local = parts.clock.now
    parts.database.offset_us = 3600 * SECOND

    async def measured(self: Database) -> int:
        self.offset_us = 0
        return 0

    monkeypatch.setattr(Database, "measure_offset", measured)
    assert await parts.promoter.tick(local) == local + 10 * SECOND


async def test_more_than_one_batch_is_looked_at_again_at_once(parts: Parts) -> None:
    await parts.stored(*(a_job(**due(parts, -1)) for _ in range(501)))
    now = parts.clock.now
    again = await parts.promoter.tick(now)
    assert again is not None
    assert again - now <= 1_000
    assert await parts.promoter.tick(now) == now + POLL
