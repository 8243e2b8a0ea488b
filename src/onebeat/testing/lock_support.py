"""What the parts of the lock contract share: how long to wait, how to be patient, an answer that comes late."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from onebeat.errors import LeaseLost
from onebeat.locks.base import LocksOn

MakeLocks = Callable[[], LocksOn[Any]]
OpenLocks = Callable[[], Awaitable[LocksOn[Any]]]
SHORT = 1.0  # seconds: the lease of locks that are to run out or to be renewed
LONGER = (SHORT, 4.0, 12.0)  # seconds: where a machine is too busy to renew the shorter ones in time
WITHIN = 20.0  # seconds for anything that must come about; machines that run tests are slow


async def patiently(work: Callable[[float], Awaitable[None]]) -> None:
    """Do what needs a renewed lease of so many seconds; with longer ones where the machine was too slow for that."""
    for ttl in LONGER[:-1]:
        try:
            return await work(ttl)
        except LeaseLost:
            continue
    return await work(LONGER[-1])


class LateAnswer:
    """A back end whose grants are `granted` where the lock lives, and answered when they are `heard`."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.granted = asyncio.Event()
        self.heard = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    async def acquire(self, name: str, owner: str, ttl: int, holder: str) -> int | None:
        """As the back end does, but for the answer."""
        fence: int | None = await self._backend.acquire(name, owner, ttl, holder)
        self.granted.set()
        await self.heard.wait()
        return fence
