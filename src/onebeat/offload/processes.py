"""to_process: a CPU-bound function in a child process that can be ended, awaited without holding up the event loop."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal, Never, TypeVar, TypeVarTuple

from onebeat.concurrency.forks import after_fork_in_child
from onebeat.errors import ConfigurationError, Stopped, WorkerProcessDied
from onebeat.offload.child import main
from onebeat.offload.limits import Limit
from onebeat.offload.pool.breaker import Breaker
from onebeat.offload.pool.calls import Awaited, Call
from onebeat.offload.pool.process_lane import ProcessLane
from onebeat.offload.pool.share import PROCESSORS, Share
from onebeat.offload.threads import in_time, late, one_of, outlast, refuse, withdraw_when_over

LOOK = 0.25  # seconds after which a waiting thread looks whether the call around it was told to stop

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


async def to_process(
    function: Callable[[*Ts], R],
    /,
    *args: *Ts,
    timeout: float | timedelta | None = None,
    cancel: Literal["end", "wait"] = "end",
    **unknown: Never,
) -> R:
    """Return what `function` returns; it runs in a child process, which is ended when its time is over.

    `timeout` counts from the call, waiting for a free process included; seconds or a `timedelta`, and what is over
    already (0 or less) starts nothing. Past it the child and every process it started are ended and `TimeoutError` is
    raised. The same happens when the awaiting task is cancelled, unless
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
    one_of("cancel", cancel, ("end", "wait"))
    breaker.check(function)
    seconds = in_time(function, timeout)
    lane = default_lane()
    call = Awaited(function, args, {}, Limit(seconds))
    lane.submit(call)
    timer = None if seconds is None else call.loop.call_later(seconds, withdraw_when_over, call, lane, seconds)
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
        raise late(call, seconds, "its process was ended") or stopped from None
    except WorkerProcessDied:
        breaker.died(function)
        raise
    finally:
        if timer is not None:
            timer.cancel()


def to_process_sync(
    function: Callable[[*Ts], R], /, *args: *Ts, timeout: float | timedelta | None = None, **unknown: Never
) -> R:
    """`to_process` for code that is already off the event loop: sync routes, thread jobs, scripts.

    >>> to_process_sync(sum, [1, 2], timeout=30)
    3
    """
    refuse("to_process_sync", function, unknown)
    _refuse_inside_a_child()
    _refuse_on_a_loop()
    breaker.check(function)
    seconds = in_time(function, timeout)
    lane = default_lane()
    call = Call(function, args, {}, Limit(seconds))
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
            raise late(call, seconds, "its process was ended") or stopped from None
        case WorkerProcessDied() as died:
            breaker.died(function)
            raise died
        case error:
            raise error


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


def _refuse_inside_a_child() -> None:
    if main.serving:
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
after_fork_in_child(_after_fork)
