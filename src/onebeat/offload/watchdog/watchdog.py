"""The watchdog: a thread that notices a blocked event loop, and reports the line, the route or job, the tracking id."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Self

from onebeat.offload.limits import in_seconds
from onebeat.offload.pool.lanes import all_lanes
from onebeat.offload.watchdog.stalls import (
    Stall,
    TimeMeter,
    TimeSpent,
    describe_stall,
    find_stall,
    is_waiting_for_events,
)

log = logging.getLogger("onebeat.offload.watchdog")

LOCK_HELD = 0.5  # seconds for which another thread must hold the interpreter lock without a break to be reported.
# Python threads take turns of 5 ms; on a loaded machine a thread with the lock may have no processor for 0.3 s.
ONGOING = 10.0  # seconds after which a stall is reported before it is over


class Watchdog:
    """Watch one event loop, and log once per stall what blocked it and for how long.

    A loop is blocked when it does not answer for `limit` (seconds, or a `timedelta`) because it computes or waits in a
    blocking call. Time in which other processes had the processor, or other threads the interpreter, does not count,
    so a loaded machine raises no alarm. C code that holds the interpreter lock is reported late and without a stack.
    Its thread looks every quarter of `limit`, half as often while the loop only waits for events, and calls back on
    the loop only while that is at work. So a stall is certain to be found when it takes one and a half times `limit`.

    `stalls` is the number of stalls, `worst` the longest in seconds; `on_stall` is called on the watchdog's thread.

    >>> async def main():
    ...     with Watchdog(limit=0.05) as watchdog:
    ...         await asyncio.sleep(0.2)
    ...         time.sleep(0.3)  # blocks every other task
    ...         await asyncio.sleep(0.2)
    ...     return watchdog.stalls
    >>> asyncio.run(main())
    1
    """

    def __init__(self, limit: float | timedelta = 0.1, *, on_stall: Callable[[Stall], object] | None = None) -> None:
        seconds = in_seconds(limit, "limit")
        if seconds is None or seconds <= 0:
            raise ValueError(f"limit={limit} must be a positive number of seconds")
        self.limit, self.stalls, self.worst = seconds, 0, 0.0
        self._on_stall = on_stall
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to watch the running loop; must be called on that loop."""
        if self._thread is not None:
            raise RuntimeError("this watchdog is already started")
        self._stopped.clear()
        monitor = _LoopMonitor(self, asyncio.get_running_loop(), threading.get_ident(), threading.get_native_id())
        self._thread = threading.Thread(target=monitor.run, args=(self._stopped,), name="onebeat-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; returns at once."""
        self._stopped.set()
        self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def report(self, stall: Stall, context: contextvars.Context | None) -> None:
        """Count and log a stall that is over, in the context of the code that blocked the loop."""
        self.stalls += 1
        self.worst = max(self.worst, stall.seconds)
        log_stall(stall, context, "was blocked for")
        if self._on_stall is not None:
            self._on_stall(stall)


def log_stall(stall: Stall, context: contextvars.Context | None, verb: str) -> None:
    """Log one record in this context, so that it carries the tracking id of the code that blocked the loop."""
    around = contextvars.Context() if context is None else context.copy()
    extra = {"stall_seconds": round(stall.seconds, 3), "stall_where": stall.where, "stall_stack": stall.stack}
    around.run(log.warning, "%s", describe_stall(stall, verb), extra=extra)


class _LoopMonitor:
    """The state of one watched loop. Everything but `_pong` runs on the watchdog's thread."""

    def __init__(self, watchdog: Watchdog, loop: asyncio.AbstractEventLoop, ident: int, native: int) -> None:
        self._watchdog, self._loop, self._ident = watchdog, loop, ident
        self._meter = TimeMeter(ident, native)
        self._pings = 0
        self._answer: tuple[float, float] | None = None  # when the loop answered, and its CPU time then
        self._sent = self._own_lateness = 0.0
        self._before = self._last = TimeSpent()
        self._stall: Stall | None = None
        self._context: contextvars.Context | None = None
        self._is_logged = self._was_stopped = False
        self._is_resting = False  # no ping is on its way, because the loop only waited for events

    def run(self, stopped: threading.Event) -> None:
        """Look at the loop every quarter of the limit, half as often while it rests, until `stopped` or its end."""
        interval = self._watchdog.limit / 4
        try:
            with self._meter:
                self._last = self._meter.read()
                self._ping(self._last)
                while not stopped.wait(interval):
                    spent = self._meter.read()
                    self._check(spent, max(0.0, spent.at - self._last.at - interval))
                    interval = self._watchdog.limit / (2 if self._is_resting else 4)
        except RuntimeError:  # call_soon_threadsafe: the loop is closed
            log.debug("the watched event loop is closed")

    def _check(self, spent: TimeSpent, late: float) -> None:
        """Check the loop once; `late` is how many seconds after the planned time this thread woke up."""
        last, self._last = self._last, spent
        self._own_lateness += late
        if not self._loop.is_running():  # it has ended or is between two runs, so it blocks nothing
            if self._loop.is_closed():
                raise RuntimeError("the loop is closed")
            self._was_stopped = True
        elif self._was_stopped or (self._stall is None and self._report_held_lock(late, last, spent)):
            self._ping(spent)
        elif self._answer is None:
            if not self._is_resting:
                self._handle_missing_answer(spent)
        else:
            self._handle_answer(*self._answer)
            self._answer, self._stall, self._context, self._is_resting = None, None, None, True
        if self._is_resting and not self._waits_for_events(last, spent):
            self._ping(spent)

    def _ping(self, spent: TimeSpent) -> None:
        self._answer, self._stall, self._context = None, None, None
        self._own_lateness, self._is_logged, self._was_stopped, self._is_resting = 0.0, False, False, False
        self._before, self._sent = spent, time.monotonic()
        self._pings += 1
        self._loop.call_soon_threadsafe(self._pong, self._pings)

    def _waits_for_events(self, last: TimeSpent, spent: TimeSpent) -> bool:
        """Return whether the loop has nothing to do, so that no ping needs to wake it.

        A loop written in C shows the same frame while it runs a callback in C, which its processor time tells.
        """
        if spent.computed - last.computed >= self._watchdog.limit / 8:
            return False
        frame = sys._current_frames().get(self._ident)
        return frame is not None and is_waiting_for_events(frame)

    def _pong(self, number: int) -> None:
        if number == self._pings:
            self._answer = (time.monotonic(), time.thread_time())

    def _handle_missing_answer(self, spent: TimeSpent) -> None:
        waited = spent.at - self._sent
        if self._stall is not None:
            if not self._is_logged and waited > ONGOING:
                self._is_logged = True
                log_stall(self._stall.lasting(waited), self._context, "has been blocked for")
            return
        if waited < self._watchdog.limit or not self._is_blocked(waited, spent):
            return
        frame = sys._current_frames().get(self._ident)
        if frame is not None and self._answer is None and (found := find_stall(frame, self._loop)) is not None:
            self._stall, self._context = found

    def _is_blocked(self, waited: float, spent: TimeSpent) -> bool:
        """Return whether the loop itself spent the time: it computed, or it waited in a call."""
        limit = self._watchdog.limit
        if spent.computed - self._before.computed >= limit:
            return True
        return waited - self._own_lateness - (spent.delayed - self._before.delayed) >= limit

    def _handle_answer(self, at: float, computed: float) -> None:
        waited = at - self._sent
        if waited < self._watchdog.limit:
            return
        if self._stall is not None:
            self._watchdog.report(self._stall.lasting(waited), self._context)
        elif computed - self._before.computed >= self._watchdog.limit:
            self._watchdog.report(
                Stall(seconds=waited, where="a computation that ended before the watchdog could read its stack"), None
            )

    def _report_held_lock(self, late: float, last: TimeSpent, spent: TimeSpent) -> bool:
        """Report that the interpreter lock was held without a break: this thread was late though it had a processor."""
        held = late - (spent.own_delay - last.own_delay)
        if held < self._watchdog.limit:
            return False
        if spent.computed - last.computed >= self._watchdog.limit:
            where = "C code that held the interpreter lock; such work belongs in a process"
        elif held >= LOCK_HELD and spent.process - last.process >= LOCK_HELD:
            where = "C code on another thread that held the interpreter lock; such work belongs in a process"
            if calls := [call for lane in all_lanes() for call in lane.held(self._watchdog.limit)]:
                names = ", ".join(f"{call.function} for {call.seconds:.1f} s" for call in calls[:5])
                where += f"; running on lanes now: {names}"
        else:
            return False
        self._watchdog.report(Stall(seconds=held, where=where), None)
        return True
