"""`Depends` in tasks: what a route resolves, a job resolves too, and it is closed however the job ends.

Annotations are not text here, as many name something that is local to its test.
"""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import anyio
import pytest
from fastapi.security import OAuth2PasswordBearer

from fastapi import (
    BackgroundTasks,
    Body,
    Cookie,
    Depends,
    FastAPI,
    Header,
    Query,
    Request,
    Response,
    Security,
    WebSocket,
)
from onebeat import ConfigurationError, JobContext, Retry, TaskRouter, current_job, install
from onebeat.engine import attempt
from onebeat.model.job import JobState
from tests.fastapi.graph import both
from tests.scheduler.arrange import scheduler_on
from tests.support.databases import waits_until

ROOT = Path(__file__).resolve().parent.parent.parent
ONCE = Retry(attempts=1)
log: list[str] = []


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    log.clear()


# ── the same as in a route ────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_graph_gives_the_same_in_a_route_and_in_a_job(tmp_path: Path) -> None:
    routes, jobs = await both(f"sqlite:///{tmp_path / 'app.db'}")
    assert jobs == routes
    assert len(routes["everything"][1]) == 18  # of each kind one was made, and what yields was closed


@pytest.mark.campaign  # the installed FastAPI: test_a_graph_gives_the_same_in_a_route_and_in_a_job
@pytest.mark.timeout(300)
@pytest.mark.parametrize("version", ["0.115.0", "0.121.0", "0.140.0"])  # the oldest, and two that changed the solver
def test_a_graph_gives_the_same_on_older_versions_of_fastapi(version: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    own = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, env=environment)
    install_ = [own, "-m", "pip", "install", "-qq", f"fastapi=={version}", "httpx", str(ROOT)]
    subprocess.run(install_, check=True, env=environment)
    paths = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    run = [own, "-m", "tests.fastapi.graph"]
    done = subprocess.run(run, env=environment | paths, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert f'"fastapi": "{version}"' in done.stdout


# ── closing ───────────────────────────────────────────────────────────────────────────────────────────────────────────
async def resource() -> AsyncIterator[str]:
    log.append("open")
    try:
        yield "resource"
    finally:
        await asyncio.sleep(0.01)  # a clean-up that a cancel could break off
        log.append("closed")


def resource_in_a_thread() -> Iterator[str]:
    log.append("open")
    try:
        yield "resource"
    finally:
        log.append("closed")


Resource = Annotated[str, Depends(resource)]
ThreadResource = Annotated[str, Depends(resource_in_a_thread)]


async def sleeping(resource: Resource, other: ThreadResource) -> None:
    log.append("runs")
    await asyncio.sleep(60)


def waiting(resource: Resource, other: ThreadResource, job: JobContext) -> None:
    log.append("runs")
    while not job.cancelled:
        time.sleep(0.005)
    job.checkpoint()


@pytest.mark.parametrize("function", [sleeping, waiting])
@pytest.mark.parametrize("end", ["timeout", "cancel", "drain", "lost"])
async def test_dependencies_are_closed_when_a_job_is_told_to_end(
    end: str, function: Callable[..., Any], tmp_path: Path
) -> None:
    scheduler = scheduler_on(tmp_path, drain=0.1)
    task = scheduler.task(retry=ONCE, timeout=0.3 if end == "timeout" else 60)(function)
    async with scheduler:
        job = await task.enqueue()
        await waits_until(lambda: "runs" in log, 10)
        if end == "timeout":
            assert (await job.wait(10)).error == "TimeoutError: ran longer than its timeout of 0.3 s"
        elif end == "cancel":
            await job.cancel()
            assert (await job.wait(10)).state is JobState.CANCELLED
        elif end == "lost":
            worker = scheduler._runtime.worker  # type: ignore[union-attr]  # it runs
            assert worker is not None
            worker.executor.stop("lost")
            await waits_until(lambda: worker.executor.idle, 10)
    assert log == ["open", "open", "runs", "closed", "closed"]


async def test_a_cancel_while_a_thread_opens_something_closes_it_too(tmp_path: Path) -> None:
    let_go = threading.Event()

    def slow() -> Iterator[None]:
        log.append("opening")
        let_go.wait(10)
        try:
            yield
        finally:
            log.append("closed")

    scheduler = scheduler_on(tmp_path)

    @scheduler.task(name="slow", retry=ONCE)
    async def task(slow: None = Depends(slow)) -> None:
        log.append("runs")

    async with scheduler:
        job = await task.enqueue()
        await waits_until(lambda: "opening" in log, 10)
        await job.cancel()
        await asyncio.sleep(0.05)  # the cancel has come; the thread has not returned
        assert log == ["opening"]
        let_go.set()
        assert (await job.wait(10)).state is JobState.CANCELLED
    assert log == ["opening", "closed"]


async def test_a_second_order_to_end_does_not_break_off_the_clean_up(tmp_path: Path) -> None:
    cleaning, go_on = asyncio.Event(), asyncio.Event()

    async def careful() -> AsyncIterator[None]:
        try:
            yield
        finally:
            cleaning.set()
            await go_on.wait()
            log.append("closed")

    scheduler = scheduler_on(tmp_path)

    @scheduler.task(name="careful", retry=ONCE)
    async def task(careful: None = Depends(careful)) -> None:
        await asyncio.sleep(60)

    async with scheduler:
        job = await task.enqueue()
        worker = scheduler._runtime.worker  # type: ignore[union-attr]  # it runs
        assert worker is not None
        await waits_until(lambda: bool(worker.executor.running), 10)
        await asyncio.sleep(0.05)
        await job.cancel()
        await asyncio.wait_for(cleaning.wait(), 10)
        worker.executor.stop("cancel")
        worker.executor.stop("drain")
        await asyncio.sleep(0.02)
        go_on.set()
        assert (await job.wait(10)).state is JobState.CANCELLED
    assert log == ["closed"]


async def test_a_clean_up_that_fails_or_never_ends_fails_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "CLEAN_UP", 0.05)

    async def failing() -> AsyncIterator[None]:
        yield
        raise ValueError("the commit failed")

    async def endless() -> AsyncIterator[None]:
        yield
        await asyncio.sleep(60)

    scheduler = scheduler_on(tmp_path)

    @scheduler.task(retry=ONCE)
    async def fails(what: None = Depends(failing)) -> str:
        return "done"

    @scheduler.task(retry=ONCE)
    async def hangs(what: None = Depends(endless)) -> str:
        return "done"

    async with scheduler:
        ended = [await (await task.enqueue()).wait(10) for task in (fails, hangs)]
    assert [job.state for job in ended] == [JobState.FAILED, JobState.FAILED]
    assert [job.error for job in ended] == [
        "ValueError: the commit failed",
        "TimeoutError: the clean-up of its dependencies took longer than 10 s",
    ]


async def test_what_a_job_returns_is_stored_before_its_session_is_closed(tmp_path: Path) -> None:
    class Row:
        def __init__(self) -> None:
            self.is_open = True

    async def row() -> AsyncIterator[Row]:
        row = Row()
        yield row
        row.is_open = False

    scheduler = scheduler_on(tmp_path)

    @scheduler.task
    async def read(row: Annotated[Row, Depends(row)] = None) -> Any:  # type: ignore[assignment]  # never None
        return vars(row)

    async with scheduler:
        assert await (await read.enqueue()).result(10) == {"is_open": True}


async def test_a_timeout_counts_from_the_start_of_the_dependencies(tmp_path: Path) -> None:
    async def slow() -> None:
        await asyncio.sleep(60)

    scheduler = scheduler_on(tmp_path)

    @scheduler.task(timeout=0.1, retry=ONCE)
    async def on_the_loop(slow: None = Depends(slow)) -> None: ...

    @scheduler.task(timeout=0.1, retry=ONCE)
    def in_a_thread(slow: None = Depends(slow)) -> None: ...

    async with scheduler:
        for task in (on_the_loop, in_a_thread):
            ended = await (await task.enqueue()).wait(10)
            assert ended.error == "TimeoutError: ran longer than its timeout of 0.1 s"


async def test_a_dependency_may_hold_a_scope_of_anyio_open(tmp_path: Path) -> None:
    async def group() -> AsyncIterator[Any]:
        async with anyio.create_task_group() as group:
            yield group
            log.append("waits")
        log.append("closed")

    scheduler = scheduler_on(tmp_path)

    async def child() -> None:
        await asyncio.sleep(0.02)
        log.append("child")

    @scheduler.task(retry=ONCE)
    async def parent(group: Any = Depends(group), after: str = Depends(resource)) -> None:
        group.start_soon(child)

    async with scheduler:
        assert (await (await parent.enqueue()).wait(10)).error is None
    assert log == ["open", "closed", "waits", "child", "closed"]


# ── what a dependency may ask for ─────────────────────────────────────────────────────────────────────────────────────
async def test_a_dependency_receives_the_job_context_and_arguments_are_restored(tmp_path: Path) -> None:
    async def who(job: JobContext) -> str:
        assert current_job() is job
        return f"{job.task} {job.attempt}"

    scheduler = scheduler_on(tmp_path)

    @scheduler.task
    def report(who: Annotated[str, Depends(who)], job: JobContext, customer: int, *, note: str = "") -> list[Any]:
        return [who, job.attempt, customer, note]

    async with scheduler:
        job = await report.enqueue(7, note="x")  # type: ignore[call-arg,arg-type]  # a form that checkers cannot read
        assert await job.result(10) == ["report 1", 1, 7, "x"]


async def test_overrides_are_those_of_the_installed_app_at_each_run(tmp_path: Path) -> None:
    async def real() -> str:
        return "real"

    async def needs_a_request(request: Request) -> str:
        return "never"

    app, scheduler = FastAPI(), scheduler_on(tmp_path)
    install(app, scheduler, watchdog=False)

    @scheduler.task(retry=ONCE)
    async def which(what: str = Depends(real)) -> str:
        return what

    async with app.router.lifespan_context(app):
        assert await (await which.enqueue()).result(10) == "real"
        app.dependency_overrides[real] = lambda: "first"
        assert await (await which.enqueue()).result(10) == "first"
        app.dependency_overrides[real] = lambda: "second"
        assert await (await which.enqueue()).result(10) == "second"
        app.dependency_overrides[real] = needs_a_request
        error = (await (await which.enqueue()).wait(10)).error or ""
        assert "'which'" in error
        assert "overridden with needs_a_request" in error
        app.dependency_overrides.clear()
        assert await (await which.enqueue()).result(10) == "real"


async def test_max_concurrency_limits_jobs_as_it_limits_requests(tmp_path: Path) -> None:
    inside: list[int] = []
    most = 0

    async def scarce() -> AsyncIterator[None]:
        nonlocal most
        inside.append(1)
        most = max(most, len(inside))
        yield
        await asyncio.sleep(0.01)
        inside.pop()

    scheduler = scheduler_on(tmp_path)

    @scheduler.task
    async def use(scarce: None = Depends(scarce, max_concurrency=2)) -> None: ...

    async with scheduler:
        for job in await use.enqueue_many([()] * 6):
            assert (await job.wait(10)).state is JobState.SUCCEEDED
    assert most == 2


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────────
def from_request(request: Request) -> None: ...
def from_socket(socket: WebSocket) -> None: ...
def from_response(response: Response) -> None: ...
def from_background(later: BackgroundTasks) -> None: ...
def from_query(q: str) -> None: ...
def from_marked_query(q: Annotated[int, Query()] = 3) -> None: ...
def from_header(agent: str = Header("none")) -> None: ...
def from_cookie(session: Annotated[str, Cookie()] = "") -> None: ...
def from_body(order: Annotated[dict[str, int], Body()]) -> None: ...
def from_nothing(client: threading.Thread) -> None: ...
def nested(inner: Annotated[None, Depends(from_request)]) -> None: ...


REFUSED = [
    (from_request, "'request' is the Request"),
    (from_socket, "'socket' is the WebSocket"),
    (from_response, "'response' is the Response"),
    (from_background, "'later' is BackgroundTasks"),
    (from_query, "'q' is a query parameter"),
    (from_marked_query, "'q' is a query parameter"),
    (from_header, "'agent' is a header"),
    (from_cookie, "'session' is a cookie"),
    (from_body, "'order' is the body"),
    (from_nothing, "'client' no dependency provides"),
    (nested, "whose parameter 'inner' depends on from_request, whose parameter 'request' is the Request"),
    (OAuth2PasswordBearer("token"), "depends on OAuth2PasswordBearer, whose parameter 'request' is the "),
]


@pytest.mark.parametrize(("dependency", "words"), REFUSED, ids=lambda one: getattr(one, "__name__", ""))
async def test_a_dependency_that_needs_a_request_is_refused_at_start(
    dependency: Any, words: str, tmp_path: Path
) -> None:
    scheduler = scheduler_on(tmp_path)

    @scheduler.task(name="send")
    async def send(user_id: int, what: None = Security(dependency)) -> None: ...

    with pytest.raises(ConfigurationError) as caught:
        await scheduler.start()
    assert "task 'send': its parameter 'what' depends on" in str(caught.value)
    assert words in str(caught.value)


async def test_a_parameter_with_a_plain_default_keeps_it(tmp_path: Path) -> None:
    def sized(limit: int = 3, request: Request = None) -> Any:  # type: ignore[assignment]  # as some write it
        return [limit, request]

    scheduler = scheduler_on(tmp_path)

    @scheduler.task
    async def read(sized: Any = Depends(sized)) -> Any:
        return sized

    async with scheduler:
        assert await (await read.enqueue()).result(10) == [3, None]


def real(name: str, what: None = Depends(resource)) -> None: ...


Alias = Annotated[str, Depends(resource)]


def aliased(what: "Alias") -> None: ...


@pytest.mark.parametrize("function", [real, aliased])  # the text says nothing by itself
def test_a_child_process_cannot_be_given_what_depends_makes(function: Callable[..., None]) -> None:
    with pytest.raises(ConfigurationError, match=r"'what'.*run_in='process'"):
        TaskRouter().task(function, run_in="process")


def test_what_onebeat_passes_is_passed_by_name() -> None:
    def positional(what: Annotated[str, Depends(resource)], /) -> None: ...

    def variadic(what: Annotated[str, Depends(resource)], *numbers: int) -> None: ...

    def context(job: JobContext, *numbers: int) -> None: ...

    for function in (positional, variadic, context):
        with pytest.raises(ConfigurationError, match="by name; make it keyword-only"):
            TaskRouter().task(function)
