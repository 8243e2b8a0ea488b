"""One call of a synchronous function off the event loop: its context, its limit, what it came to, and who is told."""

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


class Call:
    """One call of a synchronous function on its way through a lane."""

    __slots__ = (
        "abandoned", "args", "context", "ended", "error", "function", "kwargs", "limit", "slot", "started", "thread",
        "value", "watchers",
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
        self.watchers: list[Callable[[], object]] = []
        self.slot: Ends | None = None  # what can end the function, where it cannot only be asked

    def run(self, enter: Callable[[], Any]) -> None:
        """Run the function here, in the caller's context; its value or exception is kept."""
        self.started, self.thread = self.started or time.monotonic(), threading.get_ident()
        try:
            self.value = self.context.run(enter)
        except asyncio.CancelledError as left:
            reason = self.limit.reason or (str(left) if self.limit.deadline is not None else None)
            self.error = Stopped(reason) if reason else _harmless(self, left)
        except Exception as error:  # noqa: BLE001 - it belongs to whoever awaits the call
            self.error = error if not isinstance(error, StopIteration) else _harmless(self, error)
        except BaseException as error:  # noqa: BLE001 - sys.exit() in a thread must not end the server
            self.error = _harmless(self, error)

    def stop(self, reason: str) -> None:
        """Tell the function to end."""
        self.limit.stop(reason)
        if (slot := self.slot) is not None:
            slot.end(self)

    def deliver(self) -> None:
        """Let everybody know that the function has ended; what an abandoned call came to is said in the log."""
        if self.abandoned and self.error is not None and not isinstance(self.error, Stopped):
            self.context.run(log.warning, "abandoned call of %s failed", name_of(self.function), exc_info=self.error)
        self.ended = True
        self._tell()

    def when_ended(self, tell: Callable[[], object]) -> None:
        """Call `tell` once the function has ended, on whatever thread knows."""
        self.watchers.append(tell)
        if self.ended:
            self._tell()

    def _tell(self) -> None:
        while True:
            try:
                tell = self.watchers.pop()
            except IndexError:  # told, or being told by the other thread that may be here
                return
            tell()


class Awaited(Call):
    """A call made on an event loop; its future completes there."""

    __slots__ = ("future", "loop")

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], limit: Limit
    ) -> None:
        super().__init__(function, args, kwargs, limit)
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()

    def deliver(self) -> None:
        super().deliver()
        on_loop(self.loop, self._complete)

    def deliver_here(self, value: Any) -> None:
        """`deliver` a value on the call's own event loop."""
        self.value, self.ended = value, True
        self._tell()
        self._complete()

    def _complete(self) -> None:
        if not self.future.done():
            if self.error is None:
                self.future.set_result(self.value)
            else:
                self.future.set_exception(self.error)
        self.error = self.value = None  # a traceback holds the frames of the call


class Ends(Protocol):
    """What can end a call that runs elsewhere."""

    def end(self, call: Call) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A call that holds a thread: whose, for how long, and what it is doing now."""

    function: str
    seconds: float
    abandoned: bool
    context: contextvars.Context
    stack: str

    @classmethod
    def of(cls, call: Call, now: float, frame: FrameType | None) -> Held:
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        return cls(
            function=name_of(call.function),
            seconds=now - call.started,
            abandoned=call.abandoned,
            context=call.context,
            stack=stack,
        )


def name_of(function: Callable[..., Any]) -> str:
    """A function's name for people: module and qualified name, also behind `functools.partial`."""
    while isinstance(function, partial):  # by its type: a mock has every attribute
        function = function.func
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{getattr(function, '__module__', None) or 'builtins'}.{name}"


def later(function: Callable[..., Any]) -> str | None:
    """What it is if calling it only returns something that does the work later, where it is awaited or iterated.

    >>> later(len), later(partial(asyncio.sleep, 1))
    (None, 'a coroutine function')
    """
    while isinstance(function, partial):
        function = function.func
    plain: Any = function.__func__ if type(function) is MethodType else function
    if type(plain) is BuiltinFunctionType or (
        type(plain) is FunctionType
        and not plain.__code__.co_flags & _LATER
        and (not plain.__dict__ or plain.__dict__.keys() == {"__wrapped__"})  # inspect's marks are kept there
    ):
        return None  # nearly always, and at a tenth of the cost
    called = getattr(type(function), "__call__", None)  # noqa: B004 - what the call would run
    for one in (function, called):
        if inspect.iscoroutinefunction(one):
            return "a coroutine function"
        if inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one):
            return "a generator function"
    return None


_LATER = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def _harmless(call: Call, error: BaseException) -> RuntimeError:
    """An exception that would end the event loop, as one that does not."""
    said = RuntimeError(f"{name_of(call.function)}() raised {type(error).__name__}({error}) in a thread")
    said.__cause__ = error
    return said


def on_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
    """Have an event loop call this soon; a closed one has nobody left who could ask."""
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        log.debug("a call ended after its event loop")


def settle(future: asyncio.Future[Any]) -> None:
    """Complete a future that only says that something has happened."""
    if not future.done():
        future.set_result(None)
