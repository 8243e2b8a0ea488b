"""Time that only moves when a test says so, in place of the database's own clock and of the process's clocks."""

from __future__ import annotations

SECOND = 1_000_000
START = 1_800_000_000 * SECOND  # a whole second; any instant would do


class VirtualClock:
    """Give it to `Database(database_clock=…)`: every transaction reads it instead of the database's clock."""

    def __init__(self, now: int = START) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> int:
        """Move on (or back, when negative); the new now, in microseconds."""
        self.now += round(seconds * SECOND)
        return self.now


class ProcessClock:
    """The `Clock` of an engine part: its three clocks all show the virtual time."""

    def __init__(self, time: VirtualClock) -> None:
        self.time = time

    def now(self) -> int:
        return self.time.now

    def boot(self) -> int:
        return self.time.now

    def monotonic(self) -> float:
        return self.time.now / SECOND
