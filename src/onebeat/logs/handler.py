"""The handler for `logging`: it encodes records on the calling thread and passes the lines to its writers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from onebeat.logs.filter import TrackingFilter
from onebeat.logs.record import RecordEncoder
from onebeat.logs.writer import Writer, WriterStats

FLUSH_TIMEOUT = 5.0  # seconds; of `logging.shutdown` and of `dictConfig`, which flush every handler they find


class LogHandler(logging.Handler):
    """One encoder in front of any number of writers, none included.

    It has no lock, so no thread ever waits for another one here, and `close()` ends nothing: `dictConfig` closes every
    handler it finds, also those that stay in use.
    """

    def __init__(
        self, encoder: RecordEncoder, writers: Sequence[Writer] = (), *, write_through: int | None = None
    ) -> None:
        super().__init__()
        self._encode = encoder.encode
        self.writers = tuple(writers)
        self._write_through = write_through

    def createLock(self) -> None:
        self.lock = None

    def addFilter(self, filter: Any) -> None:
        """As in the base class; the `TrackingFilter` is left out, since the encoder reads the context itself."""
        if not isinstance(filter, TrackingFilter):
            super().addFilter(filter)

    def handle(self, record: logging.LogRecord) -> bool:
        """As in the base class, without taking a lock."""
        if self.filters:
            passed: object = self.filter(record)
            if not passed:
                return False
            if isinstance(passed, logging.LogRecord):
                record = passed
        if self.writers:
            entry = self._encode(record)
            for writer in self.writers:
                writer.put(entry)
            if self._write_through is not None and entry[1] >= self._write_through:
                for writer in self.writers:
                    writer.write_through()
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """For who calls it past `handle`: encode once, hand over to each writer."""
        self.handle(record)

    def flush(self, timeout: float = FLUSH_TIMEOUT) -> bool:  # type: ignore[override]  # says whether all is written
        """Wait until everything logged so far is written; False after `timeout` seconds."""
        done = [writer.flush(timeout) for writer in self.writers]  # each of them, also after one that is stuck
        return all(done)

    def retire(self, timeout: float) -> int:
        """Write what waits, then write in the caller from now on; the number of lines the deadline left unwritten."""
        return sum(writer.retire(timeout) for writer in self.writers)

    def resume(self) -> None:
        """Back to the writers' threads, after `retire`."""
        for writer in self.writers:
            writer.resume()

    def forked(self) -> None:
        """Begin anew in the child of a fork."""
        for writer in self.writers:
            writer.forked()

    def stats(self) -> list[WriterStats]:
        """Counts of each sink."""
        return [writer.stats() for writer in self.writers]
