"""The descriptors of the files that this process has locked; a forked child closes its copies."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

from onebeat.concurrency.forks import after_fork_in_child


def try_lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Lock the open file as a whole, now or not at all; the kernel frees it with its last descriptor."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_named(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one that the path names now."""
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


class Descriptors:
    """The locked descriptors of this process, by owner; a forked child closes its copies, which frees nothing."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._open: dict[str, int] = {}
        after_fork_in_child(self.leave)

    def add(self, owner: str, descriptor: int) -> None:
        """Keep it open."""
        with self._mutex:
            self._open[owner] = descriptor

    def get(self, owner: str) -> int | None:
        """The descriptor, if it is open."""
        return self._open.get(owner)

    def close(self, owner: str) -> None:
        """Unlock and close it; without the unlocking, a copy in a child that is being forked would keep the lock."""
        with self._mutex:
            descriptor = self._open.pop(owner, None)
        if descriptor is not None:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def leave(self) -> None:
        """Close the copies in a forked child, because the locks belong to its parent."""
        self._mutex = threading.Lock()
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
