"""A lock that a forked child finds free: the thread that held it is not there to release it."""

from __future__ import annotations

import os
import threading


class Lock:
    """For the module's lifetime: each stays known to `os.register_at_fork`.

    >>> with Lock() as _:
    ...     pass
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
