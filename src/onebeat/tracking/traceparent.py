"""W3C trace context: `traceparent` and `tracestate`, read strictly, written for the next hop."""

from __future__ import annotations

import re
from collections.abc import Sequence
from os import urandom
from typing import NamedTuple

_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
_KEY = re.compile(rb"[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13}")
_VALUE = re.compile(rb"[ -+\--<>-~]{0,255}[!-+\--<>-~]")
PARENT_LIMIT = 512  # bytes of a traceparent of a version to come
STATE_LIMIT = 8 * 1024  # bytes
STATE_MEMBERS = 32


class Trace(NamedTuple):
    """Where a unit stands in a trace: trace id (32 hex), the caller's span id (16 hex), flags (2 hex), tracestate.

    >>> Trace("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "01").header("53995c3f42cd8ad8")
    '00-4bf92f3577b34da6a3ce929d0e0e4736-53995c3f42cd8ad8-01'
    """

    trace_id: str
    span_id: str
    flags: str = "00"
    state: str | None = None

    def header(self, span_id: str | None = None) -> str:
        """A `traceparent` for a call made from here, with a new span id if none is given."""
        return f"00-{self.trace_id}-{span_id or new_span_id()}-{self.flags}"


def new_span_id() -> str:
    """16 hex digits, never all zero.

    >>> len(new_span_id())
    16
    """
    while (span := urandom(8)) == bytes(8):
        pass
    return span.hex()


def read(parents: Sequence[bytes], states: Sequence[bytes] = ()) -> Trace | None:
    """The trace a request belongs to, or None where the headers are absent, doubled or wrong in any way.

    >>> read([b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"]).trace_id
    '4bf92f3577b34da6a3ce929d0e0e4736'
    >>> read([b"00-00000000000000000000000000000000-00f067aa0ba902b7-01"]) is None
    True
    """
    if len(parents) != 1 or len(parents[0]) > PARENT_LIMIT:
        return None
    match = _PARENT.fullmatch(parents[0].strip(b" \t"))
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == b"ff" or (version == b"00" and more is not None):
        return None
    if trace_id == b"0" * 32 or span_id == b"0" * 16:
        return None
    return Trace(trace_id.decode(), span_id.decode(), flags.decode(), read_state(states))


def read_state(states: Sequence[bytes]) -> str | None:
    """A `tracestate`, several headers joined; None if one member is wrong, doubled, or there is too much of it."""
    if not states or sum(map(len, states)) > STATE_LIMIT:
        return None
    members = [member.strip(b" \t") for line in states for member in line.split(b",")]
    members = [member for member in members if member]  # the specification allows empty ones
    seen: set[bytes] = set()
    for member in members:
        key, equals, value = member.partition(b"=")
        if not equals or key in seen or not _KEY.fullmatch(key) or not _VALUE.fullmatch(value):
            return None
        seen.add(key)
    if not members or len(members) > STATE_MEMBERS:
        return None
    return ",".join(member.decode("ascii") for member in members)
