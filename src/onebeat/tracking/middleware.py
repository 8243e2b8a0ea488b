"""The tracking layer: pure ASGI, one id in, one id on every response, outside of everything else."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

from onebeat.tracking.context import VARIABLE, Cell, Tracking, leave
from onebeat.tracking.denials import DENIED
from onebeat.tracking.ids import MAX_LENGTH, new_unit_id
from onebeat.tracking.otel import active_span
from onebeat.tracking.rules import Inbound, TrackingRules

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]

MARK: Final = "onebeat.tracking"  # the key of the unit in the ASGI scope; an inner layer that finds it does nothing
_ANSWERED: Final = "onebeat.answered"  # the key of the application's response to an error, in the scope
_STARTS: Final = frozenset(("http.response.start", "websocket.accept", "websocket.http.response.start"))
_ALLOW_ORIGIN: Final = b"access-control-allow-origin"
_tuple = tuple.__new__  # makes a named tuple in half the time of its class, once a request
_PLAIN: Final = (b"content-type", b"text/plain; charset=utf-8")
_DENIAL: Final = "websocket.http.response"  # the ASGI extension by which a handshake is answered with a response


class TrackingMiddleware:
    """Wraps any ASGI application; `install(app)` puts it around a FastAPI application and does more.

    A request comes to the application with one tracking id: in the context, in `request.state.tracking_id` and in the
    request's headers. Every response, error and handshake has it in one header. `TrackingRules` say what is accepted;
    `refusal` is the application that answers a request whose id they reject.

    >>> async def application(scope, receive, send): ...
    >>> application = TrackingMiddleware(application, TrackingRules(accept="never"))
    """

    def __init__(self, app: App, rules: TrackingRules | None = None, *, refusal: App | None = None) -> None:
        rules = rules or TrackingRules()
        self._app = app
        self._refusal = refusal or refuse
        inbound = Inbound(rules)
        self._judge, self._make = inbound.judge, inbound.make
        self._simple, self._allowed = inbound.simple, inbound.allowed
        self._name = rules.header.lower().encode("ascii")
        self._unit_name = rules.unit_header.lower().encode("ascii") if rules.unit_header else None
        self._names = frozenset((*inbound.names, self._name))  # request headers that show an id
        self._wanted = inbound.wanted | self._names
        self._own = frozenset((self._name, self._unit_name))  # response headers that are ours alone
        self._special = self._own | {_ALLOW_ORIGIN}  # and those to look at
        self._expose = b", ".join(name.encode("ascii") for name in (rules.header, rules.unit_header) if name)
        self._exposes = rules.expose
        self._rewrites = rules.rewrite
        self._rejects = rules.on_invalid == "reject"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        kind = scope["type"]
        if (kind != "http" and kind != "websocket") or MARK in scope:
            await self._app(scope, receive, send)
            return
        headers = scope["headers"]
        wanted = self._wanted
        offered = []
        for pair in headers:  # a loop: a comprehension would be a function call here
            if pair[0] in wanted:
                offered.append(pair)
        if not offered:
            id, origin, trace, client_id, invalid = self._make(), "generated", None, None, False
        elif (
            len(offered) == 1
            and offered[0][0] in self._simple
            and 0 < len(value := offered[0][1]) <= MAX_LENGTH
            and not value.translate(None, self._allowed)
        ):
            id, origin, trace, client_id, invalid = value.decode("ascii"), "header", None, None, False
        else:
            id, origin, trace, client_id, invalid = self._judge(scope, offered)
        name = "request" if kind == "http" else "websocket"
        cell = Cell()
        unit = _tuple(Tracking, (id, name, new_unit_id(), cell, None, origin, trace, client_id, None))
        encoded = (self._name, id.encode("ascii"))
        scope[MARK] = unit
        state = scope.get("state")
        if isinstance(state, dict):
            state["tracking_id"] = id  # the request's own: what stands outside of us may hold it already
        else:
            scope["state"] = {"tracking_id": id}
        if self._rewrites:
            if not offered:
                scope["headers"] = [*headers, encoded]
            elif offered != [encoded]:
                scope["headers"] = self._shown(headers, encoded)
        begun = False

        def send_with_id(message: Message) -> Awaitable[None]:
            nonlocal begun
            if message["type"] in _STARTS:
                begun = True
                if (span := active_span()) is not None:
                    unit.cell.span = span
                found = list(message.get("headers") or ())
                special = self._special
                for pair in found:  # here: a function for it would cost more than what it does
                    if pair[0].lower() in special:  # few responses have any
                        found = self._without_ours(found)
                        break
                found.append(encoded)
                if self._unit_name is not None:
                    found.append((self._unit_name, unit.unit_id.encode("ascii")))
                message = {**message, "headers": found}
            return send(message)

        sender = send_with_id if kind == "http" else self._handshake(scope, send_with_id)
        token = VARIABLE.set(unit)  # always: what a leaked context holds is not this request's
        try:
            if invalid and self._rejects:
                await self._refusal(scope, receive, sender)
            else:
                await self._app(scope, receive, sender)
        except BaseException as error:
            try:
                if not begun and isinstance(error, Exception):
                    await self._fail(error, scope, receive, sender)
            finally:
                leave(unit, token, error)
            raise
        try:  # as `leave` does, without the call
            VARIABLE.reset(token)
        except ValueError:
            pass
        cell.closed, cell.memo = True, None

    # ── in ────────────────────────────────────────────────────────────────────────────────────────────────────────────
    def _shown(self, headers: Iterable[Header], encoded: Header) -> list[Header]:
        """The request's headers with the effective id, and no other, under every name an id may come in."""
        names = self._names
        kept: list[Header] = []
        seen: set[bytes] = set()
        for key, value in headers:
            if key not in names:
                kept.append((key, value))
            elif key not in seen:
                seen.add(key)
                kept.append((key, encoded[1]))
        if self._name not in seen:
            kept.append(encoded)
        return kept

    # ── out ───────────────────────────────────────────────────────────────────────────────────────────────────────────
    def _without_ours(self, headers: list[Header]) -> list[Header]:
        """The response's headers without what the application set under our names, ours exposed where CORS is."""
        kept = [pair for pair in headers if pair[0].lower() not in self._own]
        if self._exposes and any(name.lower() == _ALLOW_ORIGIN for name, _ in kept):
            self._add_to_exposed(kept)
        return kept

    def _add_to_exposed(self, headers: list[Header]) -> None:
        for index, (name, value) in enumerate(headers):
            if name.lower() == b"access-control-expose-headers":
                listed = {part.strip().lower() for part in value.split(b",")}
                more = [part for part in self._expose.split(b", ") if part.lower() not in listed]
                headers[index] = (name, b", ".join(filter(None, [value, *more])))
                return
        headers.append((b"access-control-expose-headers", self._expose))

    def _handshake(self, scope: Scope, send: Send) -> Send:
        """A refusal before the handshake becomes a response with the id, where the server can send one."""
        if _DENIAL not in (scope.get("extensions") or ()):
            return send
        answered = False

        async def send_or_deny(message: Message) -> None:
            nonlocal answered
            if message["type"] == "websocket.close" and not answered:
                answered = True
                DENIED.set(True)
                await send({"type": f"{_DENIAL}.start", "status": 403, "headers": [(b"content-length", b"0")]})
                message = {"type": f"{_DENIAL}.body", "body": b""}
            elif not answered:
                DENIED.set(message["type"] != "websocket.accept")
            answered = True
            await send(message)

        return send_or_deny

    async def _fail(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what the application left unanswered when it raised; the server still gets the exception.

        Inside of a Starlette application (`app.add_middleware`) the answer is the one that it would give itself: of its
        own handler of errors, or the page of its debug mode.
        """
        prefix = "http.response" if scope["type"] == "http" else _DENIAL
        if prefix == _DENIAL and _DENIAL not in (scope.get("extensions") or ()):
            return
        try:
            if scope["type"] == "http" and (answer := _own_answer(scope.get("app"), error)) is not None:
                await answer(scope, receive, send)
            else:
                await _answer(send, 500, b"Internal Server Error", prefix)
        except Exception:  # noqa: BLE001 - the client is gone, or the connection was closed: the first error matters
            return


def _own_answer(app: Any, error: Exception) -> App | None:
    """Return what answers an error in a Starlette application: its `ServerErrorMiddleware`, around the error itself."""
    layer = getattr(app, "middleware_stack", None)
    while layer is not None and not {"app", "handler", "debug", "debug_response"} <= {*dir(layer)}:
        layer = getattr(layer, "app", None)  # instrumentation may stand outside of it
    if layer is None:
        return None
    if layer.handler is not None and not isinstance(layer.handler, _Once):
        layer.handler = _Once(layer.handler)  # the layer calls it again when the exception arrives there

    async def failed(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    answer: App = type(layer)(failed, handler=layer.handler, debug=layer.debug)
    return answer


class _Once:
    """An application's handler of errors, called once for each request whose error it answers."""

    def __init__(self, handler: Callable[[Any, Exception], Any]) -> None:
        self._handler = handler
        self._is_async = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
            getattr(handler, "__call__", None)  # noqa: B004 - an object whose call is a coroutine function
        )

    async def __call__(self, request: Any, error: Exception) -> Any:
        if _ANSWERED in request.scope:
            return request.scope[_ANSWERED]
        if self._is_async:
            response = await self._handler(request, error)
        else:
            response = await asyncio.to_thread(self._handler, request, error)
        request.scope[_ANSWERED] = response
        return response


async def refuse(scope: Scope, _: Receive, send: Send) -> None:
    """The application of a request whose id is rejected."""
    if scope["type"] == "http":
        await _answer(send, 400, b"Invalid tracking id")
    elif _DENIAL in (scope.get("extensions") or ()):
        await _answer(send, 400, b"Invalid tracking id", prefix=_DENIAL)
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": "Invalid tracking id"})


async def _answer(send: Send, status: int, body: bytes, prefix: str = "http.response") -> None:
    headers = [_PLAIN, (b"content-length", b"%d" % len(body))]
    await send({"type": f"{prefix}.start", "status": status, "headers": headers})
    await send({"type": f"{prefix}.body", "body": body})
