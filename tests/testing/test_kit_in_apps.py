"""TestScheduler beside an application, and on the database of the application."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from fastapi import FastAPI
from onebeat import Every, JobContext, Scheduler, install
from onebeat.tasks.current_scheduler import activate
from onebeat.testing import TestScheduler
from onebeat.tracking import tracking_id


def an_app(database: str = "postgresql://nobody@localhost:1/nothing") -> tuple[FastAPI, Scheduler]:
    app, scheduler = FastAPI(), Scheduler(database, timezone="Europe/Berlin")
    install(app, scheduler)

    @scheduler.task
    async def send(user_id: int) -> str | None:
        return tracking_id()

    @app.post("/users/{user_id}/mail")
    async def ask(user_id: int) -> dict[str, Any]:
        job = await send.options(delay=60).enqueue(user_id)
        return {"id": str(job.id)}

    @app.post("/users/{user_id}/mail/now")
    async def ask_now(user_id: int) -> dict[str, Any]:
        async with scheduler.lock(f"user-{user_id}", wait=0):
            return {"value": await (await send.enqueue(user_id)).result(timeout=10)}

    @app.post("/users/{user_id}/mail/sync")
    def ask_sync(user_id: int) -> dict[str, Any]:
        return {"id": str(send.enqueue_sync(user_id).id)}

    return app, scheduler


def test_a_test_client_beside_it_starts_no_second_engine() -> None:
    app, scheduler = an_app()
    with TestScheduler(scheduler, now="2026-01-01T00:00:00+00:00") as beat, TestClient(app) as client:
        assert len(beat.workers) == 1
        client.post("/users/7/mail", headers={"X-Request-ID": "request-7"})
        beat.run_until_idle()
        assert beat.assert_enqueued("send", user_id=7).state == "scheduled"
        beat.advance(minutes=1)
        done = beat.assert_enqueued("send", user_id=7)
        assert (done.state, done.value, done.tracking_id) == ("succeeded", "request-7", "request-7")
        assert client.post("/users/8/mail/now", headers={"X-Request-ID": "request-8"}).json() == {"value": "request-8"}
        client.post("/users/9/mail/sync")
        beat.assert_enqueued("send", user_id=9)
    with TestScheduler(scheduler) as beat:
        assert beat.enqueued("send") == [], "each has a database of its own"


async def test_a_test_client_in_an_asynchronous_test_cannot_wait_for_itself() -> None:
    """It blocks the event loop of the test; the engine and its jobs have another one."""
    app, scheduler = an_app()
    async with TestScheduler(scheduler) as beat:
        with TestClient(app) as client:
            assert client.post("/users/1/mail/now", headers={"X-Request-ID": "request-1"}).json() == {
                "value": "request-1"
            }
        await beat.run_until_idle()


async def test_an_asynchronous_client_beside_it() -> None:
    app, scheduler = an_app()
    transport = httpx.ASGITransport(app)
    async with TestScheduler(scheduler) as beat, httpx.AsyncClient(transport=transport, base_url="http://shop") as web:
        await web.post("/users/7/mail")
        beat.assert_enqueued("send", user_id=7)
        await beat.advance(minutes=1)
        assert beat.assert_enqueued("send", 7).state == "succeeded"
        assert (await web.post("/users/8/mail/now")).status_code == 200


async def test_the_own_database_of_an_application_in_virtual_time(database_url: str) -> None:
    _, scheduler = an_app(database_url)
    runs: list[int] = []

    async with TestScheduler(scheduler, now="2026-01-01T00:00:00+00:00", database="own", workers=2) as beat:

        @scheduler.task(name="poll")
        async def poll(context: JobContext) -> None:
            runs.append(context.attempt)
            if len(runs) == 1:
                beat.crash()

        await scheduler.schedules.add("poll", poll, Every(hours=1))
        await beat.advance(hours=1)
        assert runs == [1]
        await beat.advance(minutes=3)
        assert runs == [1, 2]
        await beat.advance(hours=5)
        assert [fire.decision for fire in beat.fired("poll")] == ["started"] * 6
        assert len(beat.enqueued(poll)) == len(runs) - 1 == 6
        job = await asyncio.to_thread(poll.enqueue_sync)
        assert (await job.wait(10)).state == "succeeded"
    async with scheduler:
        assert await scheduler.jobs.count(state="succeeded") == 7


async def test_what_others_wrote_to_the_own_database_is_found(tmp_path: Any) -> None:
    _, scheduler = an_app(f"sqlite:///{tmp_path}/app.db")
    _, client = an_app(f"sqlite:///{tmp_path}/app.db")
    async with TestScheduler(scheduler, database="own") as beat:
        client.settings = client.settings.model_copy(update={"role": "client"})
        async with client:
            with activate(client._enqueuer):
                await client.registry.get("send").enqueue(5)
        await beat.run_until_idle()
        assert beat.assert_enqueued("send", user_id=5).state == "succeeded"


async def test_a_real_engine_beside_the_same_file_is_not_disturbed(tmp_path: Any) -> None:
    """In memory, nothing is written to the database that the scheduler names."""
    _, scheduler = an_app(f"sqlite:///{tmp_path}/app.db")
    async with TestScheduler(scheduler) as beat:
        await scheduler.registry.get("send").enqueue(1)
        await beat.run_until_idle()
    assert list(tmp_path.iterdir()) == []


async def test_the_reason_is_told_when_the_client_was_first() -> None:
    app, scheduler = FastAPI(), Scheduler("sqlite://")
    install(app, scheduler)
    with TestClient(app), pytest.raises(Exception, match="enter the TestScheduler before the application starts"):
        async with TestScheduler(scheduler):
            pass
