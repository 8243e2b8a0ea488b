"""What a stall of the event loop was: whose time it took, which line, which route or job, under which tracking id."""

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
    """One time the event loop stood still. `seconds` is how long, `where` the line, `what` the route, job or task."""

    seconds: float = 0.0
    where: str
    code: str = ""
    what: str | None = None
    tracking_id: str | None = None
    stack: str = ""

    def lasting(self, seconds: float) -> Stall:
        """The same with its duration."""
        return replace(self, seconds=seconds)


def in_words(stall: Stall, how: str) -> str:
    """One sentence for the log.

    >>> stall = Stall(seconds=0.31, where="shop.py:7 in report", code="time.sleep(0.3)", what="GET /report")
    >>> in_words(stall, "stood still for")
    'the event loop stood still for 0.310 s: shop.py:7 in report: time.sleep(0.3) [GET /report]'
    """
    code = f": {stall.code}" if stall.code else ""
    about = ", ".join(filter(None, (stall.what, stall.tracking_id and f"tracking id {stall.tracking_id}")))
    return f"the event loop {how} {stall.seconds:.3f} s: {stall.where}{code}" + (f" [{about}]" if about else "")


def look(frame: FrameType, loop: asyncio.AbstractEventLoop) -> tuple[Stall, contextvars.Context | None] | None:
    """Who holds the loop, seen from another thread; None when it only waits for events."""
    if _waits_for_events(frame):
        return None
    context = _context(frame, loop)
    unit = None if context is None else context.get(VARIABLE)
    guilty = next((f for f in _outward(frame) if not _library(f.f_code.co_filename)), frame)
    name = guilty.f_code.co_filename
    stall = Stall(
        where=f"{name}:{guilty.f_lineno} in {guilty.f_code.co_qualname}",
        code=linecache.getline(name, guilty.f_lineno or 0).strip(),
        what=_what(unit, frame, loop),
        tracking_id=None if unit is None else unit.tracking_id,
        stack="".join(traceback.format_stack(frame)[-12:]),
    )
    return stall, context


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Seconds spent until an instant: by the loop's thread computing or in want of a processor, and by others."""

    at: float = 0.0  # time.monotonic()
    computed: float = 0.0
    delayed: float = 0.0
    process: float = 0.0
    own_delay: float = 0.0


class Meter:
    """Reads what the loop's thread, this thread and the process have spent.

    Of what a system does not tell, `computed` is not a number, which is more than nothing, and `delayed` is 0.
    """

    def __init__(self, ident: int, native: int) -> None:
        self._ident, self._native = ident, native
        self._loop: int | None = None
        self._own: int | None = None

    def __enter__(self) -> Self:
        self._loop, self._own = _schedstat(self._native), _schedstat(threading.get_native_id())
        return self

    def __exit__(self, *error: object) -> None:
        for fd in (self._loop, self._own):
            if fd is not None:
                os.close(fd)

    def read(self) -> Spent:
        """What has been spent until now; on the thread that entered this."""
        computed, delayed = _times(self._loop)
        return Spent(
            at=time.monotonic(),
            computed=computed,
            delayed=delayed,
            process=time.process_time(),
            own_delay=_times(self._own)[1],
        )


def _schedstat(thread: int) -> int | None:
    try:
        return os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # not Linux, or without scheduler statistics
        return None


def _times(schedstat: int | None) -> tuple[float, float]:
    """Seconds a thread ran, and seconds it was ready to run and did not (sched-stats.rst: nanoseconds)."""
    if schedstat is None:
        return math.nan, 0.0
    try:
        ran, waited, _ = os.pread(schedstat, 100, 0).split()
        return int(ran) / 1e9, int(waited) / 1e9
    except (OSError, ValueError):  # the loop's thread has ended
        return 0.0, 0.0


def _outward(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _waits_for_events(frame: FrameType) -> bool:
    """The innermost frame belongs to the loop itself: its selector, or what runs a loop written in C."""
    name = frame.f_code.co_filename
    return name.endswith(("selectors.py", "asyncio/runners.py", "asyncio/base_events.py", "uvloop/__init__.py"))


def _context(frame: FrameType, loop: asyncio.AbstractEventLoop) -> contextvars.Context | None:
    """The context of the running task or callback."""
    task = asyncio.current_task(loop)
    if task is not None:
        if hasattr(task, "get_context"):  # Python 3.12
            found: contextvars.Context = task.get_context()
            return found
        return next((held for held in gc.get_referents(task) if isinstance(held, contextvars.Context)), None)
    for outer in _outward(frame):
        if outer.f_code.co_name == "_run" and outer.f_code.co_filename.endswith("asyncio/events.py"):
            return getattr(outer.f_locals.get("self"), "_context", None)
    return None


def _what(unit: Tracking | None, frame: FrameType, loop: asyncio.AbstractEventLoop) -> str | None:
    """The job, the route, or the task that runs."""
    if unit is not None and unit.job is not None:
        return f"{unit.job.kind} {unit.job.task or unit.job.id}"
    for outer in _outward(frame):
        scope = outer.f_locals.get("scope")
        if isinstance(scope, dict) and "path" in scope:
            return f"{scope.get('method', scope.get('type'))} {_route(scope)}"
    task = asyncio.current_task(loop)
    return None if task is None else f"task {task.get_name()}"


def _route(scope: dict[str, Any]) -> str:
    """The route's template when it is known, so that stalls of one route add up."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else str(scope["path"])


def _library(name: str) -> bool:
    return name.startswith(_LIBRARIES) or name.startswith("<frozen")


_LIBRARIES = tuple(
    {
        folder + os.sep
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
        for folder in (sysconfig.get_path(name), os.path.realpath(sysconfig.get_path(name)))
    }
    | {str(Path(__file__).resolve().parent.parent) + os.sep}  # onebeat itself
)
