"""The access log: one record for each finished response or websocket, with its duration and ids."""

from __future__ import annotations

import copy
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LOGGER: Final = "onebeat.access"
UVICORNS: Final = "uvicorn.access"
OF_SERVERS: Final = (UVICORNS, "gunicorn.access")  # hypercorn makes its own after the lifespan has begun
_log = logging.getLogger(LOGGER)
_SEEN: Final = "onebeat.access"  # the key in the ASGI scope; a mounted application has nothing to add
_wanted = False
_excluded: frozenset[str] = frozenset()


def want(wanted: bool, excluded: Iterable[str] = ()) -> None:
    """Switch the access log of this process on or off; successful requests of the excluded paths are left out."""
    global _wanted, _excluded
    _wanted, _excluded = wanted, frozenset(excluded)


def leave_to_sentry() -> None:
    """Keep Sentry, if the application uses it, from reporting a 500 twice: its exception, and the access record."""
    integration = sys.modules.get("sentry_sdk.integrations.logging")
    if integration is not None:
        integration.ignore_logger(LOGGER)


def is_wanted() -> bool:
    """Whether requests are to be logged here."""
    return _wanted


class AccessLog:
    """Pure ASGI, to stand inside the tracking layer and outside everything else; silent until `setup_logging`.

    It writes when the application has finished, so the size and a broken connection are known, and what was bound
    during the request (`bind`) is on the record. The duration ends with the response, before its background tasks.
    """

    def __init__(self, app: Application) -> None:
        self.app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one connection; while silent, what is awaited is the application itself."""
        if not _wanted or scope["type"] not in ("http", "websocket") or _SEEN in scope:
            return self.app(scope, receive, send)
        scope[_SEEN] = True
        return self._observed(scope, receive, send)

    async def _observed(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(scope, receive, send)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except BaseException as error:
            exchange.log(error)
            raise
        exchange.log(None)


class _Exchange:
    """One request and its response, or one websocket connection, as seen from outside."""

    __slots__ = (
        "_receive",
        "_scope",
        "_send",
        "aborted",
        "code",
        "ended",
        "finished",
        "first",
        "size",
        "started",
        "status",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self.started = time.perf_counter()
        self.first: float | None = None  # when the response began
        self.ended: float | None = None  # when it was sent to its end
        self.status: int | None = None
        self.code: int | None = None  # of a closed websocket
        self.size = 0
        self.finished = False
        self.aborted = False

    async def receive(self) -> Message:
        message = await self._receive()
        kind = message["type"]
        if kind == "http.disconnect":
            self.aborted = not self.finished
        elif kind == "websocket.disconnect" and self.code is None:
            self.code = message.get("code", 1005)
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
            self.first = time.perf_counter()
        elif kind in ("http.response.body", "websocket.http.response.body"):
            self.size += len(message.get("body", b""))
            self.finished = not message.get("more_body", False)
        elif kind == "http.response.pathsend":  # the server sends a file by itself; its size is not known here
            self.finished = True
        elif kind == "websocket.accept":
            self.status = 101
            self.first = time.perf_counter()
            if self._scope.get("path") not in _excluded:
                self._write("websocket accepted", logging.INFO)
        elif kind == "websocket.close":
            self.code = message.get("code", 1000)
            if self.status is None:
                self.status = 403  # closed before it was accepted: servers answer so
        await self._send(message)
        if self.finished and self.ended is None:
            self.ended = time.perf_counter()

    def log(self, error: BaseException | None) -> None:
        """The record of the whole exchange."""
        failed = isinstance(error, Exception) or (self.status is not None and self.status >= 500)
        if isinstance(error, Exception) and self.status is None:
            self.status = 500
        if not failed and self._scope.get("path") in _excluded and (self.status or 0) < 400:
            return
        self._write("websocket closed" if self.status == 101 else "", logging.ERROR if failed else logging.INFO)

    def _write(self, event: str, level: int) -> None:
        if not _log.isEnabledFor(level):
            return
        duration = ((self.ended or time.perf_counter()) - self.started) * 1000
        scope = self._scope
        method = "WEBSOCKET" if scope["type"] == "websocket" else scope.get("method")
        path = scope.get("path", "")
        fields: dict[str, Any] = {
            "method": method,
            "path": path,
            "route": getattr(scope.get("route"), "path", None),
            "status": self.status,
            "duration_ms": round(duration, 3),
            "first_byte_ms": None if self.first is None else round((self.first - self.started) * 1000, 3),
            "bytes": self.size,
            "client": _address(scope.get("client")),
            "http_version": scope.get("http_version"),
            "aborted": self.aborted or (scope["type"] == "http" and not self.finished),
        }
        if scope["type"] == "websocket":
            fields["code"] = self.code
            del fields["aborted"], fields["bytes"]
        shown = event or f"{self.status}"
        record = logging.LogRecord(LOGGER, level, __file__, 0, f"{method} {path} {shown} {duration:.1f} ms", None, None)
        record.funcName = "access"
        record.__dict__.update(fields)
        _log.handle(record)


def _address(client: Any) -> str | None:
    return f"{client[0]}:{client[1]}" if client else None


def recognised(record: logging.LogRecord) -> logging.LogRecord:
    """uvicorn's own access record with its five arguments as fields; the query, where secrets travel, is cut off."""
    args = record.args
    if not isinstance(args, tuple) or len(args) != 5:
        return record
    client, method, path, version, status = args
    bare = str(path).partition("?")[0]
    better = copy.copy(record)
    better.args = (client, method, bare, version, status)
    better.__dict__.update(client=client, method=method, path=bare, http_version=version, status=status)
    return better
