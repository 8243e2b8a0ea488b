"""HookTasks: runs what asynchronous hooks return on the scheduler's event loop, beside the engine."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

AT_ONCE = 100  # hooks that run at the same time; the others wait in the order of their events
WAITING = 10_000  # hooks that wait; more are dropped, as an outage of what they call must not fill the memory
FINISH_WITHIN = 2.0  # seconds that a stop waits for hooks
WARN_EACH = 60.0  # seconds between two warnings that hooks are dropped

log = logging.getLogger("onebeat")


class HookTasks:
    """Awaits each call of an asynchronous hook in a task of its own; what it raises is logged.

    Events are announced in any thread, and `open` says on which event loop their hooks run. `changed` is called there
    when a hook has ended.
    """

    def __init__(self) -> None:
        self.changed: Callable[[], None] = _nothing
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._waiting: deque[tuple[str, Awaitable[Any]]] = deque()
        self._warned = -WARN_EACH

    @property
    def pending(self) -> int:
        """Return how many hooks have not ended."""
        return len(self._running) + len(self._waiting)

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run hooks on this event loop from now on."""
        self._loop = loop

    def start(self, kind: str, work: Awaitable[Any]) -> None:
        """Await `work`, what a hook for events of class `kind` returned; in any thread."""
        loop = self._loop
        try:
            if loop is None:
                self._drop(kind, work, "the scheduler that would run it is not running")
            elif _is_running_here(loop):
                self._add(kind, work)
            else:
                loop.call_soon_threadsafe(self._add, kind, work)
        except RuntimeError:  # the event loop was closed
            self._drop(kind, work, "its event loop is closed")

    async def close(self, within: float) -> None:
        """Wait for the hooks, at most so many seconds, and cancel the rest."""
        loop = asyncio.get_running_loop()
        until = loop.time() + within
        while self.pending and (left := until - loop.time()) > 0:
            await asyncio.wait(self._running, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        self._loop = None
        for kind, work in self._waiting:
            self._drop(kind, work, "the scheduler has stopped")
        self._waiting.clear()
        if self._running:
            log.warning("%s asynchronous hooks were cancelled, because they outlasted the stop", len(self._running))
        for task in self._running:
            task.cancel()

    def _add(self, kind: str, work: Awaitable[Any]) -> None:
        if len(self._running) < AT_ONCE:
            self._run(kind, work)
        elif len(self._waiting) < WAITING:
            self._waiting.append((kind, work))
        else:
            self._drop(kind, work, f"{WAITING} hooks wait already")

    def _run(self, kind: str, work: Awaitable[Any]) -> None:
        task = asyncio.get_running_loop().create_task(_awaited(kind, work), name=f"onebeat-hook-{kind}")
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._waiting and self._loop is not None:
            self._run(*self._waiting.popleft())
        self.changed()

    def _drop(self, kind: str, work: Awaitable[Any], reason: str) -> None:
        if inspect.iscoroutine(work):
            work.close()
        if time.monotonic() - self._warned >= WARN_EACH:
            self._warned = time.monotonic()
            log.warning("an asynchronous hook for %s was not run: %s", kind, reason)


async def _awaited(kind: str, work: Awaitable[Any]) -> None:
    try:
        await work
    except Exception:
        log.exception("a hook for %s raised", kind)


def _is_running_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _nothing() -> None:
    """Do nothing."""
