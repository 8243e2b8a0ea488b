"""The blocking form: an event loop on a thread of its own, and leases for `with`."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, TypeVar

from onebeat.errors import ConfigurationError, LeaseLost, NotStarted, OnebeatError
from onebeat.locks.backend import Backend
from onebeat.locks.hold import Hold
from onebeat.locks.lease import GiveBack, lost_words

log = logging.getLogger("onebeat.locks")

B = TypeVar("B", bound=Backend)
R = TypeVar("R")

START_TIMEOUT = 30.0  # seconds


class Portal(Generic[B]):
    """Runs a back end's verbs for callers that have no event loop; its thread starts on first use."""

    def __init__(self, make: Callable[[], B]) -> None:
        self._make = make
        self._mutex = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._backend: B | None = None
        self._pid = 0

    def backend(self, timeout: float = START_TIMEOUT) -> B:
        """The back end, opened on the portal's loop."""
        refuse_on_loop()
        with self._mutex:
            if self._backend is not None and self._pid == os.getpid():
                return self._backend
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, name="onebeat-locks", daemon=True)
            thread.start()
            backend = self._make()
            try:
                _wait(backend.open(timeout), loop)
            except BaseException:
                _end(loop, thread)
                raise
            self._loop, self._thread, self._backend, self._pid = loop, thread, backend, os.getpid()
            return backend

    @property
    def running(self) -> bool:
        """Whether its thread runs in this process."""
        return self._loop is not None and self._pid == os.getpid()

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Block until `work` has ended on the portal's loop; interrupting the caller cancels it."""
        loop = self._loop
        if loop is None:
            work.close()
            raise NotStarted("these locks are closed; open them first")
        return _wait(work, loop)

    def close(self) -> None:
        """Close the back end and end the thread; harmless when it never ran."""
        with self._mutex:
            loop, thread, backend = self._loop, self._thread, self._backend
            self._loop = self._thread = self._backend = None
            if loop is None or thread is None or backend is None or self._pid != os.getpid():
                return
            try:
                _wait(backend.close(), loop)
            finally:
                _end(loop, thread)


def refuse_on_loop() -> None:
    """Raise `ConfigurationError` where blocking would stop an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ConfigurationError("`with` on a lock would block this event loop; use `async with`, or go to a thread first")


def _wait(work: Coroutine[Any, Any, R], loop: asyncio.AbstractEventLoop) -> R:
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


class ThreadLost:
    """`lease.lost` in a thread."""

    def __init__(self, hold: Hold) -> None:
        self._hold = hold
        self._event = threading.Event()
        hold.on_loss(self._event.set)

    def is_set(self) -> bool:
        """Whether it is lost; true from the moment its deadline has passed."""
        return self._hold.expire()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it is lost, at most `timeout` seconds; whether it is."""
        until = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                return False
            self._event.wait(min((each for each in (left, self._hold.remaining) if each is not None), default=None))
        return True


class HeldSyncLease:
    """The `SyncLease` of every back end here."""

    def __init__(self, portal: Portal[Any], hold: Hold, give_back: GiveBack) -> None:
        self._portal = portal
        self._hold = hold
        self._give_back = give_back
        self._lost = ThreadLost(hold)

    @property
    def name(self) -> str:
        """The lock's name."""
        return self._hold.name

    @property
    def fence(self) -> int:
        """A number larger than every fence of this name before."""
        return self._hold.fence

    @property
    def lost(self) -> ThreadLost:
        """Set once the lease is lost."""
        return self._lost

    def check(self) -> None:
        """Ask where the lock lives; raises `LeaseLost`, or `DatabaseUnavailable` when nobody answers."""
        self._refuse_lost()
        if self._hold.over:
            raise LeaseLost(f"lock {self.name!r} was released; this lease holds nothing any more")
        backend = self._portal.backend()
        if not self._portal.run(_as_coroutine(backend.holds(self.name, self._hold.owner))):
            self._hold.lost("it ran out, or was taken by force, or where it lived was emptied")
        self._refuse_lost()

    def release(self) -> None:
        """Give it back; raises `LeaseLost` when it was lost or given back before."""
        self._refuse_lost()
        if not self._hold.end():
            self._refuse_lost()
            raise LeaseLost(f"lock {self.name!r} was released already; a lease is released once")
        if not self._return():
            raise LeaseLost(self._words("when it was to be released it was not this lease's any more"))

    def __enter__(self) -> HeldSyncLease:
        self._refuse_lost()
        thread = threading.current_thread()
        self._hold.holder, self._hold.alive = thread, thread.is_alive
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._hold.expire() or not self._hold.end():
            if self._hold.why is not None and error is None:
                raise LeaseLost(self._words(self._hold.why))
            return
        try:
            kept = self._return()
        except OnebeatError as trouble:
            log.warning("lock %r could not be released and ends with its lease: %s", self.name, trouble)
            return
        if not kept and error is None:
            raise LeaseLost(self._words("when its body ended it was not this lease's any more"))

    def _return(self) -> bool:
        return self._portal.run(_as_coroutine(self._give_back(self._portal.backend(), self._hold)))

    def _refuse_lost(self) -> None:
        if self._hold.expire():
            raise LeaseLost(self._words(self._hold.why))

    def _words(self, why: str | None) -> str:
        return lost_words(self.name, self._hold.fence, why)


async def _as_coroutine(work: Awaitable[R]) -> R:
    return await work
