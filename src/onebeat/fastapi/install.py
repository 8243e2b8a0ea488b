"""install: the tracking layer around the whole application, the engine inside its lifespan."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from datetime import timedelta
from types import MethodType
from typing import Any, Protocol, cast

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool

from onebeat.errors import ConfigurationError
from onebeat.logs import setup as log_setup
from onebeat.logs.access import AccessLog
from onebeat.logs.filter import TrackingFilter
from onebeat.offload.setup import close_offload
from onebeat.offload.watchdog.watchdog import Watchdog
from onebeat.tracking.denials import silence_false_alarms
from onebeat.tracking.middleware import App, Receive, Scope, Send, TrackingMiddleware, refuse
from onebeat.tracking.orphans import orphans_tracked
from onebeat.tracking.rules import TrackingRules

_INSTALLED = "onebeat_installed"
Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]
_entering: ContextVar[object] = ContextVar("onebeat_lifespan", default=None)


class Startable(Protocol):
    """What `install` needs of a scheduler; `activate`, `bind_app`, `lifespan`, `started` are used where they exist."""

    async def start(self) -> None:
        """Run the engine in this event loop."""

    async def stop(self) -> None:
        """Drain and close."""


def install(
    app: Starlette,
    scheduler: Startable | None = None,
    *,
    tracking: bool | TrackingRules = True,
    logs: bool | Mapping[str, Any] = False,
    watchdog: bool | float | timedelta = True,
) -> None:
    """Put the tracking layer around `app` and run `scheduler` inside the app's lifespan. Does no I/O.

    - Every response, 404, 422, 500 and mounted apps included, and every log record of a request has the tracking id.
    - The engine starts after the app's own startup and stops before its shutdown. Where the app's lifespan is
      `scheduler.lifespan`, none is added.
    - `tracking`: `TrackingRules` instead of the defaults; False leaves requests alone.
    - `logs`: True calls `setup_logging()`, a mapping gives its options. With or without, what waits is written when
      the lifespan ends.

    - `watchdog`: names what blocks the event loop for longer than 0.1 s while the app serves; a number of seconds or a
      `timedelta` is another limit, False starts none. Threads and child processes of `onebeat.offload` end with the
      lifespan.

    Call it once, after `FastAPI(...)`; OpenTelemetry may instrument the app before or after. Raises
    `ConfigurationError` for a second call, for an app that serves already, and for what is no Starlette application.

    >>> from fastapi import FastAPI
    >>> app = FastAPI()
    >>> install(app)
    >>> install(app)
    Traceback (most recent call last):
    onebeat.errors.ConfigurationError: install() was called for this app already; ...
    """
    _check(app, scheduler)
    _check_options(tracking, logs)
    dog = _watchdog(watchdog)
    if logs:
        log_setup.setup_logging(**(logs if isinstance(logs, Mapping) else {}))
    served = _served_by(app, scheduler)
    if tracking:
        rules = tracking if isinstance(tracking, TrackingRules) else None
        refusal = AccessLog(refuse).__call__
        served = TrackingMiddleware(AccessLog(served).__call__, rules, refusal=refusal).__call__
        filter_root_handlers()
    _replace_call(app, served)
    if (bind := getattr(scheduler, "bind_app", None)) is not None:
        bind(app)
    _replace_lifespan(app, _Life(scheduler, tracked=bool(tracking), watchdog=dog))


def _check(app: object, scheduler: object) -> None:
    if not isinstance(app, Starlette):
        hint = "wrap it in onebeat.tracking.TrackingMiddleware instead"
        raise ConfigurationError(
            f"install() takes a FastAPI or Starlette application, not {type(app).__name__}; {hint}"
        )
    if getattr(app, _INSTALLED, False):
        raise ConfigurationError(
            "install() was called for this app already; give scheduler, tracking and logs to one call"
        )
    if app.middleware_stack is not None:
        raise ConfigurationError("this app serves already; call install(app) right after it is made")
    if scheduler is not None and not (hasattr(scheduler, "start") and hasattr(scheduler, "stop")):
        raise ConfigurationError(f"install(app, scheduler): {type(scheduler).__name__} is no Scheduler")


def _check_options(tracking: object, logs: object) -> None:
    if not isinstance(tracking, (bool, TrackingRules)):
        raise ConfigurationError(
            f"install(tracking=…) takes True, False or TrackingRules(…), not {type(tracking).__name__}"
        )
    if not isinstance(logs, (bool, Mapping)):
        raise ConfigurationError(
            f'install(logs=…) takes True, False or options such as {{"directory": "logs"}}, not {type(logs).__name__}'
        )


def _watchdog(limit: object) -> Watchdog | None:
    if limit is False or limit is None:
        return None
    try:
        return Watchdog(0.1 if limit is True else cast(float, limit))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"install(watchdog=…) takes True, False, seconds or a timedelta: {error}") from None


# ── requests ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def _served_by(app: Starlette, scheduler: Startable | None) -> App:
    """The application as it was, with the scheduler active in each request."""
    served: App = MethodType(type(app).__call__, app)
    activate: Callable[[], AbstractContextManager[Any]] | None = getattr(scheduler, "activate", None)

    if activate is None:
        return served

    async def active(scope: Scope, receive: Receive, send: Send) -> None:
        with activate():
            await served(scope, receive, send)

    return active


def _replace_call(app: Starlette, served: App) -> None:
    """Override `__call__` in a subclass made for this one app.

    A wrapped middleware stack would make OpenTelemetry's instrumentation give up, when it comes later; a wrapper object
    would not be the FastAPI application any more.
    """

    base = type(app)
    names = {
        "__call__": staticmethod(served),  # as it is: a function around it would cost each request a frame
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        _INSTALLED: True,
    }
    app.__class__ = type(base.__name__, (base,), names)


def filter_root_handlers() -> None:
    """Give each handler of the root logger the `TrackingFilter`, once."""
    for handler in logging.getLogger().handlers:
        if not any(isinstance(present, TrackingFilter) for present in handler.filters):
            handler.addFilter(TrackingFilter())


# ── lifespan ──────────────────────────────────────────────────────────────────────────────────────────────────────────
class _Life:
    """Wraps an app's lifespan, whatever it becomes later: logs outermost, then the user's, then the engine."""

    def __init__(self, scheduler: Startable | None, *, tracked: bool, watchdog: Watchdog | None) -> None:
        self._scheduler = scheduler
        self._tracked = tracked
        self._watchdog = watchdog

    def around(self, former: Lifespan) -> Lifespan:
        """The lifespan to enter instead of `former`."""

        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[Any]:
            if _entering.get() is self:  # merged into a wider one by `include_router`; that one starts the engine
                async with former(app) as state:
                    yield state
                return
            async with AsyncExitStack() as stack:
                await self._open_logs(stack)
                stack.push_async_callback(close_offload)
                before = self._started()
                token = _entering.set(self)
                try:
                    state = await stack.enter_async_context(former(app))
                finally:
                    _entering.reset(token)
                if not self._is_started_by(former, before):
                    await self._start_engine(stack)
                if self._watchdog is not None:
                    stack.enter_context(self._watchdog)
                yield state

        return lifespan

    async def _open_logs(self, stack: AsyncExitStack) -> None:
        if self._tracked:
            filter_root_handlers()
            silence_false_alarms()
            stack.enter_context(orphans_tracked())
        log_setup.open_logs(access_layer=self._tracked)
        stack.push_async_callback(run_in_threadpool, log_setup.close_logs)  # it waits for the writers

    async def _start_engine(self, stack: AsyncExitStack) -> None:
        if self._scheduler is not None:
            await self._scheduler.start()
            stack.push_async_callback(self._scheduler.stop)

    def _started(self) -> bool:
        return bool(getattr(self._scheduler, "started", False))

    def _is_started_by(self, former: Lifespan, before: bool) -> bool:
        """Whether the app's own lifespan is, or holds, the scheduler's."""
        return former == getattr(self._scheduler, "lifespan", None) or (self._started() and not before)


def _replace_lifespan(app: Starlette, life: _Life) -> None:
    """Wrap the router's lifespan each time it is read, so that routers included later are inside as well."""
    router = app.router
    base = type(router)
    stored = router.lifespan_context

    def read(self: Any) -> Lifespan:
        return life.around(stored)

    def write(self: Any, value: Lifespan) -> None:
        nonlocal stored
        stored = value

    names = {
        "lifespan_context": property(read, write),
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
    }
    router.__class__ = cast(Any, type(base.__name__, (base,), names))
