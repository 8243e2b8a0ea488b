"""A held lock in a thread: `with lock`, and a loss that the thread can wait for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable
from types import TracebackType
from typing import Any, TypeVar

from onebeat.errors import LeaseLost, OnebeatError
from onebeat.locks.hold import REFUSED, Hold
from onebeat.locks.lease import GiveBack, describe_loss
from onebeat.locks.sync_backend import SyncBackend

log = logging.getLogger("onebeat.locks")

R = TypeVar("R")


class ThreadLost:
    """`lease.lost` in a thread."""

    def __init__(self, hold: Hold) -> None:
        self._hold = hold
        self._event = threading.Event()
        hold.on_loss(self._event.set)

    def is_set(self) -> bool:
        """Return whether it is lost; true from the moment its deadline has passed."""
        return self._hold.expire()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it is lost, at most `timeout` seconds, and return whether it is."""
        until = None if timeout is None else self._hold.elapsed() + timeout
        while not self.is_set():
            left = None if until is None else until - self._hold.elapsed()
            if left is not None and left <= 0:
                return False
            self._event.wait(min((each for each in (left, self._hold.remaining) if each is not None), default=None))
        return True


class HeldSyncLease:
    """The `SyncLease` of every back end here."""

    def __init__(self, backend: SyncBackend[Any], hold: Hold, give_back: GiveBack) -> None:
        self._backend = backend
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
        holds = self._backend.backend().holds(self.name, self._hold.owner)
        if not self._backend.run(_as_coroutine(holds)):
            self._hold.lost(REFUSED)
        self._refuse_lost()

    def release(self) -> None:
        """Give it back; raises `LeaseLost` when it was lost or given back before."""
        self._refuse_lost()
        if not self._hold.end():
            self._refuse_lost()
            raise LeaseLost(f"lock {self.name!r} was released already; a lease is released once")
        if not self._return():
            raise LeaseLost(self._describe_loss("when it was to be released it was not this lease's any more"))

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
                raise LeaseLost(self._describe_loss(self._hold.why))
            return
        try:
            kept = self._return()
        except OnebeatError as trouble:
            log.warning("lock %r could not be released and ends with its lease: %s", self.name, trouble)
            return
        if not kept and error is None:
            raise LeaseLost(self._describe_loss("when its body ended it was not this lease's any more"))

    def _return(self) -> bool:
        return self._backend.run(_as_coroutine(self._give_back(self._backend.backend(), self._hold)))

    def _refuse_lost(self) -> None:
        if self._hold.expire():
            raise LeaseLost(self._describe_loss(self._hold.why))

    def _describe_loss(self, why: str | None) -> str:
        return describe_loss(self.name, self._hold.fence, why)


async def _as_coroutine(work: Awaitable[R]) -> R:
    return await work
