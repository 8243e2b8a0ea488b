"""What the access record says of exchanges that no server of the tests makes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator

import pytest

from fastapi import FastAPI
from onebeat import install
from onebeat.logs import access
from onebeat.tracking import TrackingRules
from onebeat.tracking.middleware import Receive, Scope, Send
from tests.tracking.asgi import ask


@pytest.fixture(autouse=True)
def wanted() -> Iterator[None]:
    access.want(True)
    yield
    access.want(False)


@pytest.mark.parametrize("more", [[{"type": "http.response.pathsend", "path": "/tmp/x"}], []])
async def test_a_file_that_the_server_sends_by_itself_is_a_whole_response(
    more: list[dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for message in more:
            await send(message)

    with caplog.at_level(logging.INFO, access.LOGGER):
        await ask(access.AccessLog(app))
    [record] = caplog.records
    assert vars(record)["aborted"] is not bool(more)


async def body(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


async def test_the_duration_ends_with_the_response_and_not_with_its_background_tasks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sent: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await body(scope, receive, send)
        sent.append(time.perf_counter())
        await asyncio.sleep(0.2)  # the background task

    begun = time.perf_counter()
    with caplog.at_level(logging.INFO, access.LOGGER):
        await ask(access.AccessLog(app))
    [record] = caplog.records
    assert vars(record)["duration_ms"] <= (sent[0] - begun) * 1000 + 0.001  # rounded to microseconds


async def test_an_application_inside_another_adds_no_record_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, access.LOGGER):
        await ask(access.AccessLog(access.AccessLog(body).__call__))
    assert len(caplog.records) == 1


async def test_an_excluded_websocket_has_no_record_at_all(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(_: object) -> None:
        return

    access.want(True, ("/ws",))
    for path, count in (("/ws", 0), ("/other", 2)):
        with caplog.at_level(logging.INFO, access.LOGGER):
            await access.AccessLog(app)({"type": "websocket", "path": path}, receive, send)
        assert len(caplog.records) == count, path


@pytest.mark.parametrize("rejecting", [True, False])
async def test_a_request_that_is_rejected_for_its_id_has_a_record_with_the_id_of_the_answer(
    rejecting: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app = FastAPI()
    install(app, tracking=TrackingRules(on_invalid="reject" if rejecting else "replace"))
    access.want(True)
    with caplog.at_level(logging.INFO, access.LOGGER):
        answer = await ask(app, headers=[(b"x-request-id", b"not valid")])
    [record] = [record for record in caplog.records if record.name == access.LOGGER]
    assert vars(record)["status"] == answer.status == (400 if rejecting else 404)
    assert answer.id
