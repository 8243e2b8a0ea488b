"""The ledger: what really happened, written by the jobs themselves to a file that survives SIGKILL.

Each line is one `write()` to a file opened with O_APPEND, padded to a length that divides a memory page: lines of
several processes never mix, and a process killed in the middle of a write cannot leave half a line behind.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol
from uuid import UUID

LINE = 256  # bytes; 4096 is a multiple of it
EVENTS = ("start", "end", "error", "stopped", "worker", "lost", "refused", "mark")


def boot_us() -> int:
    """Microseconds since the host booted, suspended time included: one clock for all processes of a test."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


def wall_us() -> int:
    """UTC microseconds; the database servers of the tests run on the same host and read the same clock."""
    return time.time_ns() // 1000


class Attempt(Protocol):
    """What the ledger wants to know of a running attempt; `JobContext` has it."""

    id: UUID
    attempt: int
    fence: int
    schedule_id: str | None
    fire_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One event. `start`, `end`, `error`, `stopped` belong to an attempt; `worker`, `lost` to a worker id;
    `refused`: a settlement the database did not accept; `mark`: whatever the test wants to remember."""

    event: str
    boot: int
    wall: int
    pid: int
    job: UUID | None = None
    attempt: int = 0
    fence: int = 0
    worker: str | None = None
    schedule: str | None = None
    fire: int | None = None  # UTC microseconds
    note: str | None = None


class Ledger:
    """The append-only file."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._fd: int | None = None
        self._pid = 0

    def write(
        self,
        event: str,
        *,
        job: UUID | None = None,
        attempt: int = 0,
        fence: int = 0,
        worker: str | None = None,
        schedule: str | None = None,
        fire: int | None = None,
        note: str | None = None,
    ) -> None:
        """Append one line; it is in the kernel's hands when this returns."""
        assert event in EVENTS, event
        record = {
            "e": event,
            "b": boot_us(),
            "w": wall_us(),
            "p": os.getpid(),
            "j": None if job is None else job.hex,
            "a": attempt or None,
            "f": fence or None,
            "k": worker,
            "s": schedule,
            "t": fire,
            "n": note,
        }
        text = json.dumps({k: v for k, v in record.items() if v is not None}, separators=(",", ":"))
        data = text.encode().ljust(LINE - 1) + b"\n"
        assert len(data) == LINE, f"a ledger line has {LINE} bytes: {text}"
        written = os.write(self._file(), data)
        assert written == LINE, "a short write would break the ledger"

    def job(self, event: str, context: Attempt, note: str | None = None) -> None:
        """Append an event of the running attempt."""
        fire = context.fire_time
        self.write(
            event,
            job=context.id,
            attempt=context.attempt,
            fence=context.fence,
            schedule=context.schedule_id,
            fire=None if fire is None else round(fire.timestamp() * 1_000_000),
            note=note,
        )

    @contextmanager
    def attempt(self, context: Attempt) -> Iterator[None]:
        """Write `start`, then `end`, `error` or (when the attempt was cancelled) `stopped`."""
        self.job("start", context)
        try:
            yield
        except Exception as error:
            self.job("error", context, type(error).__name__)
            raise
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit) as error:
            self.job("stopped", context, type(error).__name__)
            raise
        self.job("end", context)

    def lines(self) -> list[Line]:
        """Everything written so far, in the order of the writes."""
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        whole = len(data) - len(data) % LINE
        return [_parsed(data[at : at + LINE]) for at in range(0, whole, LINE)]

    def count(self, event: str) -> int:
        """How many lines of this event there are."""
        return sum(line.event == event for line in self.lines())

    def size(self) -> int:
        """How many lines there are, without reading them."""
        return self.path.stat().st_size // LINE if self.path.exists() else 0

    def _file(self) -> int:
        if self._fd is None or self._pid != os.getpid():
            self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._pid = os.getpid()
        return self._fd


def _parsed(data: bytes) -> Line:
    record = json.loads(data)
    return Line(
        event=record["e"],
        boot=record["b"],
        wall=record["w"],
        pid=record["p"],
        job=UUID(hex=record["j"]) if "j" in record else None,
        attempt=record.get("a", 0),
        fence=record.get("f", 0),
        worker=record.get("k"),
        schedule=record.get("s"),
        fire=record.get("t"),
        note=record.get("n"),
    )


def until(ledger: Ledger, condition: Callable[[list[Line]], bool], timeout: float) -> list[Line]:
    """Poll the ledger until the condition holds; fails with what it holds after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        lines = ledger.lines()
        if condition(lines):
            return lines
        assert time.monotonic() < deadline, f"not seen within {timeout} s; {len(lines)} lines, the last: {lines[-3:]}"
        time.sleep(0.05)
