"""The circuit breaker: a function that ended five child processes within a minute is refused for a while."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from onebeat.errors import Busy
from onebeat.offload.pool.calls import name_of


class CircuitBreaker:
    """Refuse a function that ended `limit` children within `window` seconds, until the oldest death is that old."""

    def __init__(self, limit: int = 5, window: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._window, self._clock = limit, window, clock
        self._deaths: dict[str, deque[float]] = {}

    def record_death(self, function: Callable[..., Any]) -> None:
        """Record that a child process died while it ran this function."""
        self._deaths.setdefault(name_of(function), deque(maxlen=self._limit)).append(self._clock())

    def check(self, function: Callable[..., Any]) -> None:
        """Raise `Busy` while the function is refused."""
        deaths = self._deaths.get(name_of(function))
        if deaths is None or len(deaths) < self._limit:
            return
        left = deaths[0] + self._window - self._clock()
        if left > 0:
            raise Busy(
                f"{name_of(function)} ended {self._limit} processes within {self._window:g} s and is not started for "
                f"another {left:.0f} s. Other functions are not affected. Look for WorkerProcessDied in the log."
            )
