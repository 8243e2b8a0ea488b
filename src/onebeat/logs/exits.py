"""The end of logging in a process: atexit, children of multiprocessing, forks and SIGTERM."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterable
from types import FrameType

from onebeat.concurrency.forks import after_fork_in_child
from onebeat.logs.handler import LogHandler
from onebeat.logs.writer import complain

DEADLINE = 5.0  # seconds for what still waits when a process ends
_handlers: weakref.WeakSet[LogHandler] = weakref.WeakSet()
_hooked = False


def watch(handler: LogHandler) -> None:
    """From now on nothing this handler took is lost when the process ends by itself."""
    global _hooked
    _handlers.add(handler)
    if not _hooked:
        _hooked = True
        atexit.register(finish)
        after_fork_in_child(_forked)


def unwatch(handler: LogHandler) -> None:
    """The handler was replaced by another one."""
    _handlers.discard(handler)


def finish(timeout: float = DEADLINE) -> None:
    """Write what waits; whatever is logged later is written by its caller."""
    end(list(_handlers), timeout, f"at the end of process {os.getpid()}")


def end(handlers: Iterable[LogHandler], timeout: float, when: str) -> None:
    """Retire the handlers, and say on stderr what the deadline left unwritten."""
    left = sum(handler.retire(timeout) for handler in handlers)
    if left:
        complain(f"{left} log records were not written within {timeout:g} s {when}")


def watch_child() -> None:
    """Called with the first record of a process: children of multiprocessing end without atexit (`os._exit`)."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing.util import Finalize

        Finalize(None, finish, exitpriority=-1_000)


def finish_at_sigterm() -> bool:
    """Let SIGTERM write what waits before it ends the process, where nobody else handles it.

    uvicorn puts the handler it found back and raises the signal again after its shutdown, so this also covers the last
    lines of a server, with and without workers. False: not the main thread, or someone handles SIGTERM already.
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return False
    signal.signal(signal.SIGTERM, _at_sigterm)
    return True


def is_end_at_sigterm(handler: object) -> bool:
    """Return whether this is the handler of `finish_at_sigterm`, which ends the process as the default action does."""
    return handler is _at_sigterm


def _at_sigterm(number: int, frame: FrameType | None) -> None:
    """End the process from a thread: what the signal came into may hold the very lock that the writer needs."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        threading.Thread(
            target=_finish_and_end, name="onebeat-logs-sigterm", daemon=False
        ).start()  # an exit waits for it
    except RuntimeError:  # the interpreter is ending: no new threads
        _finish_and_end()


def _finish_and_end() -> None:
    try:
        finish()
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def _forked() -> None:
    for handler in list(_handlers):
        handler.forked()
