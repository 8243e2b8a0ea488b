"""install(app): what it wraps, in which order things start and stop, and what it refuses."""

from __future__ import annotations

import asyncio
import inspect
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.applications import Starlette

import onebeat
from fastapi import APIRouter, FastAPI, Request
from onebeat import install
from onebeat.errors import ConfigurationError
from onebeat.fastapi import TrackingId
from onebeat.logs import TrackingFilter
from onebeat.scheduler.integration import Integration
from onebeat.store.connection.database import Database
from onebeat.tracking import TrackingRules
from tests.tracking.asgi import ask

ACTIVE: ContextVar[object] = ContextVar("tests_active", default=None)


class Engine:
    """Stands where the scheduler will: notes what is asked of it."""

    def __init__(self, story: list[str]) -> None:
        self.story = story
        self.started = False
        self.app: Any = None
        self.fails = False

    async def start(self) -> None:
        if self.started:
            raise ConfigurationError("running already")
        if self.fails:
            raise ConfigurationError("no database")
        self.started = True
        self.story.append("engine up")

    async def stop(self) -> None:
        self.started = False
        self.story.append("engine down")

    def bind_app(self, app: Any) -> None:
        self.app = app

    def served_idle(self, *, mounted: bool) -> None:
        self.story.append("served while it does not run")

    @contextmanager
    def activate(self) -> Iterator[None]:
        token = ACTIVE.set(self)
        yield
        ACTIVE.reset(token)

    def new_database(self) -> Database:
        raise NotImplementedError

    def __onebeat_integration__(self) -> Integration:
        return self

    @asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        await self.start()
        yield
        await self.stop()


def app_with(story: list[str], name: str = "user") -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[dict[str, str]]:
        story.append(f"{name} up")
        yield {"made": "at startup"}
        story.append(f"{name} down")

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def home(request: Request) -> Any:
        return {"made": getattr(request.state, "made", None), "active": ACTIVE.get() is not None}

    return app


def test_the_engine_runs_inside_the_apps_own_lifespan_and_its_state_is_kept() -> None:
    story: list[str] = []
    app, engine = app_with(story), Engine(story)
    install(app, engine)
    assert engine.app is app
    for _ in range(2):  # also a second time
        with TestClient(app) as client:
            story.append("serving")
            assert client.get("/").json() == {"made": "at startup", "active": True}
            assert ACTIVE.get() is None
    assert story == ["user up", "engine up", "serving", "engine down", "user down"] * 2


def test_a_router_included_after_install_is_up_before_the_engine_too() -> None:
    story: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        story.append("router up")
        yield
        story.append("router down")

    app = app_with(story)
    install(app, Engine(story))
    app.include_router(APIRouter(lifespan=lifespan))
    with TestClient(app) as client:
        assert client.get("/").json()["made"] == "at startup"
    assert story == ["user up", "router up", "engine up", "engine down", "router down", "user down"]


def test_a_lifespan_put_in_place_after_install_is_wrapped_as_well() -> None:
    story: list[str] = []
    app = FastAPI()
    install(app, Engine(story))
    former = app.router.lifespan_context

    @asynccontextmanager
    async def wider(app: Any) -> AsyncIterator[Any]:
        story.append("wider up")
        async with former(app) as state:
            yield state
        story.append("wider down")

    app.router.lifespan_context = wider
    with TestClient(app):
        pass
    assert story == ["wider up", "engine up", "engine down", "wider down"]


@pytest.mark.parametrize("way", ["is the app's", "is inside the app's", "is a router's"])
def test_where_the_app_starts_the_engine_itself_install_does_not(way: str) -> None:
    story: list[str] = []
    engine = Engine(story)

    @asynccontextmanager
    async def around(app: Any) -> AsyncIterator[None]:
        async with engine.lifespan(app):
            yield

    app = FastAPI(lifespan={"is the app's": engine.lifespan, "is inside the app's": around}.get(way))
    if way == "is a router's":
        app.include_router(APIRouter(lifespan=engine.lifespan))
    install(app, engine)
    with TestClient(app):
        assert story == ["engine up"]
    assert story == ["engine up", "engine down"]


def test_an_engine_that_does_not_start_lets_the_user_shut_down_and_says_why() -> None:
    story: list[str] = []
    app, engine = app_with(story), Engine(story)
    engine.fails = True
    install(app, engine)

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        try:
            yield
        finally:
            story.append("cleaned up")

    app.router.lifespan_context = lifespan
    with pytest.raises(ConfigurationError, match="no database"), TestClient(app):
        story.append("never")
    assert story == ["cleaned up"]


async def test_the_lifespan_can_be_entered_without_a_server() -> None:
    story: list[str] = []
    app = app_with(story)
    install(app, Engine(story))
    async with app.router.lifespan_context(app) as state:
        assert state == {"made": "at startup"}
        assert story == ["user up", "engine up"]
    await asyncio.sleep(0)
    assert story[2:] == ["engine down", "user down"]


def test_the_app_stays_what_it_was() -> None:
    class Shop(FastAPI):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            scope["through"] = True
            await super().__call__(scope, receive, send)

    app = Shop()
    install(app)
    assert isinstance(app, Shop)
    assert type(app).__name__ == "Shop"
    assert inspect.iscoroutinefunction(app.__call__)
    assert isinstance(app.router, APIRouter)


def test_a_plain_starlette_application_is_served_too() -> None:
    app = Starlette()
    install(app)
    with TestClient(app) as client:
        assert len(client.get("/nothing").headers.get_list("x-request-id")) == 1


def test_installing_twice_is_refused() -> None:
    app = FastAPI()
    install(app)
    with pytest.raises(ConfigurationError, match="already"):
        install(app, Engine([]))
    install(FastAPI())


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="TrackingMiddleware"):
        install(lambda scope, receive, send: None)  # type: ignore[arg-type]  # that it is refused is what is tested
    with pytest.raises(ConfigurationError, match=r"takes a onebeat\.Scheduler, not str"):
        install(FastAPI(), "sqlite:///app.db")  # type: ignore[arg-type]  # that it is refused is what is tested
    app = FastAPI()
    with TestClient(app) as client:
        client.get("/")
    with pytest.raises(ConfigurationError, match="serves already"):
        install(app)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"watchdog": "x"}, "watchdog=…"),
        ({"watchdog": -1}, "watchdog=…"),
        ({"tracking": {"header": "X-Id"}}, "tracking=…"),
        ({"logs": "logs"}, "logs=…"),
    ],
)
def test_an_option_that_cannot_work_is_refused_and_the_app_is_as_before(options: dict[str, Any], words: str) -> None:
    app = FastAPI()
    with pytest.raises(ConfigurationError, match=words):
        install(app, **options)
    install(app)


async def test_without_tracking_requests_are_left_alone() -> None:
    story: list[str] = []
    app = app_with(story)
    install(app, Engine(story), tracking=False)
    with TestClient(app) as client:
        response = client.get("/")
    assert "x-request-id" not in response.headers
    assert response.json()["active"] is True
    assert "engine up" in story


async def test_rules_are_given_to_install() -> None:
    app = FastAPI()
    install(app, tracking=TrackingRules(header="X-Correlation-ID", accept="never"))
    reply = await ask(app, [(b"x-request-id", b"theirs")])
    assert reply.values() == []
    assert len(reply.values(b"x-correlation-id")) == 1


def test_a_dependency_without_install_says_what_is_missing() -> None:
    app = FastAPI()

    @app.get("/")
    async def home(id: TrackingId) -> str:
        return id

    with TestClient(app) as client, pytest.raises(ConfigurationError, match=r"install\(app\)"):
        client.get("/")


def test_the_root_handlers_get_the_filter_once_those_added_later_at_startup() -> None:
    root = logging.getLogger()
    handlers = [logging.NullHandler(), logging.NullHandler()]
    root.addHandler(handlers[0])
    try:
        app = FastAPI()
        install(app)
        root.addHandler(handlers[1])
        for _ in range(2):
            with TestClient(app):
                pass
        for handler in handlers:
            assert [type(one) for one in handler.filters] == [TrackingFilter]
    finally:
        for handler in handlers:
            root.removeHandler(handler)


def test_install_is_found_in_the_root_package_and_does_no_io() -> None:
    assert onebeat.install is install
    code = (
        "import socket, threading, sys\n"
        "def refuse(event, args):\n"
        "    if event.startswith(('socket.', 'sqlite3.', 'subprocess.')): raise SystemExit(event)\n"
        "from fastapi import FastAPI; from onebeat import install\n"
        "app = FastAPI(); sys.addaudithook(refuse); install(app)\n"
        "print(threading.active_count(), 'sqlalchemy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1 False"
