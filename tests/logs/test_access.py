"""What the access record says of exchanges that no server of the tests makes."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from onebeat.logs import access
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
