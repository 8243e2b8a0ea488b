"""`app.add_middleware(TrackingMiddleware)`: the application's own answers to errors stay, and have the id."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

from fastapi import FastAPI, Request
from onebeat.tracking import TrackingMiddleware, tracking_id


async def boom(request: Request) -> None:
    raise LookupError("boom")


async def own(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error), "id": tracking_id()}, 500)


def answered(app: Any, **headers: str) -> Any:
    client = TestClient(app, raise_server_exceptions=False)
    return client.get("/boom", headers={"X-Request-ID": "given-1", **headers})


@pytest.mark.parametrize("kind", [500, Exception])
def test_the_app_s_own_handler_of_500_answers(kind: Any) -> None:
    app = FastAPI()
    app.add_middleware(TrackingMiddleware)
    app.add_api_route("/boom", boom)
    app.add_exception_handler(kind, own)
    response = answered(app)
    assert (response.status_code, response.json()) == (500, {"error": "boom", "id": "given-1"})
    assert response.headers.get_list("X-Request-ID") == ["given-1"]


def test_the_debug_page_is_shown() -> None:
    app = FastAPI(debug=True)
    app.add_middleware(TrackingMiddleware)
    app.add_api_route("/boom", boom)
    assert "LookupError" in answered(app).text
    page = answered(app, accept="text/html")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["X-Request-ID"] == "given-1"


def test_a_plain_starlette_app_and_others_layers_keep_their_order() -> None:
    class Outer:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def marked(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message = {**message, "headers": [*message["headers"], (b"x-outer", b"yes")]}
                await send(message)

            await self.app(scope, receive, marked)

    app = Starlette(
        routes=[Route("/boom", boom)],
        middleware=[Middleware(Outer), Middleware(TrackingMiddleware)],
        exception_handlers={Exception: own},
    )
    response = answered(app)
    assert response.json()["error"] == "boom"
    assert (response.headers["x-outer"], response.headers["X-Request-ID"]) == ("yes", "given-1")


def test_the_exception_still_reaches_the_server_once() -> None:
    app = FastAPI()
    app.add_middleware(TrackingMiddleware)
    app.add_api_route("/boom", boom)
    calls: list[Exception] = []

    async def counted(request: Request, error: Exception) -> JSONResponse:
        calls.append(error)
        return await own(request, error)

    app.add_exception_handler(Exception, counted)
    with pytest.raises(LookupError, match="boom"):
        TestClient(app).get("/boom")
    assert len(calls) == 1


def test_a_plain_function_as_handler_runs_off_the_event_loop() -> None:
    app = FastAPI()
    app.add_middleware(TrackingMiddleware)
    app.add_api_route("/boom", boom)
    threads: list[str] = []

    def plain(request: Request, error: Exception) -> JSONResponse:
        threads.append(threading.current_thread().name)
        return JSONResponse({"id": tracking_id()}, 500)

    app.add_exception_handler(Exception, plain)
    assert [answered(app).json() for _ in range(2)] == [{"id": "given-1"}] * 2
    assert len(threads) == 2
    assert not {threading.main_thread().name} & {*threads}


def test_a_handler_that_raises_itself_leaves_the_plain_answer_to_starlette() -> None:
    app = FastAPI()
    app.add_middleware(TrackingMiddleware)
    app.add_api_route("/boom", boom)

    async def broken(request: Request, error: Exception) -> JSONResponse:
        raise RuntimeError("the handler")

    app.add_exception_handler(Exception, broken)
    with pytest.raises(RuntimeError, match="the handler"):
        TestClient(app).get("/boom")
