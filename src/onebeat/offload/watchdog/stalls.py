"""Stalls of the event loop: which line, route or job caused one, its tracking id, and how the time was spent."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import linecache
import math
import os
import sysconfig
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Self

from onebeat.tracking.context import VARIABLE, Tracking


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """One period in which the event loop was blocked.

    `seconds` is its duration, `where` and `code` are the blocking line, `what` is the route, job or task.
    """

    seconds: float = 0.0
    where: str
    code: str = ""
    what: str | None = None
    tracking_id: str | None = None
    stack: str = ""

    def lasting(self, seconds: float) -> Stall:
        """Return the same stall with this duration in seconds."""
        return replace(self, seconds=seconds)


def describe_stall(stall: Stall, verb: str) -> str:
    """Return a sentence for the log.

    >>> stall = Stall(seconds=0.31, where="shop.py:7 in report", code="time.sleep(0.3)", what="GET /report")
    >>> describe_stall(stall, "was blocked for")
    'the event loop was blocked for 0.310 s: shop.py:7 in report: time.sleep(0.3) [GET /report]'
    """
    code = f": {stall.code}" if stall.code else ""
    details = ", ".join(filter(None, (stall.what, stall.tracking_id and f"tracking id {stall.tracking_id}")))
    return f"the event loop {verb} {stall.seconds:.3f} s: {stall.where}{code}" + (f" [{details}]" if details else "")


def find_stall(frame: FrameType, loop: asyncio.AbstractEventLoop) -> tuple[Stall, contextvars.Context | None] | None:
    """Return what blocks the loop and its context, from another thread; None when the loop only waits for events."""
    if is_waiting_for_events(frame):
        return None
    context = _context(frame, loop)
    unit = None if context is None else context.get(VARIABLE)
    blocking = next((f for f in _outer_frames(frame) if not _is_library(f.f_code.co_filename)), frame)
    name = blocking.f_code.co_filename
    stall = Stall(
        where=f"{name}:{blocking.f_lineno} in {blocking.f_code.co_qualname}",
        code=linecache.getline(name, blocking.f_lineno or 0).strip(),
        what=_describe_work(unit, frame, loop),
        tracking_id=None if unit is None else unit.tracking_id,
        stack="".join(traceback.format_stack(frame)[-12:]),
    )
    return stall, context


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSpent:
    """Total seconds spent until the instant `at`."""

    at: float = 0.0  # time.monotonic()
    computed: float = 0.0  # the loop's thread ran on a processor
    delayed: float = 0.0  # the loop's thread was ready to run and had no processor
    process: float = 0.0  # all threads of this process ran on a processor
    own_delay: float = 0.0  # the watchdog's thread was ready to run and had no processor


class TimeMeter:
    """Read how much time the loop's thread, the current thread and the process have spent.

    On a system without scheduler statistics, `computed` is NaN (every comparison with it is false) and `delayed` is 0.
    """

    def __init__(self, ident: int, native: int) -> None:
        self._ident, self._native = ident, native
        self._loop: int | None = None
        self._own: int | None = None

    def __enter__(self) -> Self:
        self._loop, self._own = _open_schedstat(self._native), _open_schedstat(threading.get_native_id())
        return self

    def __exit__(self, *error: object) -> None:
        for fd in (self._loop, self._own):
            if fd is not None:
                os.close(fd)

    def read(self) -> TimeSpent:
        """Return the time spent until now; called on the thread that entered this context manager."""
        computed, delayed = _run_and_wait_time(self._loop)
        return TimeSpent(
            at=time.monotonic(),
            computed=computed,
            delayed=delayed,
            process=time.process_time(),
            own_delay=_run_and_wait_time(self._own)[1],
        )


def _open_schedstat(thread: int) -> int | None:
    try:
        return os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # not Linux, or without scheduler statistics
        return None


def _run_and_wait_time(schedstat: int | None) -> tuple[float, float]:
    """Return how long a thread ran, and how long it was ready but did not run, in seconds (see sched-stats.rst)."""
    if schedstat is None:
        return math.nan, 0.0
    try:
        ran, waited, _ = os.pread(schedstat, 100, 0).split()
        return int(ran) / 1e9, int(waited) / 1e9
    except (OSError, ValueError):  # the thread has ended
        return 0.0, 0.0


def _outer_frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def is_waiting_for_events(frame: FrameType) -> bool:
    """Return whether the innermost frame is the loop's own: its selector, or the caller of a loop written in C."""
    name = frame.f_code.co_filename
    return name.endswith(("selectors.py", "asyncio/runners.py", "asyncio/base_events.py", "uvloop/__init__.py"))


def _context(frame: FrameType, loop: asyncio.AbstractEventLoop) -> contextvars.Context | None:
    """Return the context of the running task or callback."""
    task = asyncio.current_task(loop)
    if task is not None:
        if hasattr(task, "get_context"):  # Python 3.12
            found: contextvars.Context = task.get_context()
            return found
        return next((held for held in gc.get_referents(task) if isinstance(held, contextvars.Context)), None)
    for outer in _outer_frames(frame):
        if outer.f_code.co_name == "_run" and outer.f_code.co_filename.endswith("asyncio/events.py"):
            return getattr(outer.f_locals.get("self"), "_context", None)
    return None


def _describe_work(unit: Tracking | None, frame: FrameType, loop: asyncio.AbstractEventLoop) -> str | None:
    """Return a name for the job, the route, or the task that runs."""
    if unit is not None and unit.job is not None:
        return f"{unit.job.kind} {unit.job.task or unit.job.id}"
    for outer in _outer_frames(frame):
        scope = outer.f_locals.get("scope")
        if isinstance(scope, dict) and "path" in scope:
            return f"{scope.get('method', scope.get('type'))} {_route(scope)}"
    task = asyncio.current_task(loop)
    return None if task is None else f"task {task.get_name()}"


def _route(scope: dict[str, Any]) -> str:
    """Return the route's template if it is known, so that all stalls of one route have one name."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else str(scope["path"])


def _is_library(name: str) -> bool:
    return name.startswith(_LIBRARIES) or name.startswith("<frozen")


_LIBRARIES = tuple(
    {
        folder + os.sep
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
        for folder in (sysconfig.get_path(name), os.path.realpath(sysconfig.get_path(name)))
    }
    | {str(Path(__file__).resolve().parent.parent) + os.sep}  # onebeat itself
)
