"""The worker id under which this process may act at this moment."""

from __future__ import annotations

from typing import Protocol


class OwnLease(Protocol):
    """A worker's lease as its holder sees it."""

    @property
    def worker_id(self) -> str:
        """Whose lease it is."""

    @property
    def trusted(self) -> bool:
        """Whether the holder may still act under it; once False it stays False."""


class WorkerIdentity:
    """What every part of the engine asks before it acts: does this process hold a lease, and does it claim?"""

    __slots__ = ("claiming", "last_id", "lease")

    def __init__(self) -> None:
        self.lease: OwnLease | None = None
        self.claiming = False  # False before the start and from the beginning of a drain
        self.last_id = ""  # the worker id held last, for records written after its lease was lost

    def take(self, lease: OwnLease) -> None:
        """Act under this lease from now on."""
        self.lease, self.last_id = lease, lease.worker_id

    @property
    def trusted(self) -> bool:
        """Return whether this process holds a lease that it may still act under."""
        return self.lease is not None and self.lease.trusted

    @property
    def holder(self) -> str | None:
        """Return the worker id whose claimed jobs may run here, also during a drain; None without a trusted lease."""
        lease = self.lease
        return lease.worker_id if lease is not None and lease.trusted else None

    @property
    def claimant(self) -> str | None:
        """Return the worker id to fire and claim under; None without a trusted lease and during a drain."""
        return self.holder if self.claiming else None
