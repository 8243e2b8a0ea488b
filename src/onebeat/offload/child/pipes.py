"""The pipes between this process and a child; a process that is forked meanwhile holds none of them open."""

from __future__ import annotations

import os
import threading
import weakref

UNFORKED = threading.Lock()
"""While it is held no other thread forks this process (`os.fork`, multiprocessing): each descriptor is known."""


class Pipes:
    """Three pipes: calls to a child, its answers, and how it ended. Each end is known while it is open.

    Who still has the child's end of a pipe hides the child's end from who reads here, so a fork must not keep one.
    """

    def __init__(self) -> None:
        self._open: set[int] = set()
        with UNFORKED:
            _all.add(self)
            their_reader, self.writer = self._pipe()
            self.reader, their_writer = self._pipe()
            self.status, their_status = self._pipe()
        self.theirs = (their_reader, their_writer, their_status)
        """Where the child reads, where it writes, and where its end is told."""

    def __contains__(self, descriptor: int) -> bool:
        return descriptor in self._open

    def close(self, *descriptors: int) -> None:
        """Close these, or all, as far as they are open."""
        with UNFORKED:
            self.drop(*descriptors)

    def drop(self, *descriptors: int) -> None:
        """`close` where no other thread can fork meanwhile."""
        for descriptor in descriptors or tuple(self._open):
            if descriptor in self._open:
                self._open.discard(descriptor)
                os.close(descriptor)

    def _pipe(self) -> tuple[int, int]:
        try:
            ends = os.pipe()
        except OSError:
            self.drop()
            raise
        self._open.update(ends)
        return ends


_all: weakref.WeakSet[Pipes] = weakref.WeakSet()


def _after_fork() -> None:
    UNFORKED.release()
    for pipes in list(_all):
        pipes.drop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=UNFORKED.acquire, after_in_parent=UNFORKED.release, after_in_child=_after_fork)
