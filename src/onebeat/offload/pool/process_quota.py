"""The quota of child processes that the workers of one server share: tokens that the kernel frees with their holder."""

from __future__ import annotations

import os
import socket
import sys
from hashlib import blake2b
from pathlib import Path

from onebeat.concurrency.private_folder import user_secret


class ProcessQuota:
    """`count` tokens for all processes of one server: processes of one user, one parent and one process group.

    The workers of one `uvicorn --workers 4` share them, and another server has its own. A token is a name bound in
    Linux' abstract socket namespace: there is no file to clean up, and the kernel frees it when its holder ends. Any
    user may bind any such name, so this one is made with a secret that only this user's processes can read. On other
    systems, and without a folder for that secret, each process has a quarter of the tokens to itself.

    >>> quota = ProcessQuota(1, server="of an example")
    >>> first, second = quota.acquire(), quota.acquire()
    >>> first is not None, second
    (True, None)
    >>> first.close()
    >>> with quota.acquire():
    ...     pass
    """

    def __init__(self, count: int, server: str | None = None) -> None:
        self._count = count
        self._server = server
        self._acquired: list[socket.socket] = []

    @property
    def is_shared(self) -> bool:
        """Whether other processes take tokens from the same quota."""
        return _secret() is not None

    def __len__(self) -> int:
        return self._count if self.is_shared else self._count // 4

    def acquire(self) -> socket.socket | None:
        """Return a token, or None when all are taken. Close the token to give it back."""
        secret = _secret()
        if secret is None:
            self._acquired = [token for token in self._acquired if token.fileno() >= 0]
            if len(self._acquired) >= len(self):
                return None
            self._acquired.append(socket.socket())
            return self._acquired[-1]
        server = self._server or _server_key()
        for number in range(self._count):
            token = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                token.bind(b"\0onebeat-processes-" + _digest(f"{server}-{number}", secret))
            except OSError:  # EADDRINUSE: another process holds it
                token.close()
            else:
                return token
        return None

    def has_free_token(self) -> bool:
        """Return whether a token is free now; another process may take it before the caller does."""
        token = self.acquire()
        if token is None:
            return False
        token.close()
        return True


def available_processors() -> int:
    """Return how many processors this process may use, by affinity and the container's limit; at least 1.

    >>> 1 <= available_processors() <= (os.cpu_count() or 1)
    True
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = _container_limit()
    return max(1, count if limit is None else min(count, int(limit + 0.5)))


def _secret() -> bytes | None:
    return user_secret() if sys.platform == "linux" else None


def _digest(name: str, secret: bytes) -> bytes:
    return blake2b(name.encode(), key=secret, digest_size=20).hexdigest().encode()


def _server_key() -> str:
    """Return a text that the workers of one server have in common and other servers of the same user do not.

    A process group id is not reused while the group has a member. Containers may have equal ids and one network, so
    the PID namespace is part of the key. It is computed for each token: a worker whose parent has ended leaves its
    server.
    """
    return f"{os.getuid()}-{_PID_NAMESPACE}-{os.getppid()}-{os.getpgrp()}"


def _pid_namespace() -> int:
    """Return the inode of this process's PID namespace, which never changes; 0 on systems without one."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _container_limit() -> float | None:
    """Return the processors that cgroup v2 (cpu.max) or v1 (cpu.cfs_quota_us) allows; None without a limit."""
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


PROCESSORS = available_processors()  # both read small files, so they are read at import and never on an event loop
_PID_NAMESPACE = _pid_namespace()
