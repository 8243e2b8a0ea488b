"""How many child processes all workers of one server have together: tokens that end with whoever holds them."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path


class Share:
    """`count` tokens for all processes of one server: those of one user with one parent in one process group.

    So the workers of one `uvicorn --workers 4` have them together, and another server has its own. A token is a name
    bound in Linux' abstract socket namespace: there is no file to clean up, and the kernel frees it when its holder
    ends. Elsewhere each process has a quarter of them to itself.

    >>> share = Share(1)
    >>> first, second = share.take(), share.take()
    >>> first is not None, second
    (True, None)
    >>> first.close()
    >>> with share.take():
    ...     pass
    """

    def __init__(self, count: int, family: str | None = None) -> None:
        self.common = sys.platform == "linux"
        """Whether other processes take from them too."""
        self._count = count if self.common else count // 4
        self._family = family
        self._taken: list[socket.socket] = []

    def __len__(self) -> int:
        return self._count

    def take(self) -> socket.socket | None:
        """A token, or None when all are held."""
        if not self.common:
            self._taken = [token for token in self._taken if token.fileno() >= 0]
            if len(self._taken) >= self._count:
                return None
            self._taken.append(socket.socket())
            return self._taken[-1]
        family = self._family or _family()
        for number in range(self._count):
            token = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                token.bind(f"\0onebeat-processes-{family}-{number}")
            except OSError:  # EADDRINUSE: somebody holds it
                token.close()
            else:
                return token
        return None

    def left(self) -> bool:
        """Whether there is a token to take now; another process may be quicker."""
        token = self.take()
        if token is None:
            return False
        token.close()
        return True


def processors() -> int:
    """Processors this process may use: by affinity and by the container's quota, at least 1.

    >>> 1 <= processors() <= (os.cpu_count() or 1)
    True
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return max(1, count if quota is None else min(count, int(quota + 0.5)))


def _family() -> str:
    """What the workers of one server have in common, and other servers of the same user have not.

    A group's number is not given away while it has a member. Containers may have equal numbers and one network, so
    their own numbering counts too. Asked each time: a worker whose parent has ended belongs to another family.
    """
    return f"{os.getuid()}-{_NUMBERING}-{os.getppid()}-{os.getpgrp()}"


def _numbering() -> int:
    """The namespace in which process numbers count here; it never changes for a process. 0 where there is none."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _quota() -> float | None:
    """The container's share of processors: cpu.max (cgroup v2) or cpu.cfs_quota_us (v1); None without a limit."""
    root = Path("/sys/fs/cgroup")
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text()
        return float(quota) / float(period) if quota not in ("max", "-1") else None
    except (OSError, ValueError):
        return None


PROCESSORS = processors()  # both are read once at import: small files, which must not be read on an event loop
_NUMBERING = _numbering()
