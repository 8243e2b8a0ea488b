"""ReplaceableClock: the clock of a scheduler, which a test may replace while the scheduler does not run."""

from __future__ import annotations

from onebeat.model.protocols import Clock


class ReplaceableClock:
    """Reads another clock, `source`."""

    __slots__ = ("source",)

    def __init__(self, source: Clock) -> None:
        self.source = source

    def now(self) -> int:
        """Wall clock, UTC microseconds since 1970."""
        return self.source.now()

    def boot(self) -> int:
        """Microseconds on a clock that never steps."""
        return self.source.boot()

    def monotonic(self) -> float:
        """Seconds on a clock that never steps."""
        return self.source.monotonic()
