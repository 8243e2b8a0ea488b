"""One id, one header, on every response an application can give; in process, without a server."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi.responses import PlainTextResponse, Response
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketDenialResponse

from fastapi import FastAPI, Request
from onebeat import install
from onebeat.tracking import TrackingMiddleware, TrackingRules, current, tracking, tracking_id
from onebeat.tracking.context import tracking_of
from onebeat.tracking.middleware import Receive, Scope, Send
from tests.fastapi.app import make_app, seen
from tests.tracking.asgi import ask


@asynccontextmanager
async def client_of(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        yield client


REQUESTS = [
    ("GET", "/", 200),
    ("GET", "/sync", 200),
    ("GET", "/status/204", 204),
    ("GET", "/status/304", 304),
    ("HEAD", "/status/200", 200),
    ("GET", "/redirect", 307),
    ("GET", "/nothing", 404),
    ("DELETE", "/", 405),
    ("GET", "/number/x", 422),
    ("GET", "/denied", 429),
    ("GET", "/boom", 500),
    ("GET", "/teapot", 418),
    ("GET", "/own", 200),
    ("GET", "/stream", 200),
    ("GET", "/stream-sync", 200),
    ("GET", "/sse", 200),
    ("GET", "/file", 200),
    ("GET", "/mounted/", 200),
    ("GET", "/mounted/nothing", 404),
    ("GET", "/installed/", 200),
    ("GET", "/installed/nothing", 404),
    ("GET", "/spread", 200),
]


@pytest.mark.parametrize(("method", "path", "status"), REQUESTS)
@pytest.mark.parametrize("layered", [False, True], ids=["plain", "between BaseHTTPMiddleware"])
async def test_exactly_one_header_on_every_response(method: str, path: str, status: int, layered: bool) -> None:
    async with client_of(make_app(layered=layered)) as client:
        response = await client.request(method, path, headers={"X-Request-ID": "order-7"})
    assert response.status_code == status
    assert response.headers.get_list("x-request-id") == ["order-7"]


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("handler", ["none", "sync", "async"])
async def test_an_unhandled_error_has_the_id_whoever_answers_it(debug: bool, handler: str) -> None:
    app = make_app(debug=debug)

    def answer(request: Request, error: Exception) -> Response:
        return PlainTextResponse(f"{tracking_id()}", 500)

    async def answer_async(request: Request, error: Exception) -> Response:
        return PlainTextResponse(f"{tracking_id()}", 500)

    if handler != "none":
        app.add_exception_handler(Exception, answer if handler == "sync" else answer_async)
    async with client_of(app) as client:
        response = await client.get("/boom", headers={"X-Request-ID": "order-7"})
    assert response.status_code == 500
    assert response.headers.get_list("x-request-id") == ["order-7"]
    if handler != "none" and not debug:
        assert response.text == "order-7"


async def test_fastapis_answer_to_a_body_that_is_too_large_has_the_id() -> None:
    app = FastAPI(max_body_size=10)

    @app.post("/")
    async def post(request: Request) -> int:
        return len(await request.body())

    install(app)
    async with client_of(app) as client:
        response = await client.post("/", content=b"x" * 100)
    assert response.status_code == 413
    assert len(response.headers.get_list("x-request-id")) == 1


async def test_route_dependency_state_and_request_headers_agree() -> None:
    async with client_of(make_app()) as client:
        for sent in ("order-7", None, "evil id"):
            response = await client.get("/", headers={"X-Request-ID": sent} if sent else {})
            id = response.headers["x-request-id"]
            assert response.json() == {"dependency": id, "context": id, "state": id, "header": [id]}
            assert (id == "order-7") == (sent == "order-7")


@pytest.mark.parametrize("layered", [False, True], ids=["plain", "between BaseHTTPMiddleware"])
async def test_streams_keep_the_id_until_their_end_and_in_what_follows_them(layered: bool) -> None:
    seen.clear()
    async with client_of(make_app(layered=layered)) as client:
        for path in ("/stream", "/stream-sync"):
            response = await client.get(path, headers={"X-Request-ID": "order-7"})
            assert response.text.splitlines() == ["order-7"] * 3
        assert (await client.get("/sse", headers={"X-Request-ID": "order-7"})).text == "data: order-7\n\n"
    assert seen == ["order-7"]  # a background task of the stream


@pytest.mark.parametrize("layered", [False, True], ids=["plain", "between BaseHTTPMiddleware"])
async def test_dependencies_background_tasks_threads_and_tasks_that_outlive_the_request_have_the_id(
    layered: bool,
) -> None:
    async with client_of(make_app(layered=layered)) as client:
        response = await client.get("/spread", headers={"X-Request-ID": "order-7"})
        assert response.json() == ["order-7"] * 3
        found = (await client.get("/seen")).json()
    assert found == ["order-7"] * 5  # two ends of dependencies, two background tasks, one that outlived the request


async def test_mounted_apps_with_and_without_an_install_of_their_own_share_one_id() -> None:
    async with client_of(make_app()) as client:
        for path in ("/mounted/", "/installed/"):
            response = await client.get(path)
            assert response.headers.get_list("x-request-id") == [response.json()]


async def test_an_application_that_raises_before_it_answers_is_answered_for_and_still_raises() -> None:
    async def foreign(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError("foreign")

    with pytest.raises(LookupError) as caught:
        await ask(TrackingMiddleware(foreign), [(b"x-request-id", b"order-7")])
    start, body = caught.value.sent  # type: ignore[attr-defined]  # set by `ask`
    assert start["status"] == 500
    assert (b"x-request-id", b"order-7") in start["headers"]
    assert body["body"] == b"Internal Server Error"
    left = tracking_of(caught.value)
    assert left is not None
    assert left.tracking_id == "order-7"
    assert caught.value.args == ("foreign",)


async def test_after_a_response_has_begun_an_error_is_not_answered_again() -> None:
    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise LookupError("late")

    with pytest.raises(LookupError) as caught:
        await ask(TrackingMiddleware(late), [(b"x-request-id", b"order-7")])
    assert [message["type"] for message in caught.value.sent] == ["http.response.start"]  # type: ignore[attr-defined]  # set by `ask`
    left = tracking_of(caught.value)
    assert left is not None
    assert left.tracking_id == "order-7"


async def test_messages_of_other_kinds_and_the_applications_own_objects_are_left_alone() -> None:
    headers = [(b"Content-Type", b"text/plain")]
    sent_by_app: list[dict[str, Any]] = [
        {"type": "http.response.early_hint", "links": [b"</a.css>"]},
        {"type": "http.response.start", "status": 200, "headers": headers, "trailers": True},
        {"type": "http.response.pathsend", "path": "/tmp/x"},
        {"type": "http.response.trailers", "headers": [(b"x", b"y")], "more_trailers": False},
    ]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in sent_by_app:
            await send(message)

    reply = await ask(TrackingMiddleware(app), [(b"x-request-id", b"order-7")])
    assert reply.sent[0] is sent_by_app[0]
    assert reply.sent[2:] == sent_by_app[2:]
    assert reply.sent[1] == {**sent_by_app[1], "headers": [*headers, (b"x-request-id", b"order-7")]}
    assert headers == [(b"Content-Type", b"text/plain")]


async def test_browsers_of_other_origins_may_read_the_header() -> None:
    async with client_of(make_app()) as client:
        plain = await client.get("/")
        cross = await client.get("/", headers={"Origin": "http://shop.example"})
        preflight = await client.options(
            "/", headers={"Origin": "http://shop.example", "Access-Control-Request-Method": "GET"}
        )
    assert "access-control-expose-headers" not in plain.headers
    assert cross.headers.get_list("access-control-expose-headers") == ["X-Total, X-Request-ID"]
    assert preflight.status_code == 200
    assert len(preflight.headers.get_list("x-request-id")) == 1

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        allowed = [(b"Access-Control-Allow-Origin", b"*"), (b"Access-Control-Expose-Headers", b"x-request-id")]
        await send({"type": "http.response.start", "status": 200, "headers": allowed[: 2 if "two" in scope else 1]})

    expose = b"access-control-expose-headers"
    assert (await ask(TrackingMiddleware(app))).values(expose) == [b"X-Request-ID"]
    assert (await ask(TrackingMiddleware(app), two=1)).values(expose) == [b"x-request-id"]
    assert (await ask(TrackingMiddleware(app, TrackingRules(expose=False)))).values(expose) == []


async def test_two_thousand_concurrent_requests_never_cross() -> None:
    chance = random.Random(7)
    app = make_app()

    async def one(number: int) -> bool:
        id = f"id-{number}".encode()
        reply = await ask(app, [(b"x-request-id", id)], path=f"/pause/{chance.randrange(50)}")
        found = json.loads(reply.sent[1]["body"])
        return reply.values() == [id] and found == {"id": id.decode(), "same": True}

    results = await asyncio.gather(*map(one, range(2000)))
    assert results == [True] * 2000


async def test_the_callers_own_context_is_clean_afterwards_also_after_an_error() -> None:
    app = make_app()
    async with client_of(app) as client:
        for path in ("/", "/boom"):
            await client.get(path)
            assert tracking_id() is None
    loud = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://shop")
    with tracking("the-tests-own") as unit:
        async with loud:
            with pytest.raises(RuntimeError, match="boom"):
                await loud.get("/boom", headers={"X-Request-ID": "order-7"})
            assert (await loud.get("/")).headers["x-request-id"] != "the-tests-own"
        assert current() is unit


def test_the_test_client_leaves_no_trace_and_sees_the_id() -> None:
    with TestClient(make_app()) as client:
        response = client.get("/", headers={"X-Request-ID": "order-7"})
        assert response.headers["x-request-id"] == "order-7"
        with pytest.raises(RuntimeError):
            client.get("/boom")
        assert tracking_id() is None


def test_a_websocket_has_the_id_in_its_handshake_and_its_unit() -> None:
    with (
        TestClient(make_app()) as client,
        client.websocket_connect("/ws", headers={"X-Request-ID": "order-7"}) as socket,
    ):
        headers: Any = socket.extra_headers
        assert headers == [(b"x-request-id", b"order-7")]
        assert socket.receive_json() == ["order-7"] * 3


@pytest.mark.parametrize("path", ["/ws/denied", "/ws/closed", "/ws/nothing"])
def test_a_refused_websocket_has_the_id_on_its_denial(path: str) -> None:
    with TestClient(make_app()) as client:
        session = client.websocket_connect(path, headers={"X-Request-ID": "order-7"})
        with pytest.raises(WebSocketDenialResponse) as caught:
            session.__enter__()
    response = caught.value
    assert response.status_code == 403
    assert response.headers.get_list("x-request-id") == ["order-7"]


@pytest.mark.parametrize("extensions", [{}, {"websocket.http.response": {}}])
async def test_a_websocket_without_denial_responses_is_closed_as_before(extensions: dict[str, Any]) -> None:
    async def close(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.close", "code": 4000})

    async def accept_and_close(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 4000})

    reply = await ask(TrackingMiddleware(close), kind="websocket", extensions=extensions)
    assert len(reply.sent) == (2 if extensions else 1)
    assert extensions or reply.sent == [{"type": "websocket.close", "code": 4000}]
    reply = await ask(TrackingMiddleware(accept_and_close), kind="websocket", extensions=extensions)
    assert [message["type"] for message in reply.sent] == ["websocket.accept", "websocket.close"]
    assert reply.sent[1] == {"type": "websocket.close", "code": 4000}
    assert len(reply.values()) == 1
