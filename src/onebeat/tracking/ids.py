"""Tracking ids: made here, or checked byte for byte when they come from somewhere else."""

from __future__ import annotations

import os
import re
from time import time_ns

from onebeat.concurrency.forks import after_fork_in_child
from onebeat.errors import ConfigurationError

MAX_LENGTH = 128  # characters; a UUID, an ULID, AWS, nginx, Cloudflare and base64 ids all fit

STANDARD = re.compile(rb"[!#-+\--\[\]-~]{1,128}")
"""Visible ASCII except double quote, comma and backslash: no space, no control, no high byte, no list of ids."""

STRICT = re.compile(rb"[A-Za-z0-9._-]{1,128}")

_BATCH = 512  # numbers drawn at once: one system call for some hundred requests
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}  # two random bits behind the bits 10

_numbers: list[str] = []  # 64 random bits each, in 16 hex digits; a list's pop is atomic, so threads need no lock
after_fork_in_child(_numbers.clear)  # a child never repeats what its parent drew


def _draw() -> str:
    """A number of a fresh batch."""
    digits = os.urandom(8 * _BATCH).hex()
    _numbers.extend([digits[at : at + 16] for at in range(16, len(digits), 16)])
    return digits[:16]


def new_id() -> str:
    """A new tracking id: 32 lower-case hex digits in the layout of a UUIDv7, so ids sort by the time they were made.

    It is a valid W3C trace id as well.

    >>> len(new_id()), new_id()[12]
    (32, '7')
    """
    try:
        high, low = _numbers.pop(), _numbers.pop()
    except IndexError:
        high, low = new_unit_id(), new_unit_id()
    return f"{time_ns() // 1_000_000:012x}7{high[:3]}{_VARIANT[low[0]]}{low[1:]}"


def new_unit_id() -> str:
    """A new unit id: 16 hex digits, made here always, so two requests with one tracking id stay two.

    >>> len(new_unit_id())
    16
    """
    try:
        return _numbers.pop()
    except IndexError:
        return _draw()


def is_valid(text: object) -> bool:
    """Whether a text may be a tracking id: 1 to 128 visible ASCII characters, none of them `"`, `,` or a backslash.

    >>> is_valid("Root=1-67891233-abcdef012345678912345678"), is_valid("a\\x1b[2J"), is_valid("é")
    (True, False, False)
    """
    return isinstance(text, str) and text.isascii() and STANDARD.fullmatch(text.encode("ascii")) is not None


def check_tracking_id(text: str | None) -> str | None:
    """`text`, when it is a tracking id or None; else `ConfigurationError`."""
    if text is not None and not is_valid(text):
        raise ConfigurationError(
            f"tracking_id {str(text)[:60]!r} cannot be used; "
            "take 1 to 128 visible ASCII characters, no double quote, comma or backslash"
        )
    return text
