"""The application that the real-server tests serve: one route for each way a response can come to be."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from fastapi.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware

from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from onebeat import install
from onebeat.fastapi import TrackingId
from onebeat.tracking import TrackingRules, bind, current, tracking_id

log = logging.getLogger("shop")


class Teapot(Exception):
    """Has a handler."""


def make_app(*, logs: Any = False, layered: bool = False, tracking: Any = True, debug: bool = False) -> FastAPI:
    """The application with `install`; `layered` adds two middlewares made with BaseHTTPMiddleware."""
    app = FastAPI(debug=debug)
    add_routes(app)
    add_spread(app)
    add_sockets(app)
    app.add_middleware(CORSMiddleware, allow_origins=["http://shop.example"], expose_headers=["X-Total"])
    if layered:
        for _ in range(2):
            app.add_middleware(BaseHTTPMiddleware, dispatch=_dispatch)
    install(app, tracking=tracking, logs=logs)
    return app


async def _dispatch(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    before = tracking_id()
    response = await call_next(request)
    assert tracking_id() == before == request.state.tracking_id
    return response


def add_routes(app: FastAPI) -> None:
    """Responses of every kind."""

    @app.get("/")
    async def home(id: TrackingId, request: Request) -> dict[str, Any]:
        log.info("home")
        return {
            "dependency": id,
            "context": tracking_id(),
            "state": request.state.tracking_id,
            "header": request.headers.getlist("x-request-id"),
        }

    @app.get("/sync")
    def sync(id: TrackingId) -> dict[str, Any]:
        return {"dependency": id, "context": tracking_id()}

    @app.post("/upload")
    async def upload() -> str:
        log.info("upload answered early")
        return "not read"  # the body outruns the app

    @app.api_route("/status/{code}", methods=["GET", "HEAD"])
    async def status(code: int) -> Response:
        return Response(status_code=code)

    @app.get("/number/{number}")
    async def number(number: int) -> int:
        return number

    @app.get("/redirect")
    async def redirect() -> Response:
        return RedirectResponse("/")

    @app.get("/own")
    async def own() -> Response:
        return JSONResponse({}, headers={"X-Request-ID": "the app's own", "x-request-id": "and again"})

    @app.get("/stream")
    async def stream() -> Response:
        async def parts() -> AsyncIterator[str]:
            for _ in range(3):
                await asyncio.sleep(0)
                yield f"{tracking_id()}\n"

        return StreamingResponse(parts(), background=BackgroundTask(lambda: seen.append(tracking_id())))

    @app.get("/stream-sync")
    def stream_sync() -> Response:
        def parts() -> Iterator[str]:
            for _ in range(3):
                yield f"{tracking_id()}\n"

        return StreamingResponse(parts())

    @app.get("/sse")
    async def sse() -> Response:
        async def events() -> AsyncIterator[str]:
            yield f"data: {tracking_id()}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.get("/endless")
    async def endless() -> Response:
        async def parts() -> AsyncIterator[str]:
            while True:
                await asyncio.sleep(0.01)
                yield "x" * 1000

        return StreamingResponse(parts())

    @app.get("/file")
    async def file() -> Response:
        return FileResponse(__file__)

    @app.get("/boom")
    async def boom() -> None:
        raise RuntimeError("boom")

    @app.get("/late-boom")
    async def late_boom() -> Response:
        async def parts() -> AsyncIterator[str]:
            yield "x"
            raise RuntimeError("late boom")

        return StreamingResponse(parts())

    @app.get("/denied")
    async def denied() -> None:
        raise HTTPException(429, "slowly", headers={"Retry-After": "1"})

    @app.get("/teapot")
    async def teapot() -> None:
        raise Teapot

    @app.exception_handler(Teapot)
    async def on_teapot(request: Request, error: Exception) -> Response:
        return PlainTextResponse(str(tracking_id()), 418)

    @app.get("/pause/{milliseconds}")
    async def pause(milliseconds: int, id: TrackingId) -> dict[str, Any]:
        await asyncio.sleep(milliseconds / 1000)
        return {"id": tracking_id(), "same": tracking_id() == id}

    @app.get("/process")
    async def process() -> int:
        return os.getpid()

    inner = FastAPI()

    @inner.get("/")
    async def mounted() -> str | None:
        return tracking_id()

    other = FastAPI()

    @other.get("/")
    async def mounted_too() -> str | None:
        return tracking_id()

    install(other, tracking=TrackingRules(accept="never"))  # it would make an id of its own
    app.mount("/mounted", inner)
    app.mount("/installed", other)


seen: list[str | None] = []
outlived: set[asyncio.Task[None]] = set()


def sync_dependency() -> Iterator[str | None]:
    """Binds a field in a thread of the pool, and notes the id when it is closed."""
    bind(sync_dependency="was here")
    yield tracking_id()
    seen.append(tracking_id())


async def async_dependency() -> AsyncIterator[str | None]:
    """Notes the id when it is closed."""
    yield tracking_id()
    seen.append(tracking_id())


def add_spread(app: FastAPI) -> None:
    """Where an id can get lost: dependencies, background tasks, tasks that outlive the request."""

    @app.get("/spread")
    async def spread(
        background: BackgroundTasks,
        one: Annotated[str | None, Depends(sync_dependency)],
        two: Annotated[str | None, Depends(async_dependency)],
    ) -> list[str | None]:
        seen.clear()
        outlived.clear()

        def sync_background() -> None:
            seen.append(tracking_id())

        async def background_task() -> None:
            seen.append(tracking_id())

        async def later() -> None:
            unit = current()
            assert unit is not None
            while not unit.closed:
                await asyncio.sleep(0.001)
            seen.append(tracking_id())
            log.info("outlived")

        background.add_task(sync_background)
        background.add_task(background_task)
        task = asyncio.create_task(later())
        outlived.add(task)
        found = asyncio.create_task(asyncio.to_thread(tracking_id))
        return [one, two, await found]

    @app.get("/seen")
    async def what_was_seen() -> list[str | None]:
        await asyncio.gather(*outlived)
        return seen


def add_sockets(app: FastAPI) -> None:
    """Websockets that are accepted, refused, closed early and broken."""

    @app.websocket("/ws")
    async def echo(socket: WebSocket, id: TrackingId) -> None:
        await socket.accept(subprotocol=None)
        log.info("websocket open")
        await socket.send_json([id, tracking_id(), socket.state.tracking_id])
        await socket.close()

    @app.websocket("/ws/denied")
    async def denied(socket: WebSocket) -> None:
        raise HTTPException(403, "no")

    @app.websocket("/ws/closed")
    async def closed(socket: WebSocket) -> None:
        await socket.close()

    @app.websocket("/ws/boom")
    async def boom(socket: WebSocket) -> None:
        raise RuntimeError("socket boom")


def served() -> FastAPI:
    """For `uvicorn --factory`: JSON lines go to the directory named in the environment."""
    return make_app(logs={"console": None, "directory": Path(os.environ["ONEBEAT_TEST_LOGS"])})
