"""A back end on an event loop of its own, for callers that have no event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from onebeat.concurrency.forks import ForkSafeLock
from onebeat.concurrency.portal import Portal
from onebeat.errors import ConfigurationError, NotStarted
from onebeat.locks.backend import Backend

B = TypeVar("B", bound=Backend)
R = TypeVar("R")

START_TIMEOUT = 30.0  # seconds


class SyncBackend(Generic[B]):
    """Opens a back end on a portal when it is first needed, and blocks until what it is asked has been answered.

    `make` returns a back end that is not open. A forked child opens one of its own.
    """

    def __init__(self, make: Callable[[], B]) -> None:
        self._make = make
        self._mutex = ForkSafeLock()
        self._portal = Portal("onebeat-locks")
        self._backend: B | None = None

    def backend(self, timeout: float = START_TIMEOUT) -> B:
        """Return the back end, opened on the portal's event loop within `timeout` seconds.

        Raises `ConfigurationError` on an event loop, and what opening raises.
        """
        refuse_on_loop()
        with self._mutex:
            if self._backend is not None and self._portal.running:
                return self._backend
            self._portal.start()
            backend = self._make()
            try:
                self._portal.run(backend.open(timeout))
            except BaseException:
                self._portal.stop()
                raise
            self._backend = backend
            return backend

    @property
    def running(self) -> bool:
        """Return whether the back end is open in this process."""
        return self._backend is not None and self._portal.running

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Block until `work` has ended on the portal's event loop; an interrupt of the caller cancels it.

        Raises `NotStarted` where the back end is closed.
        """
        if not self._portal.running:
            work.close()
            raise NotStarted("these locks are closed; open them first")
        return self._portal.run(work)

    def close(self) -> None:
        """Close the back end and end the thread; nothing happens when it was not opened in this process."""
        with self._mutex:
            backend, self._backend = self._backend, None
            try:
                if backend is not None and self._portal.running:
                    self._portal.run(backend.close())
            finally:
                self._portal.stop()


def refuse_on_loop() -> None:
    """Raise `ConfigurationError` where blocking would stop an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ConfigurationError("`with` on a lock would block this event loop; use `async with`, or go to a thread first")
