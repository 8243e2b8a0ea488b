"""`to_process`: run a CPU-bound function in a child process that can be ended, without blocking the event loop."""

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
from onebeat.offload.pool.breaker import CircuitBreaker
from onebeat.offload.pool.calls import AwaitedCall, BlockingCall
from onebeat.offload.pool.process_lane import ProcessLane
from onebeat.offload.pool.process_quota import PROCESSORS, ProcessQuota
from onebeat.offload.threads import (
    check_choice,
    check_function,
    check_timeout,
    timeout_error,
    wait_until_ended,
    withdraw_or_stop,
)

POLL_INTERVAL = 0.25  # seconds between two checks by a waiting thread whether its own call was told to stop

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
    """Run `function` in a child process and return its value; the process is ended when the timeout is over.

    `timeout` (seconds or a `timedelta`) counts from the call and includes the wait for a free process. A timeout of
    0 or less starts nothing. When it is over, the child and every process that it started are ended, and
    `TimeoutError` is raised. The same happens when the awaiting task is cancelled, unless ``cancel="wait"`` lets the
    function finish first. The child has the tracking id and the variables registered with
    `onebeat.tracking.propagate`; its log records go through this process's logging.

    Function, arguments and value must be supported by pickle; a refusal names the part (`TypeError`). Raises what
    `function` raises, with the child's traceback as its cause (`RemoteError` when it cannot be rebuilt here), and
    `WorkerProcessDied` when the child ends by itself. Raises `Busy` when too many calls wait, or when this function
    has ended five children within a minute.

    >>> asyncio.run(to_process(sum, [1, 2], timeout=30))
    3
    """
    check_function("to_process", function, unknown)
    _refuse_in_a_child()
    check_choice("cancel", cancel, ("end", "wait"))
    breaker.check(function)
    seconds = check_timeout(function, timeout)
    lane = default_lane()
    call = AwaitedCall(function, args, {}, Limit(seconds))
    lane.submit(call)
    timer = None if seconds is None else call.loop.call_later(seconds, withdraw_or_stop, call, lane, seconds)
    try:
        result: R = await call.future
        return result
    except asyncio.CancelledError:
        if not lane.withdraw(call) and not call.ended:
            if cancel == "end":
                call.stop("its caller was cancelled")
            await wait_until_ended(call)
        raise
    except Stopped as stopped:
        raise timeout_error(call, seconds, "its process was ended") or stopped from None
    except WorkerProcessDied:
        breaker.record_death(function)
        raise
    finally:
        if timer is not None:
            timer.cancel()


def to_process_sync(
    function: Callable[[*Ts], R], /, *args: *Ts, timeout: float | timedelta | None = None, **unknown: Never
) -> R:
    """Do the same as `to_process` for code that is off the event loop: sync routes, thread jobs, scripts.

    >>> to_process_sync(sum, [1, 2], timeout=30)
    3
    """
    check_function("to_process_sync", function, unknown)
    _refuse_in_a_child()
    _refuse_on_a_loop()
    breaker.check(function)
    seconds = check_timeout(function, timeout)
    lane = default_lane()
    call = BlockingCall(function, args, {}, Limit(seconds))
    ended = threading.Lock()
    ended.acquire()
    call.add_done_callback(ended.release)
    lane.submit(call)
    while not ended.acquire(timeout=call.limit.bounded(POLL_INTERVAL)):
        try:
            call.limit.check()
        except asyncio.CancelledError as cancelled:
            if lane.withdraw(call):
                call.error = Stopped(str(cancelled))
                break
            call.stop(str(cancelled))
    error, call.error = call.error, None
    try:
        if error is None:
            result: R = call.value
            return result
        if isinstance(error, Stopped):
            raise timeout_error(call, seconds, "its process was ended") or error from None
        if isinstance(error, WorkerProcessDied):
            breaker.record_death(function)
        raise error
    finally:
        del error  # the traceback holds this frame: only a garbage collection would free the two


breaker = CircuitBreaker()


def default_lane() -> ProcessLane:
    """Return the lane of `to_process`, which is created on first use and ended at exit."""
    global _default
    with _lock:
        if _default is None:
            _default = ProcessLane("processes", **process_settings())
        return _default


def close_processes(timeout: float = 2.0) -> None:
    """End the children of `to_process`, waiting at most `timeout` seconds; the next call starts new ones."""
    global _default
    with _lock:
        lane, _default = _default, None
    if lane is not None:
        lane.close(timeout)


def default_settings(count: int | None = None) -> dict[str, Any]:
    """Return the settings for `count` children of this process's own, or for one and a quota shared by all workers."""
    if count is not None:
        return {"width": count}
    return {"width": PROCESSORS, "quota": ProcessQuota(PROCESSORS - 1)}


def process_settings() -> dict[str, Any]:
    """Return the arguments of a new `ProcessLane`, as `setup_offload` set them or by default."""
    return _settings or default_settings()


def set_process_settings(settings: dict[str, Any]) -> None:
    """Set the arguments of the default lane; raise `ConfigurationError` after its first use."""
    with _lock:
        if _default is not None:
            raise ConfigurationError("setup_offload() must be called before the first to_process()")
        _settings.clear()
        _settings.update(settings)


def _refuse_in_a_child() -> None:
    if main.is_child:
        raise ConfigurationError(
            "This function already runs in a child process of onebeat, which starts no further ones. "
            "Call the function directly, or let the parent make both calls."
        )


def _refuse_on_a_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ConfigurationError("to_process_sync() would block this event loop. Write `await to_process(…)`.")


def _reset_after_fork() -> None:
    global _default, _lock
    _default, _lock = None, threading.Lock()  # the children belong to the parent


_lock = threading.Lock()
_default: ProcessLane | None = None
_settings: dict[str, Any] = {}
atexit.register(close_processes)
after_fork_in_child(_reset_after_fork)
