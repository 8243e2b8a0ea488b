"""The bounded queue of log lines: when it is full, it drops the lines below WARNING first, and counts them."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable
from typing import Final

from onebeat.logs.failure import Failure, finished

Entry = tuple[float, int, bytes, Failure | None]
"""Moment of the record (seconds since 1970), level, line, and the exception still to be rendered into the line."""

RECORDS: Final = 10_000
BYTES: Final = 16 * 1024 * 1024
_WARNING: Final = logging.WARNING
SPAN: Final = (
    900  # seconds; no bucket holds lines of two quarters of an hour, so none holds lines of two dates in any zone
)
_BUCKET = 128 * 1024  # bytes; a larger bucket is left alone and a new one begun
_RESERVE = 0.8  # of the space may be filled by records under WARNING; the rest is kept for WARNING and above
_TOGETHER = 256  # lines that are put into a bucket together
SMALL: Final = 1024  # bytes; such lines may pass without a check of the space, `free` of them


class Bucket:
    """Lines of one quarter of an hour in the order in which they came, with their levels."""

    __slots__ = ("failures", "levels", "lines", "size", "span")

    def __init__(self, span: float) -> None:
        self.span = span  # quarters of an hour since 1970
        self.lines: list[bytes] = []
        self.levels: list[int] = []
        self.failures: dict[int, Failure] = {}  # by position in `lines`
        self.size = 0

    @property
    def moment(self) -> float:
        """A moment in the bucket's quarter of an hour, in seconds since 1970."""
        return self.span * SPAN

    def render(self) -> list[bytes]:
        """Put the exceptions into their lines; returns the lines, complete."""
        for position in list(self.failures):
            self.lines[position] = finished(self.lines[position], self.failures[position])
            del self.failures[position]  # one by one: a second try after an error renders none twice
        return self.lines

    def drop_low(self) -> list[int]:
        """Remove the lines under WARNING; returns their levels."""
        kept = [position for position, level in enumerate(self.levels) if level >= _WARNING]
        dropped = [level for level in self.levels if level < _WARNING]
        self.failures = {new: self.failures[old] for new, old in enumerate(kept) if old in self.failures}
        self.lines = [self.lines[position] for position in kept]
        self.levels = [self.levels[position] for position in kept]
        self.size = sum(map(len, self.lines)) + sum(failure.size() for failure in self.failures.values())
        return dropped

    def remove_first(self, count: int) -> None:
        """Take away lines that are written; only after `render`."""
        del self.lines[:count]
        del self.levels[:count]


class BoundedQueue:
    """Lines on their way to one sink; bounded in records and in bytes; `put` and `take` never wait.

    While there is room for sure, a small line may go straight to the end of `unsorted`: see `Writer.put`.

    DEBUG and INFO are refused once the queue is four fifths full. WARNING and above are refused only when the queue is
    full of nothing else: before that, waiting lines under WARNING make room. Whatever is lost is counted by level.

    >>> queue = BoundedQueue(records=5)
    >>> [queue.put((0.0, logging.INFO, b"{}", None)) for _ in range(6)]
    [True, True, True, True, False, False]
    >>> [queue.put((0.0, logging.ERROR, b"{}", None)) for _ in range(6)]
    [True, True, True, True, True, False]
    >>> queue.lost()
    {20: 6, 40: 1}
    """

    def __init__(self, *, records: int = RECORDS, max_bytes: int = BYTES) -> None:
        self._max_records = records
        self._max_bytes = max_bytes
        self._low_records = int(records * _RESERVE)
        self._low_bytes = int(max_bytes * _RESERVE)
        self.clear()

    def clear(self) -> None:
        """Empty and as new, its lock too: for the child of a fork, whose parent still writes what was waiting."""
        self._lock = threading.RLock()
        self._inside = False  # held by this thread: a signal handler or a finalizer logs in the middle of a call here
        self._shut = False
        self.unsorted: list[Entry] = []  # the newest lines, not yet in buckets
        self._full: deque[Bucket] = deque()  # buckets that grow no more, and sums over them:
        self.full_lines = 0
        self._full_bytes = 0
        self._last = Bucket(-1.0)  # the newest bucket
        self._lost: dict[int, int] = {}
        self._taken = 0  # lines ever taken or given up
        self.settled = 0  # of these, written or given up
        self._measure()

    def shut(self) -> None:
        """Let nothing in any more; what waits can still be taken."""
        with self._lock:
            self._shut = True
            self._measure()

    def open(self) -> None:
        """Let lines in again."""
        with self._lock:
            self._shut = False
            self._measure()

    def _measure(self) -> None:
        """How many small lines of any level fit in for sure: so many may pass without a check of the space there is."""
        room = self._low_bytes - self._full_bytes - self._last.size
        self.free = 0 if self._shut else min(self._low_records - self._sorted, room // SMALL)

    @property
    def _sorted(self) -> int:
        return self.full_lines + len(self._last.lines)

    @property
    def waiting(self) -> int:
        """Lines in the queue."""
        return self._sorted + len(self.unsorted)

    @property
    def accepted(self) -> int:
        """Lines ever let in."""
        with self._lock:  # nothing is on its way into a bucket
            return self._taken + self.waiting

    @property
    def crowded(self) -> bool:
        """More than half full: not the moment to report losses."""
        size = self._full_bytes + self._last.size
        return self.waiting * 2 > self._max_records or size * 2 > self._max_bytes

    def put(self, entry: Entry, *, count: bool = True) -> bool:
        """True: the line waits to be written. False: there was no room; counted as lost unless `count` is False."""
        with self._lock:
            if self._inside:
                self.unsorted.append(entry)
                return True
            self._inside = True
            try:
                self._sort()
                level, size = entry[1], _size(entry)
                if level < _WARNING:
                    records, room = self._low_records, self._low_bytes
                else:
                    records, room = self._max_records, self._max_bytes
                full = self._sorted >= records or self._full_bytes + self._last.size + size > room
                if self._shut or (full and (level < _WARNING or not self._shed(size))):
                    if count:
                        self.lose(level)
                    return False
                self._add(entry, size)
                return True
            finally:
                try:
                    self._measure()
                finally:  # a signal handler may raise in there; left True, nothing would ever leave the queue again
                    self._inside = False

    def _sort(self) -> None:
        """Put the newest lines into buckets."""
        while self.unsorted:
            entries = self.unsorted[:_TOGETHER]
            del self.unsorted[: len(entries)]  # what was added meanwhile stands behind them
            moments, levels, lines, failures = zip(*entries, strict=True)
            span = moments[0] // SPAN
            if span == min(moments) // SPAN == max(moments) // SPAN and not any(failures):
                bucket = self._bucket(span)
                bucket.lines += lines
                bucket.levels += levels
                bucket.size += sum(map(len, lines))
            else:
                for entry in entries:
                    self._add(entry, _size(entry))

    def _add(self, entry: Entry, size: int) -> None:
        created, level, line, failure = entry
        bucket = self._bucket(created // SPAN)
        if failure is not None:
            bucket.failures[len(bucket.lines)] = failure
        bucket.lines.append(line)
        bucket.levels.append(level)
        bucket.size += size

    def _bucket(self, span: float) -> Bucket:
        """The newest bucket if it is of this quarter of an hour and not too large, else a new one."""
        last = self._last
        return last if last.span == span and last.size <= _BUCKET else self._begin(span)

    def _begin(self, span: float) -> Bucket:
        """Leave the newest bucket as it is and begin another."""
        done = self._last
        if done.lines:
            self._full.append(done)
            self.full_lines += len(done.lines)
            self._full_bytes += done.size
        self._last = Bucket(span)
        return self._last

    def take(self, max_bytes: int) -> deque[Bucket]:
        """The oldest buckets, up to about `max_bytes` of them; they no longer count as waiting."""
        taken: deque[Bucket] = deque()
        with self._lock:
            if self._inside:
                return taken
            self._inside = True
            try:
                self._sort()
                if self._full_bytes < max_bytes:
                    self._begin(-1.0)
                while self._full and max_bytes > 0:
                    bucket = self._full.popleft()
                    max_bytes -= bucket.size
                    self._full_bytes -= bucket.size
                    self.full_lines -= len(bucket.lines)
                    self._taken += len(bucket.lines)
                    taken.append(bucket)
            finally:
                try:
                    self._measure()
                finally:  # a signal handler may raise in there; left True, nothing would ever leave the queue again
                    self._inside = False
        return taken

    def _shed(self, size: int) -> bool:
        """Give up what waits under WARNING; True if a line of this size has room now.

        One pass for each time the queue fills with such lines: while there are none, nothing is looked at twice.
        """
        self._begin(-1.0)
        if any(level < _WARNING for bucket in self._full for level in bucket.levels):
            for bucket in self._full:
                for level in bucket.drop_low():
                    self.lose(level)
                    self._taken += 1
                    self.settled += 1
            self.full_lines = lines_in(self._full)
            self._full_bytes = sum(bucket.size for bucket in self._full)
        return self.full_lines < self._max_records and self._full_bytes + size <= self._max_bytes

    def own(self, entry: Entry) -> Bucket:
        """A bucket of one line that enters the batch past the queue (the report of losses)."""
        bucket = Bucket(entry[0] // SPAN)
        bucket.lines.append(entry[2])
        bucket.levels.append(entry[1])
        with self._lock:
            self._taken += 1
        return bucket

    def settle(self, count: int) -> None:
        """Count lines that were taken and need no more waiting for: written, or given up."""
        with self._lock:
            self.settled += count

    def lose(self, level: int) -> None:
        """Count a line that could not be written."""
        with self._lock:
            self._lost[level] = self._lost.get(level, 0) + 1

    def lose_all(self, buckets: Iterable[Bucket]) -> None:
        """Count taken lines that could not be written."""
        for bucket in buckets:
            for level in bucket.levels:
                self.lose(level)

    def lost(self) -> dict[int, int]:
        """How many were lost since the last call to `report_lost`, by level."""
        with self._lock:
            return dict(self._lost)

    def report_lost(self) -> dict[int, int]:
        """The same, and begin to count anew."""
        with self._lock:
            lost, self._lost = self._lost, {}
            return lost


def _size(entry: Entry) -> int:
    """Bytes of the line, and those its exception will roughly take."""
    _, _, line, failure = entry
    return len(line) if failure is None else len(line) + failure.size()


def lines_in(buckets: Iterable[Bucket]) -> int:
    """How many lines the buckets hold."""
    return sum(len(bucket.lines) for bucket in buckets)
