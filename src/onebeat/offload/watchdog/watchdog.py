"""The watchdog: a thread that notices a blocked event loop and names the line, the route or job, the tracking id."""

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
from onebeat.offload.watchdog.stalls import Meter, Spent, Stall, in_words, look

log = logging.getLogger("onebeat.offload.watchdog")

HELD = 0.5  # seconds another thread keeps the interpreter lock in one go; a crowd takes turns of 5 ms, but on a loaded
# machine whoever has the turn may have no processor, and this thread got none of them for 0.3 s
STILL = 10.0  # seconds after which a stall that goes on is said before it is over


class Watchdog:
    """Watches one event loop and says once per stall what blocked it, and for how long.

    A loop counts as blocked when it has not answered for `limit` (seconds, or a `timedelta`) that it spent itself:
    computing, or waiting in a blocking call. Time in which other processes had the processor, or other threads the
    interpreter, is not its own, so a loaded machine raises no alarm. C code that keeps the interpreter lock is reported
    late and without a stack. The cost is one callback on the loop every quarter of `limit`.

    `stalls` counts them, `worst` is the longest in seconds; `on_stall` is called on the watchdog's thread.

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
        """Begin to watch the running loop; called on it."""
        if self._thread is not None:
            raise RuntimeError("this watchdog watches already")
        self._stopped.clear()
        watch = _Watch(self, asyncio.get_running_loop(), threading.get_ident(), threading.get_native_id())
        self._thread = threading.Thread(target=watch.run, args=(self._stopped,), name="onebeat-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer; returns at once."""
        self._stopped.set()
        self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def report(self, stall: Stall, context: contextvars.Context | None) -> None:
        """Count a stall that is over and say it, in the context of what blocked the loop."""
        self.stalls += 1
        self.worst = max(self.worst, stall.seconds)
        say(stall, context, "stood still for")
        if self._on_stall is not None:
            self._on_stall(stall)


def say(stall: Stall, context: contextvars.Context | None, how: str) -> None:
    """One record, so that it carries the tracking id of the culprit."""
    around = contextvars.Context() if context is None else context.copy()
    extra = {"stall_seconds": round(stall.seconds, 3), "stall_where": stall.where, "stall_stack": stall.stack}
    around.run(log.warning, "%s", in_words(stall, how), extra=extra)


class _Watch:
    """One loop being watched. Everything but `_pong` happens on the watchdog's thread."""

    def __init__(self, dog: Watchdog, loop: asyncio.AbstractEventLoop, ident: int, native: int) -> None:
        self._dog, self._loop, self._ident = dog, loop, ident
        self._meter = Meter(ident, native)
        self._number = 0
        self._answer: tuple[float, float] | None = None  # when the loop answered, and its CPU time then
        self._sent = self._lost = 0.0
        self._before = self._last = Spent()
        self._stall: Stall | None = None
        self._context: contextvars.Context | None = None
        self._said = self._away = False

    def run(self, stopped: threading.Event) -> None:
        """Ask the loop for a sign of life every quarter of the limit."""
        interval = self._dog.limit / 4
        try:
            with self._meter:
                self._last = self._meter.read()
                self._ping(self._last)
                while not stopped.wait(interval):
                    self._look(max(0.0, self._meter.read().at - self._last.at - interval))
        except RuntimeError:  # call_soon_threadsafe: the loop is closed
            log.debug("the watched event loop is closed")

    def _look(self, late: float) -> None:
        """One look; `late` is how much later than meant this thread came to it."""
        spent, last = self._meter.read(), self._last
        self._last = spent
        self._lost += late
        if not self._loop.is_running():  # it has ended, or is between two runs: nobody waits for it
            if self._loop.is_closed():
                raise RuntimeError("the loop is closed")
            self._away = True
        elif self._away or (self._stall is None and self._lock_kept(late, last, spent)):
            self._ping(spent)
        elif self._answer is None:
            self._unanswered(spent)
        else:
            self._answered(*self._answer)
            self._ping(spent)

    def _ping(self, spent: Spent) -> None:
        self._answer, self._stall, self._context = None, None, None
        self._lost, self._said, self._away = 0.0, False, False
        self._before, self._sent = spent, time.monotonic()
        self._number += 1
        self._loop.call_soon_threadsafe(self._pong, self._number)

    def _pong(self, number: int) -> None:
        if number == self._number:
            self._answer = (time.monotonic(), time.thread_time())

    def _unanswered(self, spent: Spent) -> None:
        waited = spent.at - self._sent
        if self._stall is not None:
            if not self._said and waited > STILL:
                self._said = True
                say(self._stall.lasting(waited), self._context, "has stood still for")
            return
        if waited < self._dog.limit or not self._guilty(waited, spent):
            return
        frame = sys._current_frames().get(self._ident)
        if frame is not None and self._answer is None and (found := look(frame, self._loop)) is not None:
            self._stall, self._context = found

    def _guilty(self, waited: float, spent: Spent) -> bool:
        """Whether the loop itself spent the time: computing, or waiting in a call while it could have run."""
        limit = self._dog.limit
        if spent.computed - self._before.computed >= limit:
            return True
        return waited - self._lost - (spent.delayed - self._before.delayed) >= limit

    def _answered(self, at: float, computed: float) -> None:
        waited = at - self._sent
        if waited < self._dog.limit:
            return
        if self._stall is not None:
            self._dog.report(self._stall.lasting(waited), self._context)
        elif computed - self._before.computed >= self._dog.limit:
            self._dog.report(Stall(seconds=waited, where="a computation that was over before anybody could look"), None)

    def _lock_kept(self, late: float, last: Spent, spent: Spent) -> bool:
        """Report that the interpreter lock was kept in one go: this thread came late, with a processor at hand."""
        kept = late - (spent.own_delay - last.own_delay)
        if kept < self._dog.limit:
            return False
        if spent.computed - last.computed >= self._dog.limit:
            where = "C code that kept the interpreter lock; such work belongs in a process"
        elif kept >= HELD and spent.process - last.process >= HELD:
            where = "C code on another thread that kept the interpreter lock; such work belongs in a process"
            if calls := [call for lane in all_lanes() for call in lane.held(self._dog.limit)]:
                names = ", ".join(f"{call.function} for {call.seconds:.1f} s" for call in calls[:5])
                where += f"; on lanes now: {names}"
        else:
            return False
        self._dog.report(Stall(seconds=kept, where=where), None)
        return True
