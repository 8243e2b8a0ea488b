"""The three pipes between this process and a child; forks of this process do not keep them open."""

from __future__ import annotations

import os
import threading
import weakref

FORK_LOCK = threading.Lock()
"""While it is held, no other thread forks this process with `os.fork` or multiprocessing."""


class Pipes:
    """The pipes of one child: its calls, its answers and its exit status. Tracks which descriptors are open.

    A reader sees the end of a pipe only when every copy of the writing end is closed, so a fork must not keep one.
    """

    def __init__(self) -> None:
        self._open: set[int] = set()
        with FORK_LOCK:
            _all.add(self)
            child_reader, self.writer = self._new_pipe()
            self.reader, child_writer = self._new_pipe()
            self.status, child_status = self._new_pipe()
        self.child_ends = (child_reader, child_writer, child_status)
        """The descriptors of the child: where it reads, where it writes, and where its exit status is reported."""

    def __contains__(self, descriptor: int) -> bool:
        return descriptor in self._open

    def close(self, *descriptors: int) -> None:
        """Close these descriptors, or all of them, unless they are closed already."""
        with FORK_LOCK:
            self.close_locked(*descriptors)

    def close_locked(self, *descriptors: int) -> None:
        """Do the same as `close`; the caller holds `FORK_LOCK` or is the only thread."""
        for descriptor in descriptors or tuple(self._open):
            if descriptor in self._open:
                self._open.discard(descriptor)
                os.close(descriptor)

    def _new_pipe(self) -> tuple[int, int]:
        try:
            ends = os.pipe()
        except OSError:
            self.close_locked()
            raise
        self._open.update(ends)
        return ends


_all: weakref.WeakSet[Pipes] = weakref.WeakSet()


def _close_after_fork() -> None:
    FORK_LOCK.release()
    for pipes in list(_all):
        pipes.close_locked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=FORK_LOCK.acquire, after_in_parent=FORK_LOCK.release, after_in_child=_close_after_fork)
