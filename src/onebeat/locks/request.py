"""The request for a lock: its name, the length of its lease and how long to wait, checked before anything is sent."""

from __future__ import annotations

import os
import re
import socket
import sys
from dataclasses import dataclass
from datetime import timedelta

from onebeat.errors import ConfigurationError
from onebeat.timing.clock import SECOND, seconds_us

Seconds = float | timedelta

SHORTEST = SECOND // 2  # microseconds; below it a lease is over before its second renewal can be heard of
LONGEST = 24 * 3600 * SECOND  # a process that dies keeps the lock so long
NAME = re.compile(r"[A-Za-z0-9_.:@/+=,~#-]{1,200}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class LockRequest:
    """A checked request for one lock; durations in microseconds. `wait` None waits without limit."""

    name: str
    ttl: int
    wait: int | None


def lock_request(name: str, ttl: Seconds, wait: Seconds | None) -> LockRequest:
    """Return the checked request.

    Raises `ConfigurationError` for a name, `ttl` or `wait` that cannot work.

    >>> lock_request("rebuild-index", 30, None)
    LockRequest(name='rebuild-index', ttl=30000000, wait=None)
    """
    return LockRequest(
        name=lock_name(name),
        ttl=_between("ttl", ttl, SHORTEST, LONGEST),
        wait=None if wait is None else _between("wait", wait, 0, None),
    )


def lock_name(name: str) -> str:
    """Return the name itself when it is valid: 1 to 200 printable ASCII characters, no blank, quote or brace.

    Raises `ConfigurationError` otherwise: names are compared byte by byte on every back end and appear in logs.

    >>> lock_name("tenant:7/report")
    'tenant:7/report'
    """
    if not isinstance(name, str):
        raise ConfigurationError(f"a lock's name is text, and this is {type(name).__name__}")
    if not NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name[:80]!r} cannot be a lock's name; use 1 to 200 of A-Z a-z 0-9 and _ . : @ / + = , ~ # -"
        )
    return name


def _between(what: str, value: Seconds, least: int, most: int | None) -> int:
    try:
        found = seconds_us(value)
    except ValueError as error:
        advice = "; None waits without limit" if what == "wait" else ""
        raise ConfigurationError(f"{what}={value!r:.80} cannot be used: {error}{advice}") from None
    if found < least or (most is not None and found > most):
        limits = f"at least {least / SECOND:g} s" if most is None else f"{least / SECOND:g} to {most / SECOND:g} s"
        raise ConfigurationError(f"{what}={value!r:.80} cannot be used; it must be {limits}")
    return found


def holder() -> str:
    """Return who asks, for people only: host, process and program. Ownership is a random token of each acquisition.

    >>> str(os.getpid()) in holder()
    True
    """
    program = os.path.basename(sys.argv[0] or "python")
    return f"{socket.gethostname()[:100]}:{os.getpid()} {program[:80]}".encode("ascii", "replace").decode()
