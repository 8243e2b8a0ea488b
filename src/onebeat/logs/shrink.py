"""The shortening of records that are too long: large values become markers, surplus ones are counted and dropped."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any, Final

from onebeat.logs.encoder import escaped, to_json
from onebeat.logs.plain import FIELD_LIMIT, clip

LINE_LIMIT: Final = 48 * 1024  # bytes of a line without its exception
_SMALL: Final = 256  # bytes of a field that a marker would not make much smaller


def shrunk(values: dict[str, Any], *, message: str, kept: AbstractSet[str]) -> dict[str, Any]:
    """The same within half the limit: the message cut, the fields in `kept` all there, the place of `exc` still last.

    >>> small = shrunk({"msg": "m", "big": "x" * 30_000, "user": 7}, message="msg", kept={"msg"})
    >>> small["big"], small["user"]
    ('…[30002 bytes left out]', 7)
    """
    small: dict[str, Any] = {}
    room, missing = LINE_LIMIT // 2, 0
    last = next(reversed(values))
    for key, value in values.items():
        if key == message and isinstance(value, str):
            value = clip(value, FIELD_LIMIT // 2)
        size = _size(key) + _size(value)
        if size > _SMALL and size > room:
            value = f"…[{_size(value)} bytes left out]"
            size = _size(key) + _size(value)
        if size > room and key not in kept:
            missing += 1
            continue
        if key == last and missing:
            small["…"] = f"[{missing} fields left out]"
        room -= size
        small[key] = value
    if missing:
        small.setdefault("…", f"[{missing} fields left out]")
    return small


def _size(value: object) -> int:
    """Bytes in the line, where hostile characters take six each."""
    return len(escaped(to_json(value)).encode())
