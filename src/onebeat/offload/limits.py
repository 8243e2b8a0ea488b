"""What a function off the event loop may ask: has it been told to stop, and how much time is left."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta

OVER = "its time is over"  # the reason of a limit that its time has reached


def checkpoint() -> None:
    """Return at once, or leave the function when it has been told to stop or its time is over.

    Leaving is `asyncio.CancelledError`, which ``except Exception`` does not swallow; whoever awaits the call sees a
    `TimeoutError` or its own cancellation. Outside any limited call nothing happens.

    >>> checkpoint()
    >>> with within(0):
    ...     checkpoint()
    Traceback (most recent call last):
    asyncio.exceptions.CancelledError: its time is over
    """
    limit = _current.get()
    if limit is not None:
        limit.check()


def remaining() -> float | None:
    """Seconds left before the timeout of the running call; 0 once it should stop; None when it has no timeout.

    Pass it on, so that a library gives up before its caller does: ``requests.get(url, timeout=remaining())``.

    >>> remaining() is None
    True
    >>> with within(60):
    ...     59 < remaining() <= 60
    True
    """
    limit = _current.get()
    if limit is None:
        return None
    if limit.reason is not None:
        return 0.0
    return None if limit.deadline is None else max(0.0, limit.deadline - time.monotonic())


@contextmanager
def within(seconds: float | None) -> Iterator[Limit]:
    """Limit what runs inside: `checkpoint()` and `remaining()` there know this time, or an earlier one outside."""
    limit = Limit(seconds)
    token = _current.set(limit)
    try:
        yield limit
    finally:
        _current.reset(token)


def in_seconds(value: float | timedelta | None, name: str = "timeout") -> float | None:
    """A duration in seconds, or None for none, which infinity is too; `TypeError` or `ValueError` for anything else.

    >>> in_seconds(timedelta(minutes=1)), in_seconds(0.5), in_seconds(math.inf)
    (60.0, 0.5, None)
    """
    if value is None:
        return None
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r:.80} is no duration; give seconds as a number, or a timedelta")
    if math.isnan(value):
        raise ValueError(f"{name}=nan is no duration; give seconds as a number, or a timedelta")
    return None if value == math.inf else value


class Limit:
    """A deadline and a stop flag; the limit in force where it is made limits it too."""

    __slots__ = ("_outer", "_reason", "deadline")

    def __init__(self, seconds: float | None = None) -> None:
        self._outer = outer = _current.get()
        self._reason: str | None = None
        self.deadline = None if seconds is None else time.monotonic() + seconds
        """Instant of `time.monotonic`, or None for no limit of time."""
        if outer is not None and outer.deadline is not None:
            self.deadline = outer.deadline if self.deadline is None else min(self.deadline, outer.deadline)

    @property
    def reason(self) -> str | None:
        """Why the function should stop; None while it may go on."""
        if self._reason is None and self._outer is not None:
            return self._outer.reason
        return self._reason

    @property
    def over(self) -> bool:
        """Whether its time is over, or it was stopped because it is: a timer may come a moment early."""
        return self.reason == OVER or self._past

    @property
    def _past(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def stop(self, reason: str) -> None:
        """Let the next `checkpoint()` leave the function; the first reason stays."""
        if self._reason is None:
            self._reason = reason

    def check(self) -> None:
        """Raise `asyncio.CancelledError` if the function should stop."""
        reason = self.reason
        if reason is None and self._past:
            reason = OVER
        if reason is not None:
            raise asyncio.CancelledError(reason)

    def patience(self, most: float) -> float:
        """Seconds to wait before looking again: `most`, or less when the deadline comes first."""
        return most if self.deadline is None else min(most, max(0.001, self.deadline - time.monotonic()))

    def enter(self) -> None:
        """Make this the limit in force for the rest of the present context."""
        _current.set(self)


_current: ContextVar[Limit | None] = ContextVar("onebeat_limit", default=None)
