"""A database server that is absent, goes away, refuses the login or is full: typed errors, and nothing is lost."""

from __future__ import annotations

import asyncio
import logging
import traceback
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import make_url

from onebeat import DatabaseUnavailable, JobInfo, Scheduler
from onebeat.model.events import DatabaseTrouble
from onebeat.store.tx import Tx
from tests.conftest import SERVERS
from tests.scheduler.arrange import do_nothing, scheduler_on
from tests.support.databases import waits_until
from tests.support.proxy import Proxy
from tests.support.servers import free_port

SERVER_KINDS = [kind for kind in SERVERS if kind in ("postgresql", "mariadb")]


@pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
async def test_an_unreachable_server_is_reported_after_start_timeout_without_the_password(
    scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = f"{scheme}://shop:very-secret@127.0.0.1:{free_port()}/shop"
    started = asyncio.get_running_loop().time()
    with pytest.raises(DatabaseUnavailable) as caught:
        await Scheduler(url, start_timeout=1).start()
    assert 0.3 <= asyncio.get_running_loop().time() - started < 30, "it tries again for a while, and not for ever"
    assert "very-secret" not in everything_of(caught.value) + caplog.text
    assert "127.0.0.1" in str(caught.value)


def everything_of(error: BaseException) -> str:
    """What a log would hold of it: the traceback with all causes."""
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize("database_kind", SERVER_KINDS)
async def test_a_server_that_goes_away_and_comes_back_loses_nothing(database_url: str) -> None:
    proxy = Proxy(database_url)
    await proxy.start()
    scheduler = Scheduler(proxy.url, poll=0.2, start_timeout=10)
    task = scheduler.task(name="mail")(do_nothing)
    async with scheduler:
        later = await task.options(delay=1).enqueue()
        proxy.refuse = True
        proxy.cut()
        with pytest.raises(DatabaseUnavailable) as caught:
            await task.enqueue()
        assert str(make_url(database_url).database) in str(caught.value)
        assert not (await scheduler.health()).ok
        proxy.refuse = False
        assert (await _answered(scheduler, later.id)).state == "succeeded", "the engine went on by itself"
        assert (await (await task.enqueue()).wait(30)).state == "succeeded"
        assert len(await scheduler.jobs.list()) == 2, "what was refused was not stored"
    await proxy.close()


@pytest.mark.parametrize("database_kind", SERVER_KINDS)
async def test_a_refused_login_is_said_at_once_without_the_password(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = make_url(database_url).set(username="onebeat_nobody", password="very-secret")
    with pytest.raises(DatabaseUnavailable) as caught:
        await Scheduler(url.render_as_string(hide_password=False), start_timeout=60).start()
    assert caught.value.reason == "login"
    assert "very-secret" not in everything_of(caught.value) + caplog.text


async def test_a_disk_that_is_full_holds_the_work_up_and_loses_none(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path, poll=0.1)
    running, go = asyncio.Event(), asyncio.Event()

    @scheduler.task(name="work")
    async def work(load: str) -> str:
        running.set()
        await go.wait()
        return "v" * 20_000

    def room(tx: Tx, pages: int) -> None:
        present = tx.connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        tx.connection.exec_driver_sql(f"PRAGMA max_page_count = {present + pages}")

    async with scheduler:
        job = await work.enqueue("first")
        await running.wait()
        troubles: list[DatabaseTrouble] = []
        scheduler.on(DatabaseTrouble)(troubles.append)
        await scheduler._running().database.write(room, 2)
        with pytest.raises(DatabaseUnavailable, match="no room left") as caught:
            await work.enqueue("y" * 30_000)
        assert caught.value.reason == "full"
        go.set()
        await waits_until(lambda: [trouble for trouble in troubles if trouble.part == "settler"] != [])
        assert (await job.refresh()).state == "running", "its end is not written yet, and not forgotten"
        await scheduler._running().database.write(room, 10_000)
        assert len(await job.result(30)) == 20_000
        assert await scheduler.jobs.count() == 1, "what was refused was not stored"


async def _answered(scheduler: Scheduler, job_id: UUID) -> JobInfo:
    """Wait for a job although the database may still be away."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await scheduler.jobs.wait(job_id, 30)
            except DatabaseUnavailable:
                await asyncio.sleep(0.05)  # the pause of a client that asks again
