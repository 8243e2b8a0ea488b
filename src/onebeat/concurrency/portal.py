"""An event loop on a thread of its own, which runs coroutines for callers that have no event loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from onebeat.concurrency.forks import ForkSafeLock

R = TypeVar("R")


class Portal:
    """Runs coroutines on one event loop in a daemon thread; every method may be called from any other thread.

    A forked child has no such thread: there `running` is false, and `start` starts another one.

    >>> portal = Portal("example")
    >>> portal.start()
    >>> portal.run(asyncio.sleep(0, "done"))
    'done'
    >>> portal.stop()
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._mutex = ForkSafeLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0

    @property
    def running(self) -> bool:
        """Return whether the thread runs in this process."""
        return self._loop is not None and self._pid == os.getpid()

    def start(self) -> None:
        """Start the thread; nothing happens when it runs already."""
        with self._mutex:
            if self.running:
                return
            runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
            loop = runner.get_loop()
            thread = threading.Thread(target=_serve, args=(runner,), name=self._name, daemon=True)
            try:
                thread.start()
            except BaseException:
                runner.close()
                raise
            self._loop, self._thread, self._pid = loop, thread, os.getpid()

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Block until `work` has ended on the portal's event loop, and return or raise what it does.

        An exception that interrupts the caller, such as `KeyboardInterrupt`, cancels `work`.
        Raises `RuntimeError` when the portal does not run in this process, or when the caller is the portal's thread.
        """
        try:
            future = self.submit(work)
        except BaseException:
            work.close()
            raise
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def submit(self, work: Coroutine[Any, Any, R]) -> Future[R]:
        """Start `work` on the portal's event loop; an event loop awaits the answer with `asyncio.wrap_future`.

        Raises `RuntimeError` as `run` does; then `work` is not closed.
        """
        with self._mutex:  # so that `stop` cancels what was submitted before it
            loop = self._loop
            if loop is None or self._pid != os.getpid():
                raise RuntimeError(f"Portal {self._name!r} does not run in this process. Call start() first.")
            if threading.current_thread() is self._thread:
                raise RuntimeError(f"Portal {self._name!r} cannot run a coroutine for its own thread. Await it there.")
            return asyncio.run_coroutine_threadsafe(work, loop)

    def stop(self) -> None:
        """Cancel what still runs on the event loop, close it and wait for its thread; nothing happens when none runs.

        In a forked child the parent's event loop is only forgotten.
        """
        with self._mutex:
            loop, thread, was_running = self._loop, self._thread, self.running
            self._loop = self._thread = None
            if loop is None or thread is None or not was_running:
                return
            loop.call_soon_threadsafe(loop.stop)
        thread.join()


def _serve(runner: asyncio.Runner) -> None:
    with runner:  # at the end it cancels the remaining tasks and closes the loop
        runner.get_loop().run_forever()
