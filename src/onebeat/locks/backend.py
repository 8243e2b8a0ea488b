"""The seam between locks and where they live: what a back end answers, and what it must keep."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, Self, runtime_checkable


@dataclass(frozen=True, slots=True, kw_only=True)
class LockInfo:
    """A lock that is held, for people.

    `fence` is its holder's number, `holder` names host, process and program, `expires_at` is None where no lease is
    needed (a file: the kernel frees it with its process).
    """

    name: str
    fence: int
    holder: str | None
    acquired_at: datetime | None
    expires_at: datetime | None


class Backend(Protocol):
    """Where locks live. Calls come from one event loop; `twin` makes the same for another.

    `owner` is random for each acquisition (32 hex digits), `ttl` microseconds. A call whose answer was lost may be
    repeated with the same owner: repeating must be harmless and must answer as the first would have.
    What cannot be reached raises `DatabaseUnavailable`.
    """

    @property
    def leased(self) -> bool:
        """Whether a lease that is not renewed ends; False: it is held until released or until its process ends."""

    @property
    def where(self) -> str:
        """For messages, without secrets."""

    async def open(self, timeout: float) -> None:
        """Connect within `timeout` seconds."""

    async def close(self) -> None:
        """Close what `open` made; harmless when nothing is open."""

    def twin(self) -> Self:
        """The same back end for another thread's event loop; not open yet."""

    async def acquire(self, name: str, owner: str, ttl: int, holder: str) -> int | None:
        """Take the lock if nobody holds it, for `ttl` from now by the back end's clock; None: somebody does.

        The number is the fence: larger than every one given out for this name before.
        """

    async def renew(self, name: str, owner: str, ttl: int) -> bool:
        """Let the lease end no earlier than `ttl` from now; False: it has ended or was taken, which is for good."""

    async def release(self, name: str, owner: str) -> bool:
        """Give it back; False: it was not this owner's any more."""

    async def holds(self, name: str, owner: str) -> bool:
        """Whether this owner's lease is in force."""

    async def held(self) -> list[LockInfo]:
        """The locks in force, by name."""

    async def force_release(self, name: str, reason: str, who: str) -> LockInfo | None:
        """Take it from whoever holds it and keep a record of that; None: nobody held it."""


@runtime_checkable
class RenewsTogether(Protocol):
    """What a `Backend` may add where one request renews many locks; else each is renewed by a `renew` of its own."""

    async def renew_all(self, held: Sequence[tuple[str, str]], ttl: int) -> Collection[str]:
        """Do as `renew` for each name and owner, and return the owners whose lease is in force."""
