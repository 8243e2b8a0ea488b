"""Canonical JSON text: what may be stored as arguments and values, and how."""

from __future__ import annotations

import json
import math
from typing import Any

from pydantic_core import to_jsonable_python

from onebeat.errors import InvalidArguments

MAX_BYTES = 64 * 1024  # one row must stay cheap to read and to replicate
MAX_DEPTH = 32  # deeper data is a mistake, and recursion must stay bounded
MAX_NODES = 10_000
_EXACT = frozenset({str, int, float, dict, list})
MAX_BITS = 3_400  # of one number: a thousand digits; Python itself reads and writes no more than 4,300


def encode(value: Any, *, what: str = "the value", exact: bool = False) -> str:
    """Return the canonical JSON text of `value`: sorted keys, ASCII, at most 64 KiB, depth 32, 10,000 nodes.

    `exact` refuses what JSON would give back as another type: tuples, and subclasses of the JSON types.
    Raises `InvalidArguments`, naming `what` and the place of the fault.

    >>> encode({"b": 1, "a": [True, None]})
    '{"a":[true,null],"b":1}'
    """
    _check(value, what, exact)
    text = canonical(value)
    if len(text) > MAX_BYTES:
        raise InvalidArguments(
            f"{what} is {len(text):,} bytes of JSON; at most {MAX_BYTES:,} are stored. "
            "Keep large data in a table or file of your own and pass its key."
        )
    return text


def canonical(value: Any) -> str:
    """The same form without the limits, for onebeat's own facts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def plain(value: Any) -> Any:
    """A value as JSON data: models, dataclasses, dates and the like become what pydantic makes of them."""
    if value is None or type(value) in (str, int, bool, float):
        return value
    return to_jsonable_python(value)


def decode(text: str) -> Any:
    """The value of a stored text; raises `InvalidArguments` when it is no JSON or too deep."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidArguments(f"stored JSON cannot be read: {error}") from error


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _check(value: Any, what: str, exact: bool) -> None:
    nodes = 0
    stack: list[tuple[Any, int, str]] = [(value, 1, "")]
    while stack:
        item, depth, path = stack.pop()
        nodes += 1
        place = f"{what}{path}"
        if nodes > MAX_NODES:
            raise InvalidArguments(f"{what} has more than {MAX_NODES:,} parts; store them and pass their key")
        if depth > MAX_DEPTH:
            raise InvalidArguments(f"{what} is nested deeper than {MAX_DEPTH} levels; flatten it or pass a key")
        if item is None or item is True or item is False or type(item) is str:
            continue
        if exact and type(item) not in _EXACT:
            raise InvalidArguments(
                f"{place} is a {type(item).__qualname__}, which JSON would not give back; "
                "annotate the parameter with its type so that it can be stored and restored, or pass plain data"
            )
        if isinstance(item, int) and item.bit_length() > MAX_BITS:
            raise InvalidArguments(f"{place} is a number of over 1,000 digits, which few can read; pass it as text")
        if isinstance(item, float):
            if not math.isfinite(item):
                raise InvalidArguments(f"{place} is {item}; JSON has only finite numbers")
        elif isinstance(item, dict):
            for key, child in item.items():
                if not isinstance(key, str) or (exact and type(key) is not str):
                    raise InvalidArguments(f"{place} has the key {key!r:.40}; JSON keys are strings")
                stack.append((child, depth + 1, f"{path}.{key:.40}"))
        elif isinstance(item, list | tuple):
            stack.extend((child, depth + 1, f"{path}[{number}]") for number, child in enumerate(item))
        elif not isinstance(item, str | int):
            raise InvalidArguments(
                f"{place} is a {type(item).__qualname__}, which is not JSON; "
                "annotate the parameter with its type so that it can be stored and restored, or pass plain data"
            )
