"""How many rows the next transaction takes: fewer after a slow one, so that each ends within its limit of time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from onebeat.model.protocols import Clock

SLOW = 0.25  # of the limit: the batch after one that took longer is half as large
FAST = 0.05  # of the limit: the batch after a full one that took less is twice as large


class BatchSize:
    """The number of rows in the next batch: from 1 to `largest`. `limit` is the seconds that one transaction may take.

    A batch that was not written in its time is tried again as two halves, and so on, until it fits.
    """

    def __init__(self, largest: int, *, limit: float, clock: Clock) -> None:
        self.rows = largest
        self._largest = largest
        self._limit = limit
        self._clock = clock

    @contextmanager
    def writing(self, rows: int) -> Iterator[None]:
        """Measure the body, which writes a batch of `rows` rows, and set the size of the next batch."""
        began = self._clock.monotonic()
        try:
            yield
        except Exception:
            self._shrink(rows, self._clock.monotonic() - began)  # one that failed at once was not too large
            raise
        seconds = self._clock.monotonic() - began
        if seconds < FAST * self._limit and rows >= self.rows:
            self.rows = min(self._largest, 2 * self.rows)
        self._shrink(rows, seconds)

    def _shrink(self, rows: int, seconds: float) -> None:
        if seconds > SLOW * self._limit:
            self.rows = max(1, min(rows, self.rows) // 2)
