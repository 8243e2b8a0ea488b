"""to_thread: a blocking function on a thread of a lane, awaited without holding up the event loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, Literal, Never, TypeVar, TypeVarTuple

from onebeat.errors import Stopped
from onebeat.offload.limits import OVER, Limit, in_seconds
from onebeat.offload.pool.calls import Awaited, Call, later, log, name_of, on_loop, settle
from onebeat.offload.pool.lanes import Lane

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

DEFAULT_LANE = Lane("default")
"""Where `to_thread` goes without `lane=`: 16 threads, 256 calls waiting."""


async def to_thread(
    function: Callable[[*Ts], R],
    /,
    *args: *Ts,
    timeout: float | timedelta | None = None,
    lane: Lane | None = None,
    on_timeout: Literal["abandon", "wait"] = "abandon",
    **unknown: Never,
) -> R:
    """Return what `function` returns; it runs on a thread of `lane` with the caller's context variables.

    `timeout` counts from the call, waiting in the lane's queue included; seconds or a `timedelta`, and what is over
    already (0 or less) starts nothing. A thread cannot be killed. With
    ``on_timeout="abandon"`` the caller gets its `TimeoutError` (or its cancellation) at once, and the function keeps
    its thread until it returns or meets a `checkpoint()`. With ``"wait"`` the caller waits until the function has
    really ended. Pass the library its own timeout too. A call still waiting in the queue is withdrawn, never run.

    Raises `Busy` when the lane is full, `TimeoutError`, and whatever `function` raises. Keyword arguments for
    `function` go through `functools.partial`.

    >>> asyncio.run(to_thread(sorted, [2, 1], timeout=5))
    [1, 2]
    """
    refuse("to_thread", function, unknown)
    one_of("on_timeout", on_timeout, ("abandon", "wait"))
    home = DEFAULT_LANE if lane is None else lane
    if not isinstance(home, Lane):
        raise TypeError(f"lane={lane!r:.80} is no Lane; make one once: reports = Lane('reports', width=4)")
    seconds = in_time(function, timeout)
    call = Awaited(function, args, {}, Limit(seconds))
    home.submit(call)
    timer = None
    if seconds is not None:
        over = withdraw_when_over if on_timeout == "wait" else _abandon_when_over
        timer = call.loop.call_later(seconds, over, call, home, seconds)
    try:
        result: R = await call.future
        return result
    except asyncio.CancelledError:
        if not home.withdraw(call) and not call.ended:
            call.stop("its caller was cancelled")
            if on_timeout == "wait":
                await outlast(call)
            else:
                _leave(call, home)
        raise
    except Stopped as left:
        raise late(call, seconds, "left at a checkpoint") or left from left
    finally:
        if timer is not None:
            timer.cancel()


async def outlast(call: Call) -> None:
    """Return once the function has really ended, whatever happens to the caller meanwhile."""
    ended = asyncio.get_running_loop().create_future()
    call.when_ended(partial(on_loop, ended.get_loop(), settle, ended))
    while not ended.done():
        try:
            await asyncio.wait([ended])
        except asyncio.CancelledError:
            continue  # the caller is being cancelled already


def late(call: Call, timeout: float | None, how: str) -> TimeoutError | None:
    """The `TimeoutError` for a call whose own time is over; None when it is not."""
    return None if timeout is None or not call.limit.over else _late(call, timeout, how)


def refuse(verb: str, function: Callable[..., Any], unknown: dict[str, Any]) -> None:
    """Raise `TypeError` for what cannot be meant: keywords for the function, or one that does nothing when called."""
    if unknown:
        names = ", ".join(f"{name}=…" for name in unknown)
        raise TypeError(
            f"{verb}() got the keyword {', '.join(map(repr, unknown))}: keywords are its own, none is passed on. "
            f"For the function itself write {verb}(functools.partial({name_of(function)}, {names}), …)."
        )
    if not callable(function):
        raise TypeError(f"{verb}() takes a function and its arguments, not {type(function).__name__}: {verb}(f, x)")
    if (kind := later(function)) is not None:
        where = "await it" if "coroutine" in kind else "its body runs where it is iterated"
        raise TypeError(f"{name_of(function)} is {kind}: {where}, or give {verb}() a plain function")


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise `ValueError` for a mode that is none of the known ones."""
    if value not in known:
        raise ValueError(f"{name}={value!r:.80} is none of {', '.join(map(repr, known))}")


def in_time(function: Callable[..., Any], timeout: float | timedelta | None) -> float | None:
    """The seconds a call has; `TimeoutError` when there are none left, before anything starts."""
    seconds = in_seconds(timeout)
    if seconds is not None and seconds <= 0:
        raise TimeoutError(f"{name_of(function)} was not started: its timeout of {seconds:g} s was over already")
    return seconds


def withdraw_when_over(call: Awaited, lane: Lane, timeout: float) -> bool:
    """The time is over: a call that has not started is withdrawn; one that has is told to end. True: withdrawn."""
    if call.future.done():
        return True
    if not lane.withdraw(call):
        call.stop(OVER)
        return False
    call.future.set_exception(_late(call, timeout, f"still waiting in lane {lane.name!r}"))
    return True


def _abandon_when_over(call: Awaited, lane: Lane, timeout: float) -> None:
    """As above, and the caller waits no longer for what has started."""
    if not withdraw_when_over(call, lane, timeout):
        _leave(call, lane)
        call.future.set_exception(_late(call, timeout, "the thread goes on until the function returns"))


def _leave(call: Awaited, lane: Lane) -> None:
    """Mark the call as nobody's any more and say where it is now."""
    call.abandoned = True
    frame = sys._current_frames().get(call.thread)
    place = "" if frame is None else f", now at {frame.f_code.co_filename}:{frame.f_lineno}"
    log.warning("left %s running in lane %s%s", name_of(call.function), lane.name, place)


def _late(call: Call, timeout: float, how: str) -> TimeoutError:
    return TimeoutError(f"{name_of(call.function)} took longer than its {timeout:g} s ({how})")
