"""The interface of every lock, wherever it lives: Locks, Lock, Lease."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from onebeat.locks.backend import LockInfo
from onebeat.locks.request import Seconds


class Lost(Protocol):
    """An event that is set once the lease is lost, or can no longer be trusted, and stays set."""

    def is_set(self) -> bool:
        """Whether it has happened; asks no server."""

    async def wait(self) -> bool:
        """Return True when it has happened."""


class SyncLost(Protocol):
    """As `Lost`, for threads."""

    def is_set(self) -> bool:
        """Whether it has happened; asks no server."""

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it has happened, at most `timeout` seconds; whether it has."""


class Lease(Protocol):
    """A lock that is held: what `async with lock as lease` gives, and `await lock.try_acquire()`.

    As a context manager it releases at the end, cancels its body when it is lost and raises `LeaseLost` then.
    """

    @property
    def name(self) -> str:
        """The lock's name."""

    @property
    def fence(self) -> int:
        """A number larger than every fence of this name before: let what you write to refuse a smaller one."""

    @property
    def lost(self) -> Lost:
        """Set once the lease is lost."""

    async def check(self) -> None:
        """Ask where the lock lives whether the lease is in force; raises `LeaseLost` when it is not."""

    async def release(self) -> None:
        """Give it back; raises `LeaseLost` when it was lost, or given back before."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class SyncLease(Protocol):
    """As `Lease`, for threads and scripts. A thread cannot be cancelled: ask `lost.is_set()` or `check()`."""

    @property
    def name(self) -> str:
        """The lock's name."""

    @property
    def fence(self) -> int:
        """A number larger than every fence of this name before."""

    @property
    def lost(self) -> SyncLost:
        """Set once the lease is lost."""

    def check(self) -> None:
        """As `Lease.check`, blocking."""

    def release(self) -> None:
        """As `Lease.release`, blocking."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Lock(Protocol):
    """A lock by name; making it does no I/O, and one object may be used again and by several tasks."""

    @property
    def name(self) -> str:
        """What excludes whom: all locks of one name in one place."""

    async def acquire(self) -> Lease:
        """Wait for the lock; raises `LockTimeout` when `wait` is over, or when this very task holds it."""

    async def try_acquire(self) -> Lease | None:
        """Try once, whatever `wait` says."""

    def acquire_sync(self) -> SyncLease:
        """As `acquire`, blocking, for threads and scripts."""

    def try_acquire_sync(self) -> SyncLease | None:
        """As `try_acquire`, blocking, for threads and scripts."""

    async def __aenter__(self) -> Lease: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __enter__(self) -> SyncLease: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Locks(Protocol):
    """Locks in one place, to be opened with `async with` (or `with`, in a script)."""

    def lock(self, name: str, *, ttl: Seconds = 30, wait: Seconds | None = None) -> Lock:
        """The lock of that name; `ttl` seconds is how long it outlives a process that died.

        `wait`: seconds to wait for it at most, 0 tries once, None waits without limit.
        Raises `ConfigurationError` for a name, `ttl` or `wait` that cannot work.
        """

    async def list(self) -> list[LockInfo]:
        """The locks that are held now, by name."""

    async def force_release(self, name: str, *, reason: str) -> bool:
        """Take a lock from whoever holds it, and record who did so and why; False: nobody held it."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...
