"""`NotStarted` names the reason: no lifespan, a mounted app, a scheduler made twice, a router that is not included."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from fastapi import FastAPI
from onebeat import NoTasks, NotStarted, Scheduler, SchedulerIdle, TaskRouter, install
from tests.scheduler.arrange import scheduler_on


def app_with(scheduler: Scheduler) -> FastAPI:
    """An app whose one route enqueues a task of the scheduler, installed as the README shows."""
    app = FastAPI()
    install(app, scheduler)

    @scheduler.task
    async def greet() -> None: ...

    @app.post("/greet")
    async def ask() -> str:
        return str((await greet.enqueue()).id)

    @app.post("/sync")
    def ask_sync() -> str:
        return str(greet.enqueue_sync().id)

    @app.post("/list")
    async def jobs() -> int:
        return len(await scheduler.jobs.list())

    return app


@pytest.mark.parametrize("path", ["/greet", "/sync", "/list"])
def test_a_test_client_without_lifespan_is_named(path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scheduler = scheduler_on(tmp_path)
    idle: list[SchedulerIdle] = []
    scheduler.on(SchedulerIdle)(idle.append)
    client = TestClient(app_with(scheduler))
    for _ in range(2):
        with pytest.raises(NotStarted, match="its lifespan has not run") as caught:
            client.post(path)
    words = str(caught.value)
    assert "with TestClient(app)" in words
    assert "--lifespan off" in words
    assert repr(scheduler) in words
    assert len(idle) == 1, "said once, not with each request"
    assert [record.levelname for record in caplog.records if "lifespan has not run" in record.message] == ["WARNING"]


def test_a_client_that_runs_the_lifespan_hears_nothing_of_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scheduler = scheduler_on(tmp_path)
    with TestClient(app_with(scheduler)) as client:
        assert client.post("/greet").status_code == 200
    assert "lifespan" not in caplog.text


def test_a_mounted_app_is_named(tmp_path: Path) -> None:
    """Starlette runs the lifespan of the outer app alone."""
    whole = FastAPI()
    whole.mount("/inner", app_with(scheduler_on(tmp_path)))
    with TestClient(whole) as client, pytest.raises(NotStarted, match=r"install\(outer_app, scheduler\)") as caught:
        client.post("/inner/greet")
    assert "mounted" in str(caught.value)


def test_the_outer_app_starts_the_scheduler_of_a_mounted_one(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)
    inner, outer = app_with(scheduler), FastAPI()
    outer.mount("/inner", inner)
    install(outer, scheduler)
    with TestClient(outer) as client:
        assert client.post("/inner/greet").status_code == 200


async def test_an_installed_scheduler_that_nothing_serves_yet_is_named(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)
    install(FastAPI(), scheduler)
    with pytest.raises(NotStarted, match="the lifespan of that app has not run") as caught:
        await scheduler.jobs.list()
    assert "with TestClient(app)" in str(caught.value)


async def test_a_stopped_scheduler_is_named(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)
    async with scheduler:
        pass
    with pytest.raises(NotStarted, match="has been stopped"):
        await scheduler.jobs.list()


async def test_a_second_scheduler_is_named_at_the_start_and_at_the_enqueue(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a circular import makes it: the routes' module declares its tasks on another object than the one served."""
    served, imported = scheduler_on(tmp_path, app="shop"), scheduler_on(tmp_path, app="shop")
    empty: list[NoTasks] = []
    served.on(NoTasks)(empty.append)

    @imported.task
    async def on_the_imported_one() -> None: ...

    async with served:
        with pytest.raises(NotStarted, match="circular import") as caught:
            await on_the_imported_one.enqueue()
    assert repr(served) in str(caught.value)
    assert repr(imported) in str(caught.value)
    assert len(empty) == 1
    assert repr(imported) in empty[0].others
    [warning] = [record for record in caplog.records if "starts with 0 tasks" in record.message]
    assert warning.levelno == logging.WARNING
    assert repr(imported) in warning.message


async def test_a_client_or_a_scheduler_with_tasks_starts_without_that_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with scheduler_on(tmp_path, role="client"):
        pass
    scheduler = scheduler_on(tmp_path)
    scheduler.task(test_a_stopped_scheduler_is_named, name="any")
    async with scheduler:
        pass
    assert "0 tasks" not in caplog.text


async def test_a_router_that_no_scheduler_includes_is_named(tmp_path: Path) -> None:
    router = TaskRouter()

    @router.task
    async def alone() -> None: ...

    async with scheduler_on(tmp_path) as scheduler:
        with pytest.raises(NotStarted, match=r"scheduler\.include\(router\)") as caught:
            await alone.enqueue()
    assert f"{scheduler!r} runs without it" in str(caught.value)
