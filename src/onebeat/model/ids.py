"""Identifiers made by the application: UUIDv7 for rows, random words for workers and claims."""

from __future__ import annotations

import secrets
from uuid import UUID


def uuid7(now: int, random_bits: int | None = None) -> UUID:
    """A UUIDv7 (RFC 9562 §5.7, method 3): ids made later in one process sort later, to about a quarter microsecond.

    `now` is UTC microseconds; `random_bits` are 62 bits, drawn when not given.

    >>> uuid7(1_700_000_000_000_000, 0)
    UUID('018bcfe5-6800-7000-8000-000000000000')
    >>> uuid7(1_700_000_000_000_000) < uuid7(1_700_000_000_000_001)
    True
    """
    milliseconds, rest = divmod(now, 1000)
    tail = secrets.randbits(62) if random_bits is None else random_bits
    return UUID(int=(milliseconds & (2**48 - 1)) << 80 | 0x7 << 76 | (rest * 4096 // 1000) << 64 | 0b10 << 62 | tail)


def token() -> str:
    """128 random bits as 32 hex digits: the identity of a worker's start or of one claim."""
    return secrets.token_hex(16)
