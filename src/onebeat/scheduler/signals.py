"""Signals: the first SIGTERM or SIGINT stops claiming at once, before a server has closed its connections."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Adds to the signal handlers of a server. It works in the main thread; in other threads it does nothing."""

    def __init__(self, stop_claiming: Callable[[], None]) -> None:
        self._stop_claiming = stop_claiming
        self._before: dict[int, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def catch(self) -> None:
        """Run a handler before the server's; a process without one keeps Python's own."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._loop = asyncio.get_running_loop()
        for number in STOPPING:
            before = signal.getsignal(number)
            if callable(before) and before is not signal.default_int_handler:
                self._before[number] = before
                signal.signal(number, partial(self._on_signal, before))

    def leave(self) -> None:
        """Restore the former handlers, except where another handler was set since."""
        if threading.current_thread() is threading.main_thread():
            for number, before in self._before.items():
                now = signal.getsignal(number)
                if isinstance(now, partial) and now.func == self._on_signal:
                    signal.signal(number, before)
        self._before.clear()

    def _on_signal(self, before: Callable[[int, FrameType | None], Any], number: int, frame: FrameType | None) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop_claiming)
        before(number, frame)


@contextmanager
def default_sigterm_ignored() -> Iterator[None]:
    """Let SIGTERM do nothing where it would end the process at once; handlers of a server or of a user stay.

    A worker of Hypercorn has no handler, and its parent sends SIGTERM to all once the first of them has ended.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    ignore = partial(_ignore)
    signal.signal(signal.SIGTERM, ignore)  # not SIG_IGN, which child processes would inherit
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is ignore:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing."""


async def until_signalled(stop_claiming: Callable[[], None]) -> None:
    """Return at the first SIGTERM or SIGINT; a second one ends the process at once, with exit status 128 + signal."""
    stop = asyncio.Event()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)  # without a drain; other workers learn it from the lease and the run file
        stop.set()
        stop_claiming()

    for number in STOPPING:
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    await stop.wait()
