"""Holding a lock while something happens to the back end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from onebeat.errors import LeaseLost
from onebeat.locks.base import LocksOn

HOUR = 3600
TTL = 1.5  # seconds
SLOW = 10.0  # seconds that a busy machine may add


async def loses(locks: LocksOn[Any], fault: Callable[[], Awaitable[object]]) -> int:
    """Hold a lock, let the fault happen, and be cancelled before the lease would have been over; its fence.

    Where the machine was too busy for a short lease, with a longer one.
    """
    for ttl in (TTL, 4 * TTL, 16 * TTL):
        lease = await locks.lock("a", ttl=ttl, wait=SLOW).acquire()
        begun = time.monotonic()
        happening = asyncio.ensure_future(fault())
        with pytest.raises(LeaseLost):
            await lost_body(lease, asyncio.Event().wait, ttl)
        took = time.monotonic() - begun
        await happening
        if took < ttl:
            return lease.fence
    raise AssertionError(f"the loss of a lease of {ttl} s was noticed after {took} s")


async def lost_body(lease: Any, work: Callable[[], Awaitable[object]], ttl: float = TTL) -> None:
    async with asyncio.timeout(ttl + SLOW), lease:
        await work()
        await asyncio.Event().wait()
