"""One blocking call off the event loop: its context, its limit, its result, and the callbacks that report its end."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import BuiltinFunctionType, FrameType, FunctionType, MethodType
from typing import Any, Protocol

from onebeat.errors import Stopped
from onebeat.offload.limits import Limit

log = logging.getLogger("onebeat.offload")


class BlockingCall:
    """One call of a synchronous function, from its submission to a lane until its result is known."""

    __slots__ = (
        "abandoned", "args", "context", "done_callbacks", "ended", "error", "function", "kwargs", "limit", "started",
        "terminator", "thread", "value",
    )  # fmt: skip

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], limit: Limit
    ) -> None:
        self.function, self.args, self.kwargs, self.limit = function, args, kwargs, limit
        self.context = contextvars.copy_context()
        self.value: Any = None
        self.error: BaseException | None = None
        self.started = 0.0
        self.thread = 0
        self.ended = self.abandoned = False
        self.done_callbacks: list[Callable[[], object]] = []
        self.terminator: Terminator | None = None  # ends the child process of the call; a thread has none

    def run(self, execute: Callable[[], Any]) -> None:
        """Run the function on this thread in the caller's context, and keep its value or exception."""
        self.started, self.thread = self.started or time.monotonic(), threading.get_ident()
        try:
            self.value = self.context.run(execute)
        except asyncio.CancelledError as cancelled:
            reason = self.limit.reason or (str(cancelled) if self.limit.expired else None)
            self.error = Stopped(reason) if reason else _as_runtime_error(self, cancelled)
        except Exception as error:  # noqa: BLE001 - it belongs to whoever awaits the call
            self.error = error if not isinstance(error, StopIteration) else _as_runtime_error(self, error)
        except BaseException as error:  # noqa: BLE001 - sys.exit() in a thread must not end the server
            self.error = _as_runtime_error(self, error)

    def stop(self, reason: str) -> None:
        """Tell the function to end, and end its child process if it has one."""
        self.limit.stop(reason)
        if (terminator := self.terminator) is not None:
            terminator.terminate(self)

    def deliver(self) -> None:
        """Report that the function has ended; the error of an abandoned call is logged."""
        if self.abandoned and self.error is not None and not isinstance(self.error, Stopped):
            self.context.run(log.warning, "abandoned call of %s failed", name_of(self.function), exc_info=self.error)
        self.ended = True
        self._run_done_callbacks()

    def add_done_callback(self, callback: Callable[[], object]) -> None:
        """Call `callback` once the function has ended, on whichever thread learns of it."""
        self.done_callbacks.append(callback)
        if self.ended:
            self._run_done_callbacks()

    def _run_done_callbacks(self) -> None:
        while True:
            try:
                callback = self.done_callbacks.pop()
            except IndexError:  # none is left: two threads may run this method at once, and each callback runs once
                return
            callback()


class AwaitedCall(BlockingCall):
    """A call made on an event loop; its future completes there, and the call drops the future then.

    The future holds the exception, and the exception's traceback holds this call. If the call kept the future, only a
    garbage collection would free them, with every local variable of the function.
    """

    __slots__ = ("future", "loop")

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], limit: Limit
    ) -> None:
        super().__init__(function, args, kwargs, limit)
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()

    def deliver(self) -> None:
        super().deliver()
        call_on_loop(self.loop, self._complete)

    def deliver_on_loop(self, value: Any) -> None:
        """Deliver a value directly; the caller is on the call's own event loop."""
        self.value, self.ended = value, True
        self._run_done_callbacks()
        self._complete()

    def _complete(self) -> None:
        if not self.future.done():
            if self.error is None:
                self.future.set_result(self.value)
            else:
                self.future.set_exception(self.error)
        self.error = self.value = None
        del self.future


class Terminator(Protocol):
    """Something that can end a call which runs in another process."""

    def terminate(self, call: BlockingCall) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A call that occupies a thread: its function, its running time in seconds, and its current stack."""

    function: str
    seconds: float
    abandoned: bool
    context: contextvars.Context
    stack: str

    @classmethod
    def of(cls, call: BlockingCall, now: float, frame: FrameType | None) -> Held:
        """Describe `call` at the instant `now` of `time.monotonic`, with the thread's current frame."""
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        return cls(
            function=name_of(call.function),
            seconds=now - call.started,
            abandoned=call.abandoned,
            context=call.context,
            stack=stack,
        )


def name_of(function: Callable[..., Any]) -> str:
    """Return a function's module and qualified name for messages, also of one inside `functools.partial`."""
    while isinstance(function, partial):  # checked by type, because a mock has every attribute
        function = function.func
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{getattr(function, '__module__', None) or 'builtins'}.{name}"


def deferred_kind(function: Callable[..., Any]) -> str | None:
    """Return the kind of a function whose call only creates a coroutine or a generator; None for a plain function.

    >>> deferred_kind(len), deferred_kind(partial(asyncio.sleep, 1))
    (None, 'a coroutine function')
    """
    while isinstance(function, partial):
        function = function.func
    plain: Any = function.__func__ if type(function) is MethodType else function
    if type(plain) is BuiltinFunctionType or (
        type(plain) is FunctionType
        and not plain.__code__.co_flags & _DEFERRED
        and (not plain.__dict__ or plain.__dict__.keys() == {"__wrapped__"})  # inspect keeps its marks in __dict__
    ):
        return None  # the usual case, at a tenth of the cost of the checks below
    called = getattr(type(function), "__call__", None)  # noqa: B004 - what the call would run
    for candidate in (function, called):
        if inspect.iscoroutinefunction(candidate):
            return "a coroutine function"
        if inspect.isgeneratorfunction(candidate) or inspect.isasyncgenfunction(candidate):
            return "a generator function"
    return None


_DEFERRED = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


class RaisedInThread(RuntimeError):
    """Stands for an exception that would end the event loop, or that a future refuses; that one is its cause."""


def _as_runtime_error(call: BlockingCall, error: BaseException) -> RaisedInThread:
    """Wrap an exception that would end the event loop in one that does not."""
    wrapped = RaisedInThread(f"{name_of(call.function)}() raised {type(error).__name__}({error}) in a thread")
    wrapped.__cause__ = error
    return wrapped


def call_on_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
    """Schedule a callback on an event loop from any thread; on a closed loop it is only noted in the debug log."""
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        log.debug("a call ended after its event loop")


def set_done(future: asyncio.Future[Any]) -> None:
    """Complete a future whose value does not matter, unless it is done already."""
    if not future.done():
        future.set_result(None)
