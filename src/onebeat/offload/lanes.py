"""A lane: a bounded number of daemon threads of its own, with a bounded queue before them."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, Protocol

from onebeat.errors import Busy, Stopped
from onebeat.offload.limits import Limit

log = logging.getLogger("onebeat.offload")

IDLE = 60.0  # seconds after which a thread without work ends; a burst leaves nothing behind


class Lane:
    """Threads of its own for one kind of blocking work: at most `width` at once, `queue` waiting, then `Busy`.

    Slow calls of one lane never hold up another lane, Starlette's `def` routes or asyncio's name look-ups. Threads
    start when needed, end after a minute without work, and never hold up the end of the process.

    >>> from onebeat.offload import to_thread
    >>> pdf = Lane("pdf", width=2, queue=8)
    >>> asyncio.run(to_thread(len, "four", lane=pdf))
    4
    """

    kept = 0  # threads that stay, however long there is nothing to do
    places = "threads"

    def __init__(self, name: str, width: int = 16, queue: int = 256) -> None:
        if width < 1 or queue < 0:
            raise ValueError(f"lane {name!r}: width={width} must be at least 1 and queue={queue} at least 0")
        self.name, self.width, self.queue = name, width, queue
        self._reset()
        _lanes.add(self)

    def __repr__(self) -> str:
        return f"<Lane {self.name!r} running={self.running}/{self.width} waiting={self.waiting}/{self.queue}>"

    @property
    def running(self) -> int:
        """Calls that hold a thread now, abandoned ones included."""
        return len(self._calls)

    @property
    def waiting(self) -> int:
        """Calls that wait for a thread."""
        return len(self._queue)

    @property
    def free(self) -> int:
        """How many calls could start at once."""
        return self.width - len(self._calls)

    @property
    def closed(self) -> bool:
        """True once it takes no more calls."""
        return self._closed

    @property
    def healthy(self) -> bool:
        """False while half of the lane or more is held by calls nobody waits for any longer."""
        return 2 * sum(call.abandoned for call in list(self._calls)) < max(2, self.width)

    def held(self, longer_than: float = 0) -> list[Held]:
        """The calls that hold a thread for more than `longer_than` seconds, with what each is doing now."""
        now, frames = time.monotonic(), sys._current_frames()
        return [
            Held.of(call, now, frames.get(call.thread))
            for call in list(self._calls)
            if call.started and now - call.started >= longer_than
        ]

    async def drain(self, timeout: float) -> list[Held]:
        """Wait at most `timeout` seconds until nothing runs; what still does is returned, and left behind."""
        deadline = time.monotonic() + timeout
        while (calls := list(self._calls)) and (left := deadline - time.monotonic()) > 0:
            ended = asyncio.get_running_loop().create_future()
            calls[0].when_ended(partial(on_loop, ended.get_loop(), settle, ended))
            await asyncio.wait([ended], timeout=left)
        return self.held()

    def submit(self, call: Call) -> None:
        """Give the call to a free thread or queue it; `Busy` when the queue is full."""
        with self._lock:
            if self._closed:
                raise Busy(f"{self.name!r} is closed")
            if self._idle:
                worker = self._idle.pop()
                worker.call = call
                self._calls.add(call)
            elif self._threads < self.width and self.grow(self._threads):
                self._threads += 1
                worker = None
                self._calls.add(call)
            elif len(self._queue) < self.queue:
                self._queue.append(call)
                return
            else:
                raise Busy(self._full())
        if worker is None:
            self._start(call)
        else:
            worker.wake.release()

    def shut(self) -> list[Call]:
        """Take no more calls and let idle threads end; returns what still runs. What was queued is told `Busy`."""
        with self._lock:
            self._closed = True
            idle = list(self._idle)
            self._idle.clear()
            self._threads -= len(idle)
            queued, running = list(self._queue), list(self._calls)
            self._queue.clear()
        for worker in idle:
            worker.wake.release()
        for call in queued:
            call.error = Busy(f"{self.name!r} is closed")
            call.deliver()
        return running

    def threads(self) -> list[threading.Thread]:
        """The threads that live now."""
        return [thread for thread in list(self._alive) if thread.is_alive()]

    def withdraw(self, call: Call) -> bool:
        """Take back a call that has not started; False when it has."""
        with self._lock:
            if call in self._queue:
                self._queue.remove(call)
                return True
        return False

    def _start(self, call: Call) -> None:
        worker = Worker(call)
        self._count += 1
        name = f"onebeat-{self.name}-{self._count}"
        thread = threading.Thread(target=self._work, args=(worker,), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the machine gives no more threads
            with self._lock:
                self._threads -= 1
                self._calls.discard(call)
            raise
        self._alive.add(thread)

    def _work(self, worker: Worker) -> None:
        """Run calls until there has been nothing to do for a minute, or the lane is closed."""
        while (call := worker.call) is not None:
            worker.call = None
            call.run(partial(self.enter, call, worker))
            queued = self._next(call, worker)
            call.deliver()
            del call
            if not queued:
                self.tidy(worker)
                self._rest(worker)
        self.leave(worker)

    def _rest(self, worker: Worker) -> None:
        """Wait for the next call; without one the thread is no longer counted and may end."""
        while not worker.wake.acquire(timeout=IDLE):
            with self._lock:
                if worker not in self._idle:
                    continue  # a call was given in this very moment
                if self._threads > self.kept:
                    self._idle.remove(worker)
                    self._threads -= 1
                    return

    def _next(self, call: Call, worker: Worker) -> bool:
        """Free the place before anybody learns of the result, so that the next start finds it; True: more to do."""
        with self._lock:
            self._calls.discard(call)
            if self._closed:
                self._threads -= 1
                return True  # there is nothing to wait for
            if not self._queue:
                self._idle.append(worker)
                return False
            worker.call = self._queue.popleft()
            self._calls.add(worker.call)
            return True

    def grow(self, threads: int) -> bool:
        """Whether a thread may be added to so many; called with the lane's lock held."""
        return True

    def enter(self, call: Call, worker: Worker) -> Any:
        """Run the function; called on the thread, inside the caller's context."""
        call.limit.enter()
        return call.function(*call.args, **call.kwargs)

    def tidy(self, worker: Worker) -> None:
        """Called on the thread when it has delivered a result and nothing is queued."""

    def leave(self, worker: Worker) -> None:
        """Called on the thread before it ends."""

    def _reset(self) -> None:
        """As new: also what a forked child needs, in which none of the threads exists."""
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._queue: deque[Call] = deque()
        self._calls: set[Call] = set()
        self._threads = self._count = 0
        self._alive: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._closed = False

    def _full(self) -> str:
        left = sum(call.abandoned for call in self._calls)
        held = f", {left} of them held by calls nobody waits for any longer" if left else ""
        return (
            f"lane {self.name!r} is full: {self.width} {self.places} at work{held}, {self.queue} calls waiting. "
            "Try again later, make it wider, or give this work a lane of its own."
        )


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
        self.started, self.thread = time.monotonic(), threading.get_ident()
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
        while self.watchers:
            self.watchers.pop()()


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


class Worker:
    """A thread's mailbox: the next call, and the lock whose release says that it is there."""

    __slots__ = ("call", "slot", "wake")

    def __init__(self, call: Call) -> None:
        self.call: Call | None = call
        self.wake = threading.Lock()
        self.wake.acquire()
        self.slot: Any = None  # a lane of processes keeps the thread's child here


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


def all_lanes() -> list[Lane]:
    """Every lane of this process, by name."""
    return sorted(_lanes, key=lambda lane: lane.name)


def name_of(function: Callable[..., Any]) -> str:
    """A function's name for people: module and qualified name, also behind `functools.partial`."""
    while hasattr(function, "func"):
        function = function.func
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{getattr(function, '__module__', None) or 'builtins'}.{name}"


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


_lanes: weakref.WeakSet[Lane] = weakref.WeakSet()


def _after_fork() -> None:
    for lane in list(_lanes):
        lane._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
