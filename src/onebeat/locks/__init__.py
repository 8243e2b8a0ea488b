"""One Lock interface: database, file, Redis."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onebeat.locks.backend import Backend as Backend, LockInfo as LockInfo
    from onebeat.locks.base import LocksOn as LocksOn
    from onebeat.locks.database import DatabaseLocks as DatabaseLocks
    from onebeat.locks.file import FileLocks as FileLocks
    from onebeat.locks.guard import fence_guard as fence_guard
    from onebeat.locks.protocol import Lease as Lease, Lock as Lock, Locks as Locks, SyncLease as SyncLease
    from onebeat.locks.redis import RedisLocks as RedisLocks

_HOME = {
    "Backend": "backend",
    "DatabaseLocks": "database",
    "FileLocks": "file",
    "Lease": "protocol",
    "Lock": "protocol",
    "LockInfo": "backend",
    "Locks": "protocol",
    "LocksOn": "base",
    "RedisLocks": "redis",
    "SyncLease": "protocol",
    "fence_guard": "guard",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module 'onebeat.locks' has no attribute {name!r}") from None
    return getattr(import_module(f"onebeat.locks.{home}"), name)


def __dir__() -> list[str]:
    return __all__
