"""Difference: the first place in which a restored value is not equal to the value that was given."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Set
from datetime import datetime, time
from decimal import Decimal
from typing import Any, NamedTuple

from pydantic import BaseModel, Secret, SecretBytes, SecretStr

SECRETS = (SecretStr, SecretBytes, Secret)


class Difference(NamedTuple):
    """Where two values differ: `path`, such as `.user['tags'][0]`, and in which way."""

    path: str
    reason: str


def difference(given: Any, restored: Any, path: str = "") -> Difference | None:
    """Return the first difference between two values, or None when they are equal in type and content.

    Stricter than `==`: types are compared, and so are excluded and private fields, the sign of zero, and the digits
    of a decimal. Instants with a time zone are compared by UTC.
    """
    if given is restored:  # enum members, and other objects of which there is one
        return None
    kind = type(given)
    if kind is not type(restored):
        return Difference(path, f"a {kind.__qualname__} would arrive as a {type(restored).__qualname__}")
    if kind in _SIMPLE:
        return None if given == restored else _changed(given, path)
    compare = _comparison(kind)  # type: ignore[arg-type]  # mypy reads the hash of the instances, not of the class
    return compare(given, restored, path)


def masked(kind: type) -> str:
    """Return why a secret does not arrive, and what to pass instead."""
    return (
        f"a {kind.__qualname__} is stored masked; pass a reference to the secret, such as its name or row id, "
        "and read the secret inside the task"
    )


_SIMPLE = frozenset({type(None), bool, int, str, bytes})

Comparison = Callable[[Any, Any, str], Difference | None]


@functools.lru_cache(maxsize=1_000)  # bounded, as classes may be made at run time
def _comparison(kind: type) -> Comparison:
    """Return how values of a class are compared."""
    for compared, compare in _COMPARISONS:
        if issubclass(kind, compared):
            return compare
    return _in_fields if _has_fields(kind) else _by_equality


def _by_equality(given: Any, restored: Any, path: str) -> Difference | None:
    return None if given == restored else _changed(given, path)


def _in_secret(given: Any, restored: Any, path: str) -> Difference | None:
    return None if given == restored else Difference(path, masked(type(given)))


def _changed(given: object, path: str) -> Difference:
    return Difference(path, f"the {type(given).__qualname__} would arrive changed")


def _in_digits(given: Any, restored: Any, path: str) -> Difference | None:
    """Compare numbers by their text, which tells 0.0 from -0.0 and 1.0 from 1.00."""
    return None if repr(given) == repr(restored) else _changed(given, path)


def _in_time(given: Any, restored: Any, path: str) -> Difference | None:
    """Compare clock times by UTC; subtracting offsets, because a conversion to UTC fails in the years 1 and 9999."""
    offset, other = given.utcoffset(), restored.utcoffset()
    naive, other_naive = given.replace(tzinfo=None), restored.replace(tzinfo=None)
    if (offset is None) != (other is None) or (given.tzinfo is None) != (restored.tzinfo is None):
        return _changed(given, path)
    if offset is None or isinstance(given, time):
        same = naive == other_naive and offset == other and given.fold == restored.fold
    else:
        same = naive - other_naive == offset - other
    return None if same else _changed(given, path)


def _in_items(given: Any, restored: Any, path: str) -> Difference | None:
    """Compare lists, tuples and deques element by element."""
    if len(given) != len(restored) or getattr(given, "maxlen", None) != getattr(restored, "maxlen", None):
        return _changed(given, path)
    pairs = enumerate(zip(given, restored, strict=True))
    return _first(difference(a, b, f"{path}[{place}]") for place, (a, b) in pairs)


def _in_members(given: Any, restored: Any, path: str) -> Difference | None:
    """Compare sets, whose members may be equal and yet of different types."""
    same = {member: member for member in restored}
    if len(given) != len(same) or any(member not in same for member in given):
        return _changed(given, path)
    return _first(difference(member, same[member], f"{path}{{…}}") for member in given)


def _in_entries(given: Any, restored: Any, path: str) -> Difference | None:
    """Compare mappings by key; the order counts only where the type compares it too."""
    keys = {key: key for key in restored}
    if len(given) != len(keys):
        return _changed(given, path)
    if isinstance(given, OrderedDict) and list(given) != list(restored):
        return Difference(path, "the order of the keys is not stored")
    if isinstance(given, defaultdict) and given.default_factory != restored.default_factory:
        return _changed(given, path)
    for key, value in given.items():
        place = f"{path}[{key!r:.40}]"
        if key not in keys or difference(key, keys[key]) is not None:
            return Difference(place, "this key would arrive changed; JSON keys are text")
        found = difference(value, restored[key], place)
        if found is not None:
            return found
    return None


def _has_fields(kind: type) -> bool:
    """Return whether values of this class are compared field by field, as their own `==` may leave fields out."""
    return (
        issubclass(kind, BaseModel)
        or dataclasses.is_dataclass(kind)
        or hasattr(kind, "__attrs_attrs__")
        or kind.__eq__ is object.__eq__
    )


def _in_fields(given: object, restored: object, path: str) -> Difference | None:
    fields, others = _fields(given), _fields(restored)
    if fields is None or others is None:
        return Difference(path, f"a {type(given).__qualname__} cannot be compared with what would arrive")
    if fields.keys() != others.keys():
        return _changed(given, path)
    return _first(difference(value, others[name], f"{path}.{name}") for name, value in fields.items())


def _fields(value: object) -> dict[str, Any] | None:
    """Return every attribute the value holds, without cached properties; None when it is no Python object."""
    if isinstance(value, BaseModel):
        known = type(value).model_fields
        held = {name: item for name, item in value.__dict__.items() if name in known}
        return held | (value.__pydantic_extra__ or {}) | (value.__pydantic_private__ or {})
    kind = type(value)
    if not hasattr(value, "__dict__") and not hasattr(kind, "__slots__"):
        return None
    state = object.__getstate__(value)  # reads slots too; a class may override the method, and does when it is frozen
    parts: Iterable[Any] = state if isinstance(state, tuple) else (state,)
    held = {name: item for part in parts if part for name, item in part.items()}
    if dataclasses.is_dataclass(value):
        held |= {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    cached = functools.cached_property
    return {name: item for name, item in held.items() if not isinstance(inspect.getattr_static(kind, name, 0), cached)}


def _first(found: Iterable[Difference | None]) -> Difference | None:
    return next((one for one in found if one is not None), None)


_COMPARISONS: tuple[tuple[tuple[type, ...], Comparison], ...] = (
    (SECRETS, _in_secret),
    ((float, Decimal, complex), _in_digits),
    ((datetime, time), _in_time),
    ((list, tuple, deque), _in_items),
    ((Set,), _in_members),
    ((Mapping,), _in_entries),
)
