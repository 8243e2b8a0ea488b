"""The shortest back end there is, in this process's memory, and its contract as somebody else's project would run it.

`WITHOUT=…` takes one rule out, which the contract must notice.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from threading import Lock

import pytest

from onebeat.locks import LockInfo, LocksOn
from onebeat.testing.lock_contract import LockContract, MakeLocks

WITHOUT = os.environ.get("WITHOUT", "")


@dataclass(frozen=True)
class Row:
    """A lock's name, as etcd would keep it under a key."""

    owner: str
    fence: int
    expires: float  # seconds since 1970
    holder: str
    acquired: float


class Place:
    """What all back ends of one place share."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.mutex = Lock()


class MemoryBackend:
    """All that a `onebeat.locks.Backend` answers."""

    leased = True
    where = "memory"

    def __init__(self, place: Place) -> None:
        self.place = place

    def twin(self) -> MemoryBackend:
        return MemoryBackend(self.place)

    async def open(self, timeout: float) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Nothing to close."""

    async def acquire(self, name: str, owner: str, ttl: int, holder: str) -> int | None:
        with self.place.mutex:
            row, now = self.place.rows.get(name), time.time()
            theirs = row is not None and row.expires > now and (row.owner != owner or WITHOUT == "repeating")
            if theirs and WITHOUT != "exclusion":
                return None
            fence = 1 if row is None else row.fence + (WITHOUT != "growing fences")
            self.place.rows[name] = Row(owner, fence, now + ttl / 1e6, holder, now)
            return fence

    async def renew(self, name: str, owner: str, ttl: int) -> bool:
        with self.place.mutex:
            if WITHOUT == "renewal":
                return True
            row = self._mine(name, owner)
            if WITHOUT == "owner in renewal" or (WITHOUT == "expiry in renewal" and self._is_owner(name, owner)):
                row = self.place.rows.get(name)
            if row is None:
                return False
            self.place.rows[name] = replace(row, owner=owner, expires=max(row.expires, time.time() + ttl / 1e6))
            return True

    async def release(self, name: str, owner: str) -> bool:
        with self.place.mutex:
            row = self.place.rows.get(name)
            if row is None or not (self._is_owner(name, owner) or WITHOUT == "owner in release"):
                return False
            if WITHOUT != "release":
                self.place.rows[name] = replace(row, expires=0)
            return True

    async def holds(self, name: str, owner: str) -> bool:
        return self._mine(name, owner) is not None

    async def held(self) -> list[LockInfo]:
        return [self._info(name) for name, row in sorted(self.place.rows.items()) if row.expires > time.time()]

    async def force_release(self, name: str, reason: str, who: str) -> LockInfo | None:
        with self.place.mutex:
            row = self.place.rows.get(name)
            if row is None or row.expires <= time.time():
                return None
            info = self._info(name)
            self.place.rows[name] = replace(row, owner="", expires=0)
            return info

    def _is_owner(self, name: str, owner: str) -> bool:
        row = self.place.rows.get(name)
        return row is not None and row.owner == owner

    def _mine(self, name: str, owner: str) -> Row | None:
        row = self.place.rows.get(name)
        return row if row is not None and row.owner == owner and row.expires > time.time() else None

    def _info(self, name: str) -> LockInfo:
        row = self.place.rows[name]
        return LockInfo(
            name=name,
            fence=row.fence,
            holder=row.holder,
            acquired_at=datetime.fromtimestamp(row.acquired, UTC),
            expires_at=datetime.fromtimestamp(row.expires, UTC),
        )


class TestMemoryLocks(LockContract):
    @pytest.fixture
    def make_locks(self) -> MakeLocks:
        place = Place()
        return lambda: LocksOn(MemoryBackend(place))
