"""A SIGTERM that would end the process at once: its workers drain first.

A worker process of Hypercorn handles no SIGTERM, and its parent sends one to all as soon as the first of them has
ended. Python's own action would end the others with jobs running.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from onebeat.logs import exits

_at_sigterm: list[Callable[[], None]] = []  # one for each started worker of this process; called in the main thread
_before: Any = signal.SIG_DFL
_process = 0  # a forked child has the handler too, and none of the workers


def defer(at_sigterm: Callable[[], None]) -> bool:
    """Call `at_sigterm` instead of ending the process, until `release`; it may be called several times.

    Return False where somebody handles SIGTERM, and outside the main thread: then nothing is changed.
    """
    global _before, _process
    if threading.current_thread() is not threading.main_thread():
        return False
    now = signal.getsignal(signal.SIGTERM)
    if now is not _on_sigterm:
        if now != signal.SIG_DFL and not exits.is_end_at_sigterm(now):
            return False
        _before, _process = now, os.getpid()
        _at_sigterm.clear()  # they were deferred by a handler that is gone
        signal.signal(signal.SIGTERM, _on_sigterm)
    _at_sigterm.append(at_sigterm)
    return True


def release(at_sigterm: Callable[[], None]) -> None:
    """Defer no longer for this one; after the last one SIGTERM ends the process as before."""
    if at_sigterm in _at_sigterm:
        _at_sigterm.remove(at_sigterm)
        if not _at_sigterm and threading.current_thread() is threading.main_thread():
            _restore()


def end_process() -> None:
    """Let SIGTERM do now what was deferred; nothing while another worker of this process drains."""
    if not _at_sigterm:
        os.kill(os.getpid(), signal.SIGTERM)


def is_deferring(handler: object) -> bool:
    """Whether this handler of SIGTERM is the one of this module."""
    return handler is _on_sigterm


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _process:
        _restore()
        os.kill(os.getpid(), signal.SIGTERM)
        return
    for call in list(_at_sigterm):
        call()


def _restore() -> None:
    if signal.getsignal(signal.SIGTERM) is _on_sigterm:
        signal.signal(signal.SIGTERM, _before)
