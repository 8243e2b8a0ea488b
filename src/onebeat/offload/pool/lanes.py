"""A lane: a bounded number of daemon threads of its own, with a bounded queue before them."""

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
from onebeat.offload.pool.calls import Call, Held, log, on_loop, settle

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
        self.forget()
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
            if idle := self._idle.pop() if self._idle else None:
                self._calls.add(call)
            else:
                added = self._added()
                if added is None and len(self._queue) >= self.queue:
                    raise Busy(self._full())
                self._queue.append(call)
                if added is not None:
                    self._take(added)
        if idle is not None:
            if not self.begin(call, idle):
                self.wake(idle, call)
        elif added is not None:
            try:
                self._start(added)
            except RuntimeError:
                if self.withdraw(call):
                    raise

    def withdraw(self, call: Call) -> bool:
        """Take back a call that has not started; False when it has."""
        with self._lock:
            if call in self._queue:
                self._queue.remove(call)
                return True
        return False

    def shut(self) -> list[Call]:
        """Take no more calls and let idle threads end; returns what still runs. What was queued is told `Busy`."""
        with self._lock:
            self._closed = True
            queued, running = list(self._queue), list(self._calls)
            self._queue.clear()
            for worker in self._idle:
                self._workers.discard(worker)
                worker.wake.release()
            self._idle.clear()
        for call in queued:
            call.error = Busy(f"{self.name!r} is closed")
            call.deliver()
        return running

    def threads(self) -> list[threading.Thread]:
        """The threads that live now."""
        return [thread for thread in list(self._alive) if thread.is_alive()]

    def forget(self) -> None:
        """As new: also what a forked process needs, in which none of the threads exists."""
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._queue: deque[Call] = deque()
        self._calls: set[Call] = set()
        self._workers: set[Worker] = set()
        self._count = 0
        self._alive: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._closed = False

    def admit(self, worker: Worker) -> bool:
        """Whether this thread may be added; called with the lane's lock held."""
        return True

    def begin(self, call: Call, worker: Worker) -> bool:
        """Whether the call is under way without the thread; called by who submits it, on the thread that does."""
        return False

    def wake(self, worker: Worker, call: Call | None = None) -> None:
        """Have the thread run this call, or what the lane gave it."""
        if call is not None:
            worker.call = call
        worker.wake.release()

    def enter(self, call: Call, worker: Worker) -> Any:
        """Run the function; called on the thread, inside the caller's context."""
        call.limit.enter()
        return call.function(*call.args, **call.kwargs)

    def tidy(self, worker: Worker) -> None:
        """Called on the thread when it has delivered a result and nothing is queued."""

    def leave(self, worker: Worker) -> None:
        """Called before the thread ends, on the thread; or instead of its start."""

    def _added(self) -> Worker | None:
        """One more worker, if there may be one; with the lock held."""
        if len(self._workers) >= self.width or not self.admit(worker := Worker()):
            return None
        self._workers.add(worker)
        return worker

    def _take(self, worker: Worker) -> None:
        """Give it the call that has waited longest; with the lock held."""
        worker.call = call = self._queue.popleft()
        self._calls.add(call)

    def _start(self, worker: Worker) -> None:
        """Start its thread; `RuntimeError` when the machine gives no more, and its call is back in the queue then."""
        self._count += 1
        name = f"onebeat-{self.name}-{self._count}"
        thread = threading.Thread(target=self._work, args=(worker,), name=name, daemon=True)
        self._alive.add(thread)
        try:
            thread.start()
        except RuntimeError:
            with self._lock:
                self._workers.discard(worker)
                if (call := worker.call) is not None:
                    self._calls.discard(call)
                    self._queue.appendleft(call)
            self.leave(worker)
            raise

    def _work(self, worker: Worker) -> None:
        """Run calls until there has been nothing to do for a minute, or the lane is closed."""
        while (call := worker.call) is not None:
            worker.call = None
            call.run(partial(self.enter, call, worker))
            more = self.freed(call, worker)
            call.deliver()
            del call
            if not more:
                self.tidy(worker)
                self._rest(worker)
        self.leave(worker)

    def freed(self, call: Call, worker: Worker) -> bool:
        """Free the place before anybody learns of the result, so that the next start finds it; True: more to do."""
        added = None
        with self._lock:
            self._calls.discard(call)
            if self._closed:
                self._workers.discard(worker)
                return True  # there is nothing to wait for
            if not self._queue:
                self._idle.append(worker)
                return False
            self._take(worker)
            if self._queue and (added := self._added()) is not None:  # what forbade it before may be over
                self._take(added)
        if added is not None:
            try:
                self._start(added)
            except RuntimeError:
                log.warning("lane %r cannot have another thread", self.name, exc_info=True)
        return True

    def _rest(self, worker: Worker) -> None:
        """Wait for the next call; without one the thread is no longer counted and may end."""
        while not worker.wake.acquire(timeout=IDLE):
            with self._lock:
                if worker in self._idle and len(self._workers) > self.kept:
                    self._idle.remove(worker)
                    self._workers.discard(worker)
                    return

    def _full(self) -> str:
        left = sum(call.abandoned for call in self._calls)
        held = f", {left} of them held by calls nobody waits for any longer" if left else ""
        return (
            f"lane {self.name!r} is full: {self.width} {self.places} at work{held}, {self.queue} calls waiting. "
            "Try again later, make it wider, or give this work a lane of its own."
        )


class Worker:
    """A thread's mailbox: the next call, and the lock whose release says that it is there."""

    __slots__ = ("call", "express", "slot", "token", "wake")

    def __init__(self) -> None:
        self.call: Call | None = None
        self.wake = threading.Lock()
        self.wake.acquire()
        self.slot: Any = None  # a lane of processes keeps the thread's child here,
        self.token: Any = None  # what permits it,
        self.express: Any = None  # and the call that goes on without the thread


def all_lanes() -> list[Lane]:
    """Every lane of this process, by name."""
    return sorted(_lanes, key=lambda lane: lane.name)


_lanes: weakref.WeakSet[Lane] = weakref.WeakSet()


def _after_fork() -> None:
    for lane in list(_lanes):
        lane.forget()


after_fork_in_child(_after_fork)
