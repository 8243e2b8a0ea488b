"""Signals: the first SIGTERM or SIGINT ends a start, or stops claiming, before a server closes its connections."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

from onebeat.errors import DatabaseUnavailable
from onebeat.logs import exits
from onebeat.scheduler import deferred_sigterm

STOPPING = (signal.SIGTERM, signal.SIGINT)


class StartInterrupted(DatabaseUnavailable):
    """The process was told to end while a start waited for the database."""


class Signals:
    """Adds to the signal handlers of a server. It works in the main thread; in other threads it does nothing."""

    def __init__(self, told: Callable[[], None]) -> None:
        self._told = told
        self._before: dict[int, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def catch(self) -> None:
        """Run a handler before the server's; a process without one keeps Python's own."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._loop = asyncio.get_running_loop()
        for number in STOPPING:
            before = signal.getsignal(number)
            if callable(before) and not _only_ends(before):
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
            self._loop.call_soon_threadsafe(self._told)
        before(number, frame)


def _only_ends(handler: object) -> bool:
    """Whether it does what the process would do by itself: Python's SIGINT, or an end once the logs are written."""
    return (
        handler is signal.default_int_handler
        or exits.is_end_at_sigterm(handler)
        or deferred_sigterm.is_deferring(handler)
    )


def await_signal(stop_claiming: Callable[[], None]) -> asyncio.Event:
    """Return an event that the first SIGTERM or SIGINT sets.

    A second signal ends the process at once, with exit status 128 + signal.
    """
    stop = asyncio.Event()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)  # without a drain; other workers learn it from the lease and the run file
        stop.set()
        stop_claiming()

    for number in STOPPING:
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    return stop
