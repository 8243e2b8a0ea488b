"""The writer: one thread that takes lines from a bounded queue and writes them to one sink in batches."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from onebeat.logs.queue import BYTES, RECORDS, SMALL, BoundedQueue, Bucket, Entry, lines_in

BATCH: Final = 1024 * 1024  # bytes; one write at a time
GATHER: Final = 0.02  # seconds a first line waits for company; a tenth of what a person notices
PATIENCE: Final = 1.0  # seconds a thread without an event loop waits for room, once, before lines are dropped
BACK_OFF: Final = (0.1, 5.0)  # seconds between tries at a sink that fails: first and longest
COMPLAIN: Final = 60.0  # seconds between two lines on stderr about the same sink


class SinkGone(Exception):
    """The sink cannot be written ever again (a closed pipe)."""


class Sink(Protocol):
    """Where lines end: a console or dated files. Called by one thread at a time."""

    name: str

    def write(self, batch: deque[Bucket]) -> None:
        """Write from the left and remove what is written; on an error the rest stays in the batch to be tried again."""

    def close(self) -> None:
        """Give back descriptors; a later write opens them again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterStats:
    """Counts of one sink since the process started."""

    sink: str
    waiting: int
    written: int
    lost: int
    errors: int


class Writer:
    """Queue, thread and sink. `put` never does I/O while the thread lives; after `retire` the caller writes by itself.

    `report` makes the entry that tells of lost lines: it is given the counts by level and the sink's name. `started` is
    called with the first line of each process.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        report: Callable[[dict[int, int], str], Entry],
        records: int = RECORDS,
        max_bytes: int = BYTES,
        patience: float = PATIENCE,
        started: Callable[[], None] = lambda: None,
    ) -> None:
        self.sink = sink
        self.queue = BoundedQueue(records=records, max_bytes=max_bytes)
        self._report = report
        self._patience = patience
        self._started = started
        self._hurry_at = max(1, min(records // 4, 2_000))
        self._complained = float("-inf")
        self._renew()

    def _renew(self) -> None:
        self._thread: threading.Thread | None = None
        self._start_lock = threading.RLock()
        self._io = threading.RLock()  # held by whoever writes: the thread, or a caller after `retire`
        self._pumping = False
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()  # its put() is safe in signal handlers
        self._awake = False  # the thread: it will look into the queue once more before it sleeps
        self._hurried = False
        self._batch: deque[Bucket] = deque()
        self._direct = False
        self._gone = False
        self._late = False  # given up at a deadline, not for good
        self._stuck = False
        self._errors = 0
        self._lost = 0
        self._written = 0

    # ── for callers ───────────────────────────────────────────────────────────────────────────────────────────────────
    def put(self, entry: Entry) -> None:
        """Take the line over. On an event loop this never waits; other threads wait briefly for room."""
        waiting = self.queue
        unsorted = waiting.unsorted
        _, _, line, failure = entry
        if len(unsorted) < waiting.free and failure is None and len(line) <= SMALL:
            unsorted.append(entry)  # one step, which no other thread and no signal can come into
        elif not waiting.put(entry, count=False) and not self._put_late(entry):
            return
        if self._direct or not self._awake:
            self._stir()
        elif not self._hurried and len(unsorted) + waiting.full_lines >= self._hurry_at:
            self._hurried = True
            self._bell.put(None)

    def _stir(self) -> None:
        """The thread sleeps, or there is none: see to it that the line is written."""
        if self._direct:
            self._pump()
        else:
            self._awake = True
            self._wake()

    def _put_late(self, entry: Entry) -> bool:
        """Room was short: wait for some, where that harms nobody; else count the loss."""
        if self._gone or self._stuck or self._direct or _on_event_loop() or self._thread is threading.current_thread():
            return self.queue.put(entry)
        deadline = time.monotonic() + self._patience
        self._bell.put(None)
        while time.monotonic() < deadline and not self._stuck:
            time.sleep(0.001)
            if self.queue.put(entry, count=False):
                return True
        self._stuck = True  # until the sink moves again: a dead sink costs this patience once, not at each line
        return self.queue.put(entry)

    def flush(self, timeout: float) -> bool:
        """Wait until every line put so far is written or given up; False when `timeout` seconds did not suffice."""
        target = self.queue.accepted
        deadline = time.monotonic() + timeout
        pause = 0.0005
        if self.queue.settled < target and not (self._gone and self._direct):
            self._wake()
        while self.queue.settled < target:
            if time.monotonic() >= deadline or (self._gone and self._direct):
                return False
            time.sleep(pause)
            pause = min(pause * 2, 0.01)
        return True

    def write_through(self) -> None:
        """Write what waits now, in the calling thread."""
        self._pump()

    def retire(self, timeout: float) -> int:
        """Write what waits, then let callers write by themselves; the number of lines the deadline left unwritten.

        For the end of a process: from here on nothing needs the thread, which the interpreter may end at any moment.
        """
        done = self.flush(timeout)
        self._direct = True
        self._bell.put(None)  # the thread ends
        if not done:
            self._late = not self._gone
            self._give_in()
            self._stuck = True
        elif self.queue.waiting or self.queue.lost():  # a line that came between the two steps above has nobody else
            self._pump()
        return 0 if done else self.queue.accepted - self.queue.settled

    def resume(self) -> None:
        """Back to the thread, after `retire`; a sink that was only too late then gets another chance."""
        if self._late:
            self._late = self._gone = self._stuck = False
            self.queue.open()
        if not self._gone:
            self._direct = False
            if self.queue.waiting:
                self._stir()

    def close_sink(self) -> None:
        """Give back the sink's descriptors, after `retire`; a line that still comes opens them again."""
        if self._io.acquire(timeout=1.0):  # else the thread is stuck in it
            try:
                self.sink.close()
            finally:
                self._io.release()

    def forked(self) -> None:
        """Begin anew in the child of a fork: the parent writes what was waiting."""
        self.queue.clear()
        self._renew()
        self.sink.close()

    def stats(self) -> WriterStats:
        return WriterStats(
            sink=self.sink.name,
            waiting=self.queue.waiting + lines_in(self._batch),
            written=self._written,
            lost=self._lost + sum(self.queue.lost().values()),
            errors=self._errors,
        )

    # ── the thread ────────────────────────────────────────────────────────────────────────────────────────────────────
    def _wake(self) -> None:
        if not self._direct and not self._start():
            self._direct = True  # the interpreter is ending: no new threads
        if self._direct:
            self._pump()
        else:
            self._bell.put(None)

    def _start(self) -> bool:
        with self._start_lock:
            if self._thread is not None and self._thread.is_alive():
                return True
            thread = threading.Thread(target=self._run, name=f"onebeat-logs-{self.sink.name}", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return False
            self._thread = thread
            self._started()
            return True

    def _run(self) -> None:
        while not self._ended():
            self._bell.get()
            self._gather()
            pause = 0.0
            while self._work_left() and not self._direct:
                with self._io:
                    failed = self._write_batch()
                if failed:
                    pause = min(max(pause * 2, BACK_OFF[0]), BACK_OFF[1])
                    self._pause(pause)
                else:
                    pause = 0.0
            self._awake = False
            if self.queue.waiting and not self._direct:  # put() may have seen us awake just before
                self._awake = True
                self._bell.put(None)

    def _ended(self) -> bool:
        """Whether callers write by themselves now; a thread that is wanted again later is a new one."""
        with self._start_lock:
            self._awake = False  # first: who puts a line after `resume` must find nobody awake
            ended = self._direct
            if ended:
                self._thread = None
            return ended

    def _work_left(self) -> bool:
        return bool(self.queue.waiting or self._batch or (self.queue.lost() and not self._gone))

    def _gather(self) -> None:
        """Let a few lines come together, unless there are many or someone is in a hurry."""
        try:
            if self.queue.waiting < self._hurry_at:
                self._bell.get(timeout=GATHER)
        except queue.Empty:
            pass
        self._hurried = False

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not self._direct:
            time.sleep(min(left, 0.1))

    def _pump(self) -> None:
        """Write what waits in the calling thread. A sink that fails or blocks now loses the line, counted."""
        while self._work_left() and self._pump_once():
            pass

    def _pump_once(self) -> bool:
        """True: look again, a signal handler may have logged at the very end."""
        if not self._io.acquire(timeout=1.0):
            return False  # the thread is stuck in the sink; the line stays in the queue
        try:
            if self._pumping:
                return False  # a signal handler in the middle of our own write: the outer call goes on
            self._pumping = True
            try:
                while self._work_left():
                    if not self._load():
                        return False  # a signal handler in the middle of our own put(): that one writes when it is done
                    if self._write_batch():
                        if self._direct:
                            self._give_up()
                        return False
            finally:
                self._pumping = False
        finally:
            self._io.release()
        return True

    def _write_batch(self) -> bool:
        """One batch to the sink; True when it failed and the rest of the batch is kept for another try."""
        self._load()
        if self._gone:
            self._give_up()
            return False
        before = lines_in(self._batch)
        try:
            self.sink.write(self._batch)
        except SinkGone:
            self._give_in()
        except Exception as error:  # noqa: BLE001 - a bad sink must never end the thread
            self._errors += 1
            self._complain(error)
            return True
        finally:
            done = before - lines_in(self._batch)
            self._written += done
            self.queue.settle(done)
            if done:
                self._stuck = False
        return False

    def _load(self) -> bool:
        """Take the next batch, unless a part of the last one is still to be written; False: there is nothing."""
        if not self._batch:
            self._batch = self.queue.take(BATCH)
            self._tell_of_losses()
        return bool(self._batch)

    def _tell_of_losses(self) -> None:
        """One line about lost lines, once there is room again."""
        if self._gone or self.queue.crowded:
            return
        lost = self.queue.report_lost()
        if lost:
            self._lost += sum(lost.values())
            self._batch.append(self.queue.own(self._report(lost, self.sink.name)))

    def _give_in(self) -> None:
        """The sink takes no line ever again."""
        self._gone = True
        self.queue.shut()

    def _give_up(self) -> None:
        self.queue.lose_all(self._batch)
        self.queue.settle(lines_in(self._batch))
        self._batch.clear()

    def _complain(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._complained < COMPLAIN:
            return
        self._complained = now
        complain(f"{self.sink.name}: {type(error).__name__}: {error}; tried again until it works")


def complain(problem: str) -> None:
    """One line on stderr, past all logging; silent where there is no stderr."""
    try:
        os.write(2, f"onebeat.logs: {problem}\n".encode(errors="backslashreplace"))
    except OSError:
        return


def _on_event_loop() -> bool:
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None
