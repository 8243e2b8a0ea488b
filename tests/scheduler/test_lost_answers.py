"""A verb whose COMMIT happens and gets no answer has succeeded, and has its effect once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from onebeat import Every, JobExists, JobInfo, JobNotFound, ScheduleExists, ScheduleNotFound, Scheduler, Task
from onebeat.store.jobs import control
from onebeat.store.tx import Tx
from tests.conftest import SERVERS
from tests.scheduler.arrange import do_nothing
from tests.support.databases import Shelf, kind_of
from tests.support.proxy import Proxy, proxy_to

COMMIT = {"postgresql": b"COMMIT\0", "mariadb": b"COMMIT"}  # and no other statement that speaks of READ COMMITTED


@dataclass
class Client:
    """A scheduler without an engine, so that the next COMMIT is the one of the verb under test."""

    scheduler: Scheduler
    task: Task[Any, Any]
    proxy: Proxy

    def lose_next_answer(self, *, before: bool = False) -> None:
        """Cut the connection at the next COMMIT; `before` the server gets it, or after it has done it."""
        self.proxy.before = before
        self.proxy.cut_on = COMMIT[kind_of(self.proxy.url)]

    async def ended_job(self) -> JobInfo:
        return await (await self.task.enqueue()).cancel()


@pytest.fixture(params=[kind for kind in SERVERS if kind in COMMIT])
async def client(request: pytest.FixtureRequest, shelf: Shelf, tmp_path: Path) -> AsyncIterator[Client]:
    async with proxy_to(shelf.take(request.param, tmp_path)) as proxy:
        scheduler = Scheduler(proxy.url, role="client")
        task = scheduler.task(name="mail")(do_nothing)
        async with scheduler:
            await scheduler.schedules.add("old", task, Every(3600), overlap="allow")
            yield Client(scheduler, task, proxy)
        assert proxy.cuts, "no answer was lost"


@pytest.mark.parametrize("before", [False, True], ids=["committed", "not committed"])
async def test_a_schedule_is_added(client: Client, before: bool) -> None:
    client.lose_next_answer(before=before)
    added = await client.scheduler.schedules.add("new", client.task, Every(60))
    assert (added.id, added.rev) == ("new", 1)
    with pytest.raises(ScheduleExists):
        await client.scheduler.schedules.add("new", client.task, Every(60))


async def test_a_schedule_is_updated(client: Client) -> None:
    before = await client.scheduler.schedules.get("old")
    client.lose_next_answer()
    updated = await client.scheduler.schedules.update("old", note="new", expected_rev=before.rev)
    assert (updated.note, updated.rev) == ("new", before.rev + 1)


async def test_a_schedule_is_paused_and_resumed(client: Client) -> None:
    client.lose_next_answer()
    assert (await client.scheduler.schedules.pause("old")).state == "paused"
    client.lose_next_answer()
    assert (await client.scheduler.schedules.resume("old")).state == "active"
    assert [fire.decision for fire in await client.scheduler.schedules.fires("old")] in ([], ["gap"])


@pytest.mark.parametrize("before", [False, True], ids=["committed", "not committed"])
async def test_a_schedule_is_removed(client: Client, before: bool) -> None:
    client.lose_next_answer(before=before)
    await client.scheduler.schedules.remove("old")
    with pytest.raises(ScheduleNotFound):
        await client.scheduler.schedules.remove("old")


async def test_schedules_with_a_tag_are_removed_and_counted(client: Client) -> None:
    for id in "ab":
        await client.scheduler.schedules.add(id, client.task, Every(60), tags=["t"])
    client.lose_next_answer()
    assert await client.scheduler.schedules.remove_where(tag="t") == 2


async def test_a_schedule_is_fired_once_by_hand(client: Client) -> None:
    client.lose_next_answer()
    fire = await client.scheduler.schedules.fire_now("old")
    assert fire.decision == "started"
    assert list(await client.scheduler.schedules.fires("old")) == [fire]
    assert await client.scheduler.jobs.count(schedule_id="old") == 1


@pytest.mark.parametrize("before", [False, True], ids=["committed", "not committed"])
@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
async def test_a_backfill_returns_its_fires(client: Client, before: bool, again: bool) -> None:
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    span = hour - timedelta(hours=3), hour
    client.lose_next_answer(before=before)
    fires = await client.scheduler.schedules.backfill("old", *span, again=again)
    assert len(fires) == 3
    assert {fire.job_id for fire in fires} == {job.id for job in await client.scheduler.jobs.list(schedule_id="old")}
    assert len(await client.scheduler.schedules.backfill("old", *span, again=again)) == (3 if again else 0)


@pytest.mark.parametrize("before", [False, True], ids=["committed", "not committed"])
async def test_an_ended_job_is_retried(client: Client, before: bool) -> None:
    job = await client.ended_job()
    client.lose_next_answer(before=before)
    assert (await client.scheduler.jobs.retry(job.id)).state == "queued"
    with pytest.raises(JobExists):
        await client.scheduler.jobs.retry(job.id)


async def test_a_retried_job_that_has_ended_again_is_not_queued_a_second_time(client: Client) -> None:
    """The second try may come after the job was started and has ended."""
    database, job = client.scheduler._running().database, await client.ended_job()
    client.lose_next_answer()
    tries = 0

    def retry(tx: Tx) -> int | None:
        nonlocal tries
        tries += 1
        if tries == 2:
            control.cancel(tx, [job.id])
        return control.retry(tx, job.id)

    assert await database.write(retry) is not None
    assert tries == 2
    assert (await client.scheduler.jobs.get(job.id)).state == "cancelled"


@pytest.mark.parametrize("before", [False, True], ids=["committed", "not committed"])
async def test_an_ended_job_is_deleted(client: Client, before: bool) -> None:
    job = await client.ended_job()
    client.lose_next_answer(before=before)
    await client.scheduler.jobs.delete(job.id)
    with pytest.raises(JobNotFound):
        await client.scheduler.jobs.delete(job.id)


async def test_a_job_is_cancelled(client: Client) -> None:
    job = await client.task.enqueue()
    client.lose_next_answer()
    assert (await client.scheduler.jobs.cancel(job.id)).state == "cancelled"


async def test_jobs_are_stored_once(client: Client) -> None:
    client.lose_next_answer()
    stored = await client.task.enqueue_many([()] * 3)
    assert {job.id for job in stored} == {job.id for job in await client.scheduler.jobs.list()}


async def test_a_job_that_has_not_ended_is_neither_retried_nor_deleted(client: Client) -> None:
    """The refusal is an answer too, and a COMMIT without an answer does not turn it into a success."""
    job = await client.task.enqueue()
    client.lose_next_answer()
    with pytest.raises(JobExists):
        await client.scheduler.jobs.retry(job.id)
    client.lose_next_answer()
    with pytest.raises(JobExists):
        await client.scheduler.jobs.delete(job.id)
