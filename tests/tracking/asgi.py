"""One ASGI exchange without a server: bytes in, messages out."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Any

from onebeat.tracking import Tracking, current
from onebeat.tracking.middleware import App, Receive, Scope, Send

Headers = Iterable[tuple[bytes, bytes]]


class Echo:
    """Answers 200 and remembers what it saw of the last request."""

    def __init__(self) -> None:
        self.unit: Tracking | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        self.state: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.unit = current()
        self.headers = list(scope["headers"])
        self.state = scope["state"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"the app's own")]})
        await send({"type": "http.response.body", "body": b"ok"})

    @property
    def seen(self) -> Tracking:
        """The unit of the last request."""
        assert self.unit is not None
        return self.unit


class Reply:
    """What came back."""

    def __init__(self, sent: list[MutableMapping[str, Any]]) -> None:
        self.sent = sent
        start = sent[0]
        self.status: int | None = start.get("status")
        self.headers: list[tuple[bytes, bytes]] = list(start.get("headers", ()))

    def values(self, name: bytes = b"x-request-id") -> list[bytes]:
        """All values of a header."""
        return [value for key, value in self.headers if key.lower() == name]

    @property
    def id(self) -> str:
        """The tracking id, if there is exactly one."""
        [value] = self.values()
        return value.decode("ascii")


async def ask(app: App, headers: Headers = (), *, kind: str = "http", **more: Any) -> Reply:
    """Send one request; an exception of the application comes through."""
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""} if kind == "http" else {"type": "websocket.connect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope: dict[str, Any] = {
        "type": kind,
        "method": "GET",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
        "headers": list(headers),
        "client": ("203.0.113.9", 4711),
        "server": ("127.0.0.1", 80),
        **more,
    }
    try:
        await app(scope, receive, send)
    except Exception as error:
        error.sent = sent  # type: ignore[attr-defined]  # for tests that look at what was answered before
        raise
    return Reply(sent)
