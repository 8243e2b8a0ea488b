"""Lanes: each is a named pool of daemon threads with a bounded queue."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import weakref
from collections import deque
from functools import partial
from typing import Any

from onebeat.concurrency.forks import after_fork_in_child
from onebeat.errors import Busy
from onebeat.offload.pool.calls import BlockingCall, Held, call_on_loop, log, set_done

IDLE_TIMEOUT = 60.0  # seconds after which an idle thread ends, so that a burst does not keep its threads for ever


class Lane:
    """A thread pool for one kind of blocking work: at most `width` calls run, `queue` calls wait, then `Busy`.

    Slow calls of one lane never delay another lane, Starlette's `def` routes or asyncio's name resolution. Threads
    start when needed, end after a minute without work, and never delay the end of the process.

    >>> from onebeat.offload import to_thread
    >>> pdf = Lane("pdf", width=2, queue=8)
    >>> asyncio.run(to_thread(len, "four", lane=pdf))
    4
    """

    min_threads = 0  # idle threads that stay beyond the idle timeout
    unit = "threads"  # what a call occupies, for messages

    def __init__(self, name: str, width: int = 16, queue: int = 256) -> None:
        if width < 1 or queue < 0:
            raise ValueError(f"lane {name!r}: width={width} must be at least 1 and queue={queue} at least 0")
        self.name, self.width, self.queue = name, width, queue
        self.reset()
        _lanes.add(self)

    def __repr__(self) -> str:
        return f"<Lane {self.name!r} running={self.running}/{self.width} waiting={self.waiting}/{self.queue}>"

    @property
    def running(self) -> int:
        """Number of calls that occupy a thread now, abandoned ones included."""
        return len(self._calls)

    @property
    def waiting(self) -> int:
        """Number of calls that wait for a thread."""
        return len(self._queue)

    @property
    def free(self) -> int:
        """Number of calls that could start at once."""
        return self.width - len(self._calls)

    @property
    def closed(self) -> bool:
        """True once the lane takes no more calls."""
        return self._closed

    @property
    def healthy(self) -> bool:
        """False while half of the lane or more is occupied by abandoned calls."""
        return 2 * sum(call.abandoned for call in list(self._calls)) < max(2, self.width)

    def held(self, longer_than: float = 0) -> list[Held]:
        """Return the calls that have occupied a thread for at least `longer_than` seconds, with their stacks."""
        now, frames = time.monotonic(), sys._current_frames()
        return [
            Held.of(call, now, frames.get(call.thread))
            for call in list(self._calls)
            if call.started and now - call.started >= longer_than
        ]

    async def drain(self, timeout: float) -> list[Held]:
        """Wait at most `timeout` seconds until no call runs, and return the calls that still do."""
        deadline = time.monotonic() + timeout
        while (calls := list(self._calls)) and (left := deadline - time.monotonic()) > 0:
            ended = asyncio.get_running_loop().create_future()
            calls[0].add_done_callback(partial(call_on_loop, ended.get_loop(), set_done, ended))
            await asyncio.wait([ended], timeout=left)
        return self.held()

    def submit(self, call: BlockingCall) -> None:
        """Give the call to an idle thread or queue it; raise `Busy` when the queue is full."""
        with self._lock:
            if self._closed:
                raise Busy(f"{self.name!r} is closed")
            if idle := self._idle.pop() if self._idle else None:
                self._calls.add(call)
            else:
                added = self._add_thread()
                if added is None and len(self._queue) >= self.queue:
                    raise Busy(self._full_message())
                self._queue.append(call)
                if added is not None:
                    self._assign_next(added)
        if idle is not None:
            if not self.try_fast_path(call, idle):
                self.wake(idle, call)
        elif added is not None:
            try:
                self._start(added)
            except RuntimeError:
                if self.withdraw(call):
                    raise

    def withdraw(self, call: BlockingCall) -> bool:
        """Remove a call that has not started from the queue; return False when it has started."""
        with self._lock:
            if call in self._queue:
                self._queue.remove(call)
                return True
        return False

    def shut_down(self) -> list[BlockingCall]:
        """Take no more calls, let idle threads end, and return the calls that still run; queued ones get `Busy`."""
        with self._lock:
            self._closed = True
            queued, running = list(self._queue), list(self._calls)
            self._queue.clear()
            for thread in self._idle:
                self._threads.discard(thread)
                thread.wake.release()
            self._idle.clear()
        for call in queued:
            call.error = Busy(f"{self.name!r} is closed")
            call.deliver()
        return running

    def threads(self) -> list[threading.Thread]:
        """Return the threads that are alive now."""
        return [thread for thread in list(self._alive) if thread.is_alive()]

    def reset(self) -> None:
        """Return to the initial state. A forked process needs this too: none of the threads exists there."""
        self._lock = threading.Lock()
        self._idle: list[PoolThread] = []
        self._queue: deque[BlockingCall] = deque()
        self._calls: set[BlockingCall] = set()
        self._threads: set[PoolThread] = set()
        self._count = 0
        self._alive: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._closed = False

    def may_add(self, thread: PoolThread) -> bool:
        """Return whether this thread may be added; called with the lane's lock held."""
        return True

    def try_fast_path(self, call: BlockingCall, thread: PoolThread) -> bool:
        """Return whether the call was started without the thread; called by the submitter on its own thread."""
        return False

    def wake(self, thread: PoolThread, call: BlockingCall | None = None) -> None:
        """Make the thread run `call`, or without one the call that the lane assigned to it."""
        if call is not None:
            thread.call = call
        thread.wake.release()

    def execute(self, call: BlockingCall, thread: PoolThread) -> Any:
        """Run the function; called on the thread, inside the caller's context."""
        call.limit.activate()
        return call.function(*call.args, **call.kwargs)

    def before_idle(self, thread: PoolThread) -> None:
        """Hook: called on the thread after it has delivered a result and before it waits for the next call."""

    def on_thread_end(self, thread: PoolThread) -> None:
        """Hook: called on the thread before it ends, or on the submitter's thread when it could not start."""

    def _add_thread(self) -> PoolThread | None:
        """Return one more pool thread if there may be one; the caller holds the lock."""
        if len(self._threads) >= self.width or not self.may_add(thread := PoolThread()):
            return None
        self._threads.add(thread)
        return thread

    def _assign_next(self, thread: PoolThread) -> None:
        """Give the thread the call that has waited longest; the caller holds the lock."""
        thread.call = call = self._queue.popleft()
        self._calls.add(call)

    def _start(self, pool_thread: PoolThread) -> None:
        """Start the thread; when the system refuses it, put its call back and raise `RuntimeError`."""
        self._count += 1
        name = f"onebeat-{self.name}-{self._count}"
        thread = threading.Thread(target=self._run_calls, args=(pool_thread,), name=name, daemon=True)
        self._alive.add(thread)
        try:
            thread.start()
        except RuntimeError:
            with self._lock:
                self._threads.discard(pool_thread)
                if (call := pool_thread.call) is not None:
                    self._calls.discard(call)
                    self._queue.appendleft(call)
            self.on_thread_end(pool_thread)
            raise

    def _run_calls(self, thread: PoolThread) -> None:
        """Run calls until the thread has been idle for a minute or the lane is shut down."""
        while (call := thread.call) is not None:
            thread.call = None
            call.run(partial(self.execute, call, thread))
            has_next = self.release(call, thread)
            call.deliver()
            del call
            if not has_next:
                self.before_idle(thread)
                self._wait_for_call(thread)
        self.on_thread_end(thread)

    def release(self, call: BlockingCall, thread: PoolThread) -> bool:
        """Free the thread before the result is delivered, so that the receiver finds a free one for its next call.

        Return True when the thread must not wait: it has the next call, or the lane is shut down.
        """
        added = None
        with self._lock:
            self._calls.discard(call)
            if self._closed:
                self._threads.discard(thread)
                return True
            if not self._queue:
                self._idle.append(thread)
                return False
            self._assign_next(thread)
            if self._queue and (added := self._add_thread()) is not None:  # an earlier refusal may not hold any more
                self._assign_next(added)
        if added is not None:
            try:
                self._start(added)
            except RuntimeError:
                log.warning("lane %r could not start another thread", self.name, exc_info=True)
        return True

    def _wait_for_call(self, thread: PoolThread) -> None:
        """Wait for the next call; after the idle timeout remove the thread from the pool, so that it ends."""
        while not thread.wake.acquire(timeout=IDLE_TIMEOUT):
            with self._lock:
                if thread in self._idle and len(self._threads) > self.min_threads:
                    self._idle.remove(thread)
                    self._threads.discard(thread)
                    return

    def _full_message(self) -> str:
        abandoned = sum(call.abandoned for call in self._calls)
        occupied = f" ({abandoned} by abandoned calls)" if abandoned else ""
        return (
            f"lane {self.name!r} is full: {self.width} {self.unit} are busy{occupied}, {self.queue} calls wait. "
            "Try again later, make the lane wider, or give this work a lane of its own."
        )


class PoolThread:
    """The state of one pool thread: its next call, and the lock that it waits on; its release announces the call."""

    __slots__ = ("call", "fast_call", "process_worker", "token", "wake")

    def __init__(self) -> None:
        self.call: BlockingCall | None = None
        self.wake = threading.Lock()
        self.wake.acquire()
        self.process_worker: Any = None  # in a process lane: the owner of the thread's child process,
        self.token: Any = None  # the quota token that permits the child,
        self.fast_call: Any = None  # and the call that the child runs without the thread


def all_lanes() -> list[Lane]:
    """Return every lane of this process, sorted by name."""
    return sorted(_lanes, key=lambda lane: lane.name)


_lanes: weakref.WeakSet[Lane] = weakref.WeakSet()


def _reset_after_fork() -> None:
    for lane in list(_lanes):
        lane.reset()


after_fork_in_child(_reset_after_fork)
