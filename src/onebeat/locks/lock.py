"""A lock by name on some back end: `async with`, `with`, and trying once."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from types import TracebackType
from typing import Protocol, TypeVar

from onebeat.errors import LeaseLost, LockTimeout
from onebeat.locks.lease import HeldLease
from onebeat.locks.request import LockRequest
from onebeat.locks.sync_lease import HeldSyncLease
from onebeat.timing.clock import SECOND

L = TypeVar("L", HeldLease, HeldSyncLease)


class Acquirer(Protocol):
    """What a lock asks of its `LocksOn`."""

    async def acquire(self, asked: LockRequest) -> HeldLease | None:
        """Wait as asked; None: the time is over."""

    def acquire_sync(self, asked: LockRequest) -> HeldSyncLease | None:
        """As `acquire`, blocking."""


class BackendLock:
    """The `Lock` of every back end here; it may be used again, and by several tasks and threads."""

    def __init__(self, locks: Acquirer, asked: LockRequest) -> None:
        self._locks = locks
        self._asked = asked
        self._entered: dict[HeldLease | HeldSyncLease, object] = {}  # to the task or thread that is inside

    @property
    def name(self) -> str:
        """What excludes whom."""
        return self._asked.name

    def __repr__(self) -> str:
        return f"<Lock {self.name!r} of {self._locks!r}>"

    async def acquire(self) -> HeldLease:
        """Wait for the lock; raises `LockTimeout` when `wait` is over, or when this very task holds it."""
        lease = await self._locks.acquire(self._asked)
        if lease is None:
            raise self._too_late()
        return lease

    async def try_acquire(self) -> HeldLease | None:
        """Try once, whatever `wait` says; None: somebody holds it."""
        try:
            return await self._locks.acquire(replace(self._asked, wait=0))
        except LockTimeout:  # this very task holds it
            return None

    def acquire_sync(self) -> HeldSyncLease:
        """As `acquire`, blocking, for threads and scripts."""
        lease = self._locks.acquire_sync(self._asked)
        if lease is None:
            raise self._too_late()
        return lease

    def try_acquire_sync(self) -> HeldSyncLease | None:
        """As `try_acquire`, blocking, for threads and scripts."""
        try:
            return self._locks.acquire_sync(replace(self._asked, wait=0))
        except LockTimeout:  # this very thread holds it
            return None

    async def __aenter__(self) -> HeldLease:
        lease = await self.acquire()
        await lease.__aenter__()
        self._entered[lease] = asyncio.current_task()
        return lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._left(HeldLease, asyncio.current_task()).__aexit__(kind, error, trace)

    def __enter__(self) -> HeldSyncLease:
        lease = self.acquire_sync()
        lease.__enter__()
        self._entered[lease] = threading.current_thread()
        return lease

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left(HeldSyncLease, threading.current_thread()).__exit__(kind, error, trace)

    def _left(self, kind: type[L], who: object) -> L:
        """The lease that `who` is leaving: the last one it entered, or the last of all where somebody else entered it
        (a generator that is closed in another thread, as `yield` dependencies are)."""
        inside = [(lease, by) for lease, by in list(self._entered.items()) if isinstance(lease, kind)]
        if not inside:
            raise LeaseLost(f"lock {self.name!r} was not entered, so it cannot be left")
        lease = next((lease for lease, by in reversed(inside) if by is who), inside[-1][0])
        del self._entered[lease]
        return lease

    def _too_late(self) -> LockTimeout:
        waited = "it was tried once" if not self._asked.wait else f"waited {self._asked.wait / SECOND:g} s"
        return LockTimeout(f"lock {self.name!r} is held by somebody else ({waited}); `locks.list()` says by whom")
