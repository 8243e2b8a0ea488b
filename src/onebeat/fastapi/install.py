"""install: puts the tracking layer around the whole application and the engine inside its lifespan."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from datetime import timedelta
from types import MethodType
from typing import Any, cast

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool

from onebeat.errors import ConfigurationError
from onebeat.logs import setup as log_setup
from onebeat.logs.access import AccessLog
from onebeat.logs.filter import TrackingFilter
from onebeat.offload.setup import close_offload
from onebeat.offload.watchdog.watchdog import Watchdog
from onebeat.scheduler.event_loops import require_asyncio
from onebeat.scheduler.integration import Integrable, integration_of
from onebeat.tracking.denials import silence_false_alarms
from onebeat.tracking.middleware import App, Receive, Scope, Send, TrackingMiddleware, refuse
from onebeat.tracking.orphans import orphans_tracked
from onebeat.tracking.rules import TrackingRules

_INSTALLED = "onebeat_installed"
Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]
_entering: ContextVar[object] = ContextVar("onebeat_lifespan", default=None)


def install(
    app: Starlette,
    scheduler: Integrable | None = None,
    *,
    tracking: bool | TrackingRules = True,
    logs: bool | Mapping[str, Any] = False,
    watchdog: bool | float | timedelta = True,
) -> None:
    """Put the tracking layer around `app` and run `scheduler` inside the app's lifespan. Does no I/O.

    - Every response and every log record of a request carries the tracking id. This includes mounted apps and the
      responses 404, 422 and 500.
    - The engine starts after the app's own startup and stops before its shutdown. If the app's lifespan is
      `scheduler.lifespan`, `install` adds none.
    - `tracking`: `TrackingRules` replace the defaults; False leaves requests alone.
    - `logs`: True calls `setup_logging()`, and a mapping gives its options. In both cases, and without `logs`, queued
      records are written when the lifespan ends.
    - `watchdog`: logs what blocks the event loop for longer than 0.1 s while the app serves. A number of seconds or a
      `timedelta` sets another limit; False starts no watchdog.
    - The threads and child processes of `onebeat.offload` end with the lifespan.

    Call it once, after `FastAPI(...)`; OpenTelemetry may instrument the app before or after. Raises
    `ConfigurationError` for a second call, for an app that serves already, and for another object than a Starlette
    application.

    >>> from fastapi import FastAPI
    >>> app = FastAPI()
    >>> install(app)
    >>> install(app)
    Traceback (most recent call last):
    onebeat.errors.ConfigurationError: install() was called for this app already; ...
    """
    _check(app, scheduler)
    _check_options(tracking, logs)
    blocking = _watchdog(watchdog)
    if logs:
        log_setup.setup_logging(**(logs if isinstance(logs, Mapping) else {}))
    served = _served_by(app, scheduler)
    if tracking:
        rules = tracking if isinstance(tracking, TrackingRules) else None
        refusal = AccessLog(refuse).__call__
        served = TrackingMiddleware(AccessLog(served).__call__, rules, refusal=refusal).__call__
        filter_root_handlers()
    _replace_call(app, served)
    if scheduler is not None:
        integration_of(scheduler).bind_app(app)
    _replace_lifespan(app, _LifespanWrapper(scheduler, tracked=bool(tracking), watchdog=blocking))


def _check(app: object, scheduler: object) -> None:
    if not isinstance(app, Starlette):
        raise ConfigurationError(
            f"install() takes a FastAPI or Starlette application, not {type(app).__name__}; "
            "wrap it in onebeat.tracking.TrackingMiddleware instead"
        )
    if getattr(app, _INSTALLED, False):
        raise ConfigurationError(
            "install() was called for this app already; pass scheduler, tracking and logs in one call"
        )
    if app.middleware_stack is not None:
        raise ConfigurationError("this app serves already; call install(app) right after you create it")
    if scheduler is not None and not isinstance(scheduler, Integrable):
        raise ConfigurationError(f"install(app, scheduler) takes a onebeat.Scheduler, not {type(scheduler).__name__}")


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
def _served_by(app: Starlette, scheduler: Integrable | None) -> App:
    """Return the application as it was; the scheduler is the active one during each request."""
    served: App = MethodType(type(app).__call__, app)
    if scheduler is None:
        return served
    integration = integration_of(scheduler)
    activate = integration.activate

    async def active(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and not integration.started:
            integration.served_idle(mounted=scope.get("app") not in (None, app))
        with activate():
            await served(scope, receive, send)

    return active


def _replace_call(app: Starlette, served: App) -> None:
    """Override `__call__` in a subclass made for this one app.

    OpenTelemetry cannot instrument an app whose middleware stack is wrapped, and a wrapper object would no longer be
    a FastAPI application.
    """

    base = type(app)
    names = {
        "__call__": staticmethod(served),  # not wrapped: a wrapper would cost each request one more call
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
class _LifespanWrapper:
    """Wraps an app's lifespan, also one that is set later: logs are outermost, the engine is innermost."""

    def __init__(self, scheduler: Integrable | None, *, tracked: bool, watchdog: Watchdog | None) -> None:
        self._scheduler = scheduler
        self._tracked = tracked
        self._watchdog = watchdog

    def around(self, former: Lifespan) -> Lifespan:
        """Return the lifespan to enter instead of `former`."""

        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[Any]:
            require_asyncio("install(app)")
            if _entering.get() is self:  # `include_router` merged it into another one, which starts the engine
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
        stack.push_async_callback(run_in_threadpool, log_setup.close_logs)  # it blocks until the writers have written

    async def _start_engine(self, stack: AsyncExitStack) -> None:
        if self._scheduler is not None:
            await self._scheduler.start()
            stack.push_async_callback(self._scheduler.stop)

    def _started(self) -> bool:
        return self._scheduler is not None and integration_of(self._scheduler).started

    def _is_started_by(self, former: Lifespan, before: bool) -> bool:
        """Return whether the app's own lifespan is the scheduler's, or has started the scheduler."""
        if self._scheduler is None:
            return False
        return former == self._scheduler.lifespan or (self._started() and not before)


def _replace_lifespan(app: Starlette, life: _LifespanWrapper) -> None:
    """Wrap the router's lifespan each time it is read, so that lifespans of routers included later are inside it."""
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
