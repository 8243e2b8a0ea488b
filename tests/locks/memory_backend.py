"""A complete back end in the memory of this process, with its contract as another project would run it.

The environment variable `WITHOUT` names one rule to leave out, which the contract must notice.
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


class MemoryStore:
    """The rows that all back ends of one store share."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.mutex = Lock()


class MemoryBackend:
    """All that a `onebeat.locks.Backend` answers."""

    leased = True
    where = "memory"

    def __init__(self, store: MemoryStore) -> None:
        self.store = store

    def twin(self) -> MemoryBackend:
        return MemoryBackend(self.store)

    async def open(self, timeout: float) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Nothing to close."""

    async def acquire(self, name: str, owner: str, ttl: int, holder: str) -> int | None:
        with self.store.mutex:
            row, now = self.store.rows.get(name), time.time()
            theirs = row is not None and row.expires > now and (row.owner != owner or WITHOUT == "repeating")
            if theirs and WITHOUT != "exclusion":
                return None
            fence = 1 if row is None else row.fence + (WITHOUT != "growing fences")
            self.store.rows[name] = Row(owner, fence, now + ttl / 1e6, holder, now)
            return fence

    async def renew(self, name: str, owner: str, ttl: int) -> bool:
        with self.store.mutex:
            if WITHOUT == "renewal":
                return True
            row = self._mine(name, owner)
            if WITHOUT == "owner in renewal" or (WITHOUT == "expiry in renewal" and self._is_owner(name, owner)):
                row = self.store.rows.get(name)
            if row is None:
                return False
            self.store.rows[name] = replace(row, owner=owner, expires=max(row.expires, time.time() + ttl / 1e6))
            return True

    async def release(self, name: str, owner: str) -> bool:
        with self.store.mutex:
            row = self.store.rows.get(name)
            if row is None or not (self._is_owner(name, owner) or WITHOUT == "owner in release"):
                return False
            if WITHOUT != "release":
                self.store.rows[name] = replace(row, expires=0)
            return True

    async def holds(self, name: str, owner: str) -> bool:
        return self._mine(name, owner) is not None

    async def held(self) -> list[LockInfo]:
        return [self._info(name) for name, row in sorted(self.store.rows.items()) if row.expires > time.time()]

    async def force_release(self, name: str, reason: str, who: str) -> LockInfo | None:
        with self.store.mutex:
            row = self.store.rows.get(name)
            if row is None or row.expires <= time.time():
                return None
            info = self._info(name)
            self.store.rows[name] = replace(row, owner="", expires=0)
            return info

    def _is_owner(self, name: str, owner: str) -> bool:
        row = self.store.rows.get(name)
        return row is not None and row.owner == owner

    def _mine(self, name: str, owner: str) -> Row | None:
        row = self.store.rows.get(name)
        return row if row is not None and row.owner == owner and row.expires > time.time() else None

    def _info(self, name: str) -> LockInfo:
        row = self.store.rows[name]
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
        store = MemoryStore()
        return lambda: LocksOn(MemoryBackend(store))
