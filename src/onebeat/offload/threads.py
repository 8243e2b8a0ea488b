"""`to_thread`: run a blocking function on a thread of a lane, and await it without blocking the event loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, Literal, Never, TypeVar, TypeVarTuple

from onebeat.errors import Stopped
from onebeat.offload.limits import EXPIRED, Limit, in_seconds
from onebeat.offload.pool.calls import AwaitedCall, BlockingCall, call_on_loop, deferred_kind, log, name_of, set_done
from onebeat.offload.pool.lanes import Lane

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

DEFAULT_LANE = Lane("default")
"""The lane of `to_thread` without `lane=`: 16 threads, and 256 calls may wait."""


async def to_thread(
    function: Callable[[*Ts], R],
    /,
    *args: *Ts,
    timeout: float | timedelta | None = None,
    lane: Lane | None = None,
    on_timeout: Literal["abandon", "wait"] = "abandon",
    **unknown: Never,
) -> R:
    """Run `function` on a thread of `lane`, with the caller's context variables, and return its value.

    `timeout` (seconds or a `timedelta`) counts from the call and includes the wait in the lane's queue. A timeout of
    0 or less starts nothing. A thread cannot be killed. With ``on_timeout="abandon"`` the caller gets its
    `TimeoutError` (or its cancellation) at once, and the function keeps its thread until it returns or reaches a
    `checkpoint()`. With ``"wait"`` the caller waits until the function has really ended. Pass the library its own
    timeout too. A call that still waits in the queue is withdrawn and never runs.

    Raises `Busy` when the lane is full, `TimeoutError`, and whatever `function` raises. Use `functools.partial` for
    keyword arguments of `function`.

    >>> asyncio.run(to_thread(sorted, [2, 1], timeout=5))
    [1, 2]
    """
    check_function("to_thread", function, unknown)
    check_choice("on_timeout", on_timeout, ("abandon", "wait"))
    lane_used = DEFAULT_LANE if lane is None else lane
    if not isinstance(lane_used, Lane):
        raise TypeError(f"lane={lane!r:.80} is not a Lane. Create one once, for example reports = Lane('reports').")
    seconds = check_timeout(function, timeout)
    call = AwaitedCall(function, args, {}, Limit(seconds))
    lane_used.submit(call)
    timer = None
    if seconds is not None:
        on_expiry = withdraw_or_stop if on_timeout == "wait" else _withdraw_or_abandon
        timer = call.loop.call_later(seconds, on_expiry, call, lane_used, seconds)
    try:
        result: R = await call.future
        return result
    except asyncio.CancelledError:
        if not lane_used.withdraw(call) and not call.ended:
            call.stop("its caller was cancelled")
            if on_timeout == "wait":
                await wait_until_ended(call)
            else:
                _abandon(call, lane_used)
        raise
    except Stopped as stopped:
        raise timeout_error(call, seconds, "left at a checkpoint") or stopped from stopped
    finally:
        if timer is not None:
            timer.cancel()


async def run_on_own_thread(function: Callable[[], object]) -> None:
    """Run `function` on a thread that ends afterwards; for the shutdown of lanes, which may be full or closed."""
    lane = Lane("closing", width=1)
    try:
        await to_thread(function, lane=lane)
    finally:
        lane.shut_down()


async def wait_until_ended(call: BlockingCall) -> None:
    """Return once the function has really ended, even if the caller is cancelled meanwhile."""
    ended = asyncio.get_running_loop().create_future()
    call.add_done_callback(partial(call_on_loop, ended.get_loop(), set_done, ended))
    while not ended.done():
        try:
            await asyncio.wait([ended])
        except asyncio.CancelledError:
            continue  # the caller is being cancelled already


def timeout_error(call: BlockingCall, timeout: float | None, detail: str) -> TimeoutError | None:
    """Return the `TimeoutError` of a call whose own timeout is over; None if it is not."""
    return None if timeout is None or not call.limit.expired else _timeout_error(call, timeout, detail)


def check_function(verb: str, function: Callable[..., Any], unknown: dict[str, Any]) -> None:
    """Raise `TypeError` for unknown keywords, and for a function whose call would only create a coroutine."""
    if unknown:
        names = ", ".join(f"{name}=…" for name in unknown)
        raise TypeError(
            f"{verb}() got the unknown keyword {', '.join(map(repr, unknown))} and passes no keywords on. "
            f"For the function itself write {verb}(functools.partial({name_of(function)}, {names}), …)."
        )
    if not callable(function):
        raise TypeError(f"{verb}() takes a function and its arguments, not {type(function).__name__}: {verb}(f, x)")
    if (kind := deferred_kind(function)) is not None:
        advice = "await it" if "coroutine" in kind else "its body runs where it is iterated"
        raise TypeError(f"{name_of(function)} is {kind}: {advice}, or give {verb}() a plain function")


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise `ValueError` for an option whose value is not one of the known ones."""
    if value not in known:
        raise ValueError(f"{name}={value!r:.80} is not one of {', '.join(map(repr, known))}")


def check_timeout(function: Callable[..., Any], timeout: float | timedelta | None) -> float | None:
    """Return the timeout in seconds; raise `TimeoutError` for 0 or less, before anything starts."""
    seconds = in_seconds(timeout)
    if seconds is not None and seconds <= 0:
        raise TimeoutError(f"{name_of(function)} was not started: its timeout of {seconds:g} s was over already")
    return seconds


def withdraw_or_stop(call: AwaitedCall, lane: Lane, timeout: float) -> bool:
    """Withdraw an expired call that has not started, or tell a running one to end; return whether it is finished."""
    if call.ended or call.future.done():
        return True
    if not lane.withdraw(call):
        call.stop(EXPIRED)
        return False
    call.future.set_exception(_timeout_error(call, timeout, f"still waiting in lane {lane.name!r}"))
    return True


def _withdraw_or_abandon(call: AwaitedCall, lane: Lane, timeout: float) -> None:
    """Do the same as `withdraw_or_stop`, and end the caller's wait for a running call."""
    if not withdraw_or_stop(call, lane, timeout):
        _abandon(call, lane)
        call.future.set_exception(_timeout_error(call, timeout, "its thread continues until the function returns"))


def _abandon(call: AwaitedCall, lane: Lane) -> None:
    """Mark the call as abandoned, and log the line that it runs now."""
    call.abandoned = True
    frame = sys._current_frames().get(call.thread)
    place = "" if frame is None else f", now at {frame.f_code.co_filename}:{frame.f_lineno}"
    log.warning("abandoned %s, which still runs in lane %s%s", name_of(call.function), lane.name, place)


def _timeout_error(call: BlockingCall, timeout: float, detail: str) -> TimeoutError:
    return TimeoutError(f"{name_of(call.function)} took longer than its {timeout:g} s ({detail})")
