"""What a forked child does before anything else: callbacks, and a lock that the child finds free."""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Callable
from types import MethodType
from typing import Any
from weakref import WeakMethod

_numbers = itertools.count()
_methods: dict[int, WeakMethod[Any]] = {}  # in the order in which they were registered


def after_fork_in_child(callback: Callable[[], object]) -> None:
    """Call `callback` in every child that is forked from now on; nothing happens on Windows, which does not fork.

    A function is registered for the life of the process. A bound method is registered for the life of its object and
    does not prolong it.
    """
    if not hasattr(os, "register_at_fork"):
        return
    if not isinstance(callback, MethodType):
        os.register_at_fork(after_in_child=callback)
        return
    number = next(_numbers)
    _methods[number] = WeakMethod(callback, lambda _: _methods.pop(number, None))


def _call_methods() -> None:
    for reference in list(_methods.values()):
        method = reference()
        if method is not None:
            try:
                method()
            except Exception:  # noqa: BLE001 - shown as any other; the remaining objects must be told too
                sys.excepthook(*sys.exc_info())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_call_methods)


class ForkSafeLock:
    """A mutual exclusion lock that a forked child finds free, because the thread that held it does not run there.

    >>> with ForkSafeLock() as _:
    ...     pass
    """

    __slots__ = ("__weakref__", "_lock")

    def __init__(self) -> None:
        self._renew()
        after_fork_in_child(self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
