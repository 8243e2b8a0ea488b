"""References by which a child process finds a function, and the search for the part of a call that pickle refuses."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

FunctionReference = tuple[str, str, int]
"""Module, qualified name, and how many `__wrapped__` attributes to follow from the object there to the function."""


def reference(function: Callable[..., Any]) -> FunctionReference | None:
    """Return where a child finds this function; None when it cannot be reached by name.

    A decorator binds its own object to the function's name, so pickle refuses the function itself. The wrappers'
    `__wrapped__` attributes lead to it.

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


def resolve(where: FunctionReference) -> Callable[..., Any]:
    """Import the module of a reference and return the function that it names."""
    module, name, depth = where
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    for _ in range(depth):
        found = found.__wrapped__
    return found  # type: ignore[no-any-return]  # a reference is only made for callables


def describe_unpicklable(value: Any, path: str) -> str:
    """Return a sentence that names the innermost part which pickle refuses, by its path from the call.

    >>> describe_unpicklable({"rows": [1, open]}, "argument 1")
    'argument 1 can be pickled'
    >>> describe_unpicklable({"rows": [1, lambda: 2]}, "argument 1")
    "argument 1['rows'][1] is a lambda: ..."
    """
    error = _pickle_error(value)
    if error is None:
        return f"{path} can be pickled"
    seen: set[int] = set()
    while id(value) not in seen:
        seen.add(id(value))
        for step, part in _parts(value):
            if (inner := _pickle_error(part)) is not None:
                value, path, error = part, path + step, inner
                break
    return f"{path} is {_describe_kind(value)}: {error}"


def _pickle_error(value: Any) -> str | None:
    """Return why pickle refuses the value; a text, because an exception would keep the frames of this search alive."""
    try:
        pickle.dumps(value, 5)
    except Exception as error:  # noqa: BLE001 - pickle raises anything a __reduce__ raises
        return str(error)
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a value, each with the text that leads to it."""
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
            for name in _slot_names(owner):
                if hasattr(value, name):
                    yield f".{name}", getattr(value, name)


def _slot_names(owner: type) -> tuple[str, ...]:
    slots = owner.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _describe_kind(value: Any) -> str:
    if callable(value) and getattr(value, "__name__", "") == "<lambda>":
        return "a lambda"
    if callable(value) and "<locals>" in getattr(value, "__qualname__", ""):
        return f"{value.__qualname__}, defined inside a function"
    return f"of type {type(value).__module__}.{type(value).__qualname__}"
