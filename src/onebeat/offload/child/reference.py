"""How a function is named to a child process, also a decorated one, and which part of a call pickle cannot take."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

Reference = tuple[str, str, int]
"""Module, qualified name, and how many times `__wrapped__` leads from what stands there to the function."""


def reference(function: Callable[..., Any]) -> Reference | None:
    """Where a child finds this very function; None when it is not reachable by name.

    A decorator leaves its own object under the function's name, so pickle refuses the function. Its wrappers' own
    `__wrapped__` leads to it.

    >>> import json
    >>> reference(json.dumps)
    ('json', 'dumps', 0)
    >>> reference(lambda: None) is None
    True
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        return None
    found: Any = sys.modules.get(module)
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        return None
    depth = 0
    while found is not function:
        if (found := getattr(found, "__wrapped__", None)) is None:
            return None
        depth += 1
    return module, name, depth


def resolve(where: Reference) -> Callable[..., Any]:
    """The function a reference names, imported here."""
    module, name, depth = where
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    for _ in range(depth):
        found = found.__wrapped__
    return found  # type: ignore[no-any-return]  # a reference is only made for callables


def culprit(value: Any, path: str) -> str:
    """One sentence that names the innermost part pickle refuses, by the path that leads to it from the call.

    >>> culprit({"rows": [1, open]}, "argument 1")
    'argument 1 can be pickled'
    >>> culprit({"rows": [1, lambda: 2]}, "argument 1")
    "argument 1['rows'][1] is a lambda: ..."
    """
    error = _refusal(value)
    if error is None:
        return f"{path} can be pickled"
    seen: set[int] = set()
    while id(value) not in seen:
        seen.add(id(value))
        for step, part in _parts(value):
            if (inner := _refusal(part)) is not None:
                value, path, error = part, path + step, inner
                break
    return f"{path} is {_kind(value)}: {error}"


def _refusal(value: Any) -> Exception | None:
    try:
        pickle.dumps(value, 5)
    except Exception as error:  # noqa: BLE001 - pickle raises anything a __reduce__ raises
        return error
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value holds, each with the text that leads to it."""
    if isinstance(value, dict):
        for key, part in list(value.items()):
            yield f"'s key {key!r:.60}", key
            yield f"[{key!r:.60}]", part
    elif isinstance(value, list | tuple | set | frozenset):
        for index, part in enumerate(value):
            yield f"[{index}]", part
    elif isinstance(value, partial):
        yield ".func", value.func
        yield ".args", value.args
        yield ".keywords", value.keywords
    elif (owner := getattr(value, "__self__", None)) is not None and callable(value):
        yield ".__self__", owner
    else:
        for name, part in list(getattr(value, "__dict__", {}).items()):
            yield f".{name}", part
        for owner in type(value).__mro__:
            for name in _slots(owner):
                if hasattr(value, name):
                    yield f".{name}", getattr(value, name)


def _slots(owner: type) -> tuple[str, ...]:
    slots = owner.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _kind(value: Any) -> str:
    if callable(value) and getattr(value, "__name__", "") == "<lambda>":
        return "a lambda"
    if callable(value) and "<locals>" in getattr(value, "__qualname__", ""):
        return f"{value.__qualname__}, made inside a function"
    return f"of type {type(value).__module__}.{type(value).__qualname__}"
