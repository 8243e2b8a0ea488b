"""to_process: a CPU-bound function in a child process that can be ended, awaited without holding up the event loop."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, Never, TypeVar, TypeVarTuple

from onebeat.errors import Busy, ConfigurationError, Stopped, WorkerProcessDied
from onebeat.offload import child
from onebeat.offload.lanes import Awaited, Call, Lane, Worker, log, name_of
from onebeat.offload.launch import launcher
from onebeat.offload.limits import Limit
from onebeat.offload.share import PROCESSORS, Share, Token
from onebeat.offload.slots import Slot
from onebeat.offload.threads import late, outlast, refuse, withdraw_when_over

LOOK = 0.25  # seconds after which a waiting thread looks whether the call around it was told to stop

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


async def to_process(
    function: Callable[[*Ts], R],
    /,
    *args: *Ts,
    timeout: float | None = None,
    cancel: Literal["end", "wait"] = "end",
    **unknown: Never,
) -> R:
    """Return what `function` returns; it runs in a child process, which is ended when its time is over.

    `timeout` is in seconds from the call, waiting for a free process included. Past it the child and every process it
    started are ended and `TimeoutError` is raised. The same happens when the awaiting task is cancelled, unless
    ``cancel="wait"`` lets the function finish first. The child knows the tracking id and the variables registered
    with `onebeat.tracking.propagate`; what it logs goes through this process's logging.

    Function, arguments and value must be what pickle can take; a refusal names the part (`TypeError`). Raises what
    `function` raises, with the child's traceback as its cause (`RemoteError` when it cannot be rebuilt here),
    `WorkerProcessDied` when the child ends by itself, `Busy` when too many calls wait, or when this function has
    ended five children within a minute.

    >>> asyncio.run(to_process(sum, [1, 2], timeout=30))
    3
    """
    refuse("to_process", function, unknown)
    _refuse_inside_a_child()
    breaker.check(function)
    lane = default_lane()
    call = Awaited(function, args, {}, Limit(timeout))
    lane.submit(call)
    timer = None if timeout is None else call.loop.call_later(timeout, withdraw_when_over, call, lane, timeout)
    try:
        result: R = await call.future
        return result
    except asyncio.CancelledError:
        if not lane.withdraw(call) and not call.ended:
            if cancel == "end":
                call.stop("its caller was cancelled")
            await outlast(call)
        raise
    except Stopped as stopped:
        raise late(call, timeout, "its process was ended") or stopped from None
    except WorkerProcessDied:
        breaker.died(function)
        raise
    finally:
        if timer is not None:
            timer.cancel()


def to_process_sync(function: Callable[[*Ts], R], /, *args: *Ts, timeout: float | None = None, **unknown: Never) -> R:
    """`to_process` for code that is already off the event loop: sync routes, thread jobs, scripts.

    >>> to_process_sync(sum, [1, 2], timeout=30)
    3
    """
    refuse("to_process_sync", function, unknown)
    _refuse_inside_a_child()
    _refuse_on_a_loop()
    breaker.check(function)
    lane = default_lane()
    call = Call(function, args, {}, Limit(timeout))
    ended = threading.Lock()
    ended.acquire()
    call.when_ended(ended.release)
    lane.submit(call)
    while not ended.acquire(timeout=call.limit.patience(LOOK)):
        try:
            call.limit.check()
        except asyncio.CancelledError as over:
            if lane.withdraw(call):
                call.error = Stopped(str(over))
                break
            call.stop(str(over))
    match call.error:
        case None:
            result: R = call.value
            return result
        case Stopped() as stopped:
            raise late(call, timeout, "its process was ended") or stopped from None
        case WorkerProcessDied() as died:
            breaker.died(function)
            raise died
        case error:
            raise error


class ProcessLane(Lane):
    """A lane whose threads each hold one child process, started on first use.

    With `share` it may always have one child, and each further one takes a token that all workers of this server share.
    """

    places = "processes"
    kept = 1

    def __init__(
        self,
        name: str,
        width: int,
        queue: int = 256,
        *,
        recycle: int | None = None,
        preload: tuple[str, ...] = (),
        spawn: bool | None = None,
        share: Share | None = None,
    ) -> None:
        super().__init__(name, width, queue)
        self._share = share
        self._tokens: list[Token] = []
        self._said = False
        self._recycle = recycle
        self._launcher = launcher(preload) if spawn is None else launcher(preload, spawn=spawn)

    def grow(self, threads: int) -> bool:
        if self._share is None or threads == 0:
            return True
        token = self._share.take()
        if token is not None:
            self._tokens.append(token)
        return token is not None

    @property
    def free(self) -> int:
        """How many calls could start at once: in idle children, and in one more if it may be started."""
        if self._share is None:
            return super().free
        with self._lock:
            idle, threads = len(self._idle), self._threads
        if idle == 0 and threads < self.width and (threads == 0 or self._share.left()):
            return 1
        return idle

    @property
    def bound(self) -> str:
        """How many children there can be, in words."""
        if self._share is None:
            return f"at most {self.width} child processes here, as many in each other worker of this server"
        return (
            f"one child process here, as in each other worker of this server, and {len(self._share)} more "
            "that all workers share"
        )

    def warm(self) -> None:
        """Start every child now."""
        for _ in range(self.width - len(self.threads())):
            try:
                self.submit(Call(_start_only, (), {}, Limit()))
            except Busy:
                return

    def enter(self, call: Call, worker: Worker) -> Any:
        if worker.slot is None:
            self._say()
            worker.slot = Slot(self._launcher, self._recycle)
        if call.function is _start_only:
            return worker.slot.warm()
        return worker.slot.run(call)

    def _say(self) -> None:
        """Say once, with the first child, how many there can be."""
        with self._lock:
            said, self._said = self._said, True
        if not said:
            log.info("%s: %s", self.name, self.bound)

    def tidy(self, worker: Worker) -> None:
        if worker.slot is not None and not self.closed:
            worker.slot.tidy()

    def leave(self, worker: Worker) -> None:
        if worker.slot is not None:
            worker.slot.close()
        if self._tokens:
            self._tokens.pop().close()

    def close(self, timeout: float = 2.0) -> None:
        """Start nothing more and end every child, busy ones too; returns when they have ended, or after `timeout`."""
        deadline = time.monotonic() + timeout
        for call in self.shut():
            call.stop("the process lane is closing")
        for thread in self.threads():
            thread.join(max(0.0, deadline - time.monotonic()))
        self._launcher.close()


class Breaker:
    """Refuses a function that ended `limit` children within `window` seconds, until the oldest of them is that old."""

    def __init__(self, limit: int = 5, window: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._window, self._clock = limit, window, clock
        self._deaths: dict[str, deque[float]] = {}

    def died(self, function: Callable[..., Any]) -> None:
        """A child ended by itself while it ran this function."""
        self._deaths.setdefault(name_of(function), deque(maxlen=self._limit)).append(self._clock())

    def check(self, function: Callable[..., Any]) -> None:
        """Raise `Busy` while the function is refused."""
        deaths = self._deaths.get(name_of(function))
        if deaths is None or len(deaths) < self._limit:
            return
        left = deaths[0] + self._window - self._clock()
        if left > 0:
            raise Busy(
                f"{name_of(function)} ended {self._limit} processes within {self._window:g} s and is not started for "
                f"another {left:.0f} s; other functions go on. Look for WorkerProcessDied in the log."
            )


breaker = Breaker()


def default_lane() -> ProcessLane:
    """Where `to_process` goes: made on first use, ended at exit."""
    global _default
    with _making:
        if _default is None:
            _default = ProcessLane("processes", **process_settings())
        return _default


def close_processes(timeout: float = 2.0) -> None:
    """End the children of `to_process`; the next call starts new ones."""
    global _default
    with _making:
        lane, _default = _default, None
    if lane is not None:
        lane.close(timeout)


def default_settings(count: int | None = None) -> dict[str, Any]:
    """The number of children: `count` of this process's own, or as many as processors, shared by all workers."""
    if count is not None:
        return {"width": count}
    return {"width": PROCESSORS, "share": Share(PROCESSORS - 1)}


def process_settings() -> dict[str, Any]:
    """What a lane of child processes is made with: as `setup_offload` said, or by default."""
    return _settings or default_settings()


def set_processes(settings: dict[str, Any]) -> None:
    """What the default lane is made with; before its first use."""
    with _making:
        if _default is not None:
            raise ConfigurationError("setup_offload() must come before the first to_process()")
        _settings.clear()
        _settings.update(settings)


def _start_only() -> None:
    """Not called: a slot that gets it only starts its child."""


def _refuse_inside_a_child() -> None:
    if child.serving:
        raise ConfigurationError(
            "this already runs in a child process of onebeat, and a child starts no further ones: "
            "call the function itself, or let the parent make both calls"
        )


def _refuse_on_a_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ConfigurationError("to_process_sync() would hold up this event loop: write `await to_process(…)`")


def _after_fork() -> None:
    global _default, _making
    _default, _making = None, threading.Lock()  # the parent's children are not this process's


_making = threading.Lock()
_default: ProcessLane | None = None
_settings: dict[str, Any] = {}
atexit.register(close_processes)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
