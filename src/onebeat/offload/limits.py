"""Time limits of functions that run off the event loop: `checkpoint()`, `remaining()` and the limits behind them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta

EXPIRED = "its time is over"  # the stop reason of a limit whose deadline has passed


def checkpoint() -> None:
    """Return at once, or leave the function when it was told to stop or its time is over.

    Leaving raises `asyncio.CancelledError`, which ``except Exception`` does not catch. The caller that awaits the
    function sees a `TimeoutError` or its own cancellation. Outside a call with a limit nothing happens.

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
    """Return the seconds left before the running call's timeout, 0 once it should stop, None without a timeout.

    Pass the value to a library, so that it gives up before the caller does: ``requests.get(url, timeout=remaining())``.

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
    """Limit the block to `seconds`: `checkpoint()` and `remaining()` inside use this limit or an earlier outer one."""
    limit = Limit(seconds)
    token = _current.set(limit)
    try:
        yield limit
    finally:
        _current.reset(token)


def in_seconds(value: float | timedelta | None, name: str = "timeout") -> float | None:
    """Return a duration in seconds; None and infinity mean no limit and give None.

    Raises `TypeError` for a value that is neither a number nor a `timedelta`, and `ValueError` for NaN.

    >>> in_seconds(timedelta(minutes=1)), in_seconds(0.5), in_seconds(math.inf)
    (60.0, 0.5, None)
    """
    if value is None:
        return None
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r:.80} is not a duration. Give seconds as a number, or a timedelta.")
    if math.isnan(value):
        raise ValueError(f"{name}=nan is not a duration. Give seconds as a number, or a timedelta.")
    return None if value == math.inf else value


class Limit:
    """A deadline and a stop flag for one call.

    A limit also ends with the limit that was active where it was created.
    """

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
        """Why the function should stop; None while it may continue."""
        if self._reason is None and self._outer is not None:
            return self._outer.reason
        return self._reason

    @property
    def expired(self) -> bool:
        """True when the deadline has passed, or the call was stopped because of it: a timer may fire slightly early."""
        return self.reason == EXPIRED or self._is_past_deadline

    @property
    def _is_past_deadline(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def stop(self, reason: str) -> None:
        """Make the next `checkpoint()` leave the function; only the first reason is kept."""
        if self._reason is None:
            self._reason = reason

    def check(self) -> None:
        """Raise `asyncio.CancelledError` if the function should stop."""
        reason = self.reason
        if reason is None and self._is_past_deadline:
            reason = EXPIRED
        if reason is not None:
            raise asyncio.CancelledError(reason)

    def bounded(self, seconds: float) -> float:
        """Return `seconds`, or the time until the deadline when that is shorter (at least 1 ms)."""
        return seconds if self.deadline is None else min(seconds, max(0.001, self.deadline - time.monotonic()))

    def activate(self) -> None:
        """Make this the active limit for the rest of the current context."""
        _current.set(self)


_current: ContextVar[Limit | None] = ContextVar("onebeat_limit", default=None)
