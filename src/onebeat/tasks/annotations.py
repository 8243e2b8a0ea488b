"""What an annotation alone says about its values: JSON keeps all of them, or it can never restore one."""

from __future__ import annotations

import collections.abc as abc
import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, PlainSerializer, WrapSerializer

from onebeat.tasks.difference import SECRETS, Difference, masked

_SCALARS = (int, str, bool, float, type(None))
_FREE: tuple[Any, ...] = (Any, object, list, dict)  # the encoder itself refuses what JSON would not keep
_LAZY = (abc.Iterable, abc.Iterator, abc.Generator, abc.AsyncIterable, abc.AsyncIterator, abc.AsyncGenerator)
_CODE: tuple[Any, ...] = (abc.Callable, type)
_SERIALIZERS = (PlainSerializer, WrapSerializer)


def is_plain(hint: Any) -> bool:
    """Return whether every value that pydantic accepts for this annotation is restored from JSON as it was.

    Values inside `Any` are the exception: the encoder checks them.

    >>> is_plain(dict[str, list[int | None]]), is_plain(tuple[int, ...])
    (True, False)
    """
    if any(hint is one for one in (*_SCALARS, *_FREE)):
        return True
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return is_plain(args[0])
    if origin is dict:
        return args[0] is str and is_plain(args[1])
    if origin is Literal:
        return all(type(value) is str for value in args)
    if _is_union(origin):
        others = [arm for arm in args if arm not in _SCALARS]
        return not others or (len(others) == 1 and len(args) == 2 and type(None) in args and is_plain(others[0]))
    return False


def never_restored(hint: Any, path: str = "", seen: tuple[Any, ...] = ()) -> Difference | None:
    """Return why no value of this annotation could arrive as it was given; None when its values decide."""
    hint = getattr(hint, "__value__", hint)  # what a `type` alias stands for
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return None if any(isinstance(one, _SERIALIZERS) for one in args[1:]) else never_restored(args[0], path, seen)
    if _is_union(origin):
        found = [never_restored(arm, path, seen) for arm in args if arm is not type(None)]
        return found[0] if found and all(found) else None
    kind = origin or hint
    if not isinstance(kind, type):
        return None
    if issubclass(kind, SECRETS):
        return Difference(path, masked(kind))
    if kind in _LAZY or kind in _CODE:
        advice = "annotate it with list" if kind in _LAZY else "pass its name"
        return Difference(path, f"JSON cannot store a {kind.__name__}; {advice}")
    if issubclass(kind, abc.Mapping) and len(args) == 2 and _is_compound(args[0]):
        return Difference(path, "JSON keys are text, which cannot hold this key type; pass a list of pairs")
    if issubclass(kind, abc.Collection) and args:
        return _first(never_restored(arg, f"{path}[…]", seen) for arg in args)
    if kind in seen:
        return None
    return _first(
        Difference(f"{path}.{name}", "the field is required and excluded from what is stored")
        if field is _EXCLUDED
        else never_restored(field, f"{path}.{name}", (*seen, kind))
        for name, field in _required(kind)
    )


_EXCLUDED = object()


def _is_union(origin: Any) -> bool:
    return origin is Union or origin is types.UnionType


def _is_compound(key: Any) -> bool:
    """Return whether a key type has several parts, of which the text of a JSON key tells none."""
    if typing.get_origin(key) is Annotated:
        key = typing.get_args(key)[0]
    kind = typing.get_origin(key) or key
    if not isinstance(kind, type):
        return False
    return issubclass(kind, tuple | frozenset | BaseModel) or dataclasses.is_dataclass(kind)


def _required(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield name and annotation of the fields that every value of the class stores by their type alone."""
    if issubclass(kind, BaseModel):
        own = kind.__pydantic_decorators__
        if own.model_serializers or kind.model_config.get("json_encoders"):
            return
        serialized = {name for one in own.field_serializers.values() for name in one.info.fields}
        for name, field in kind.model_fields.items():
            if not field.is_required() or name in serialized or "*" in serialized:
                continue
            if any(isinstance(one, _SERIALIZERS) for one in field.metadata):
                continue
            yield name, _EXCLUDED if field.exclude else field.annotation
    elif dataclasses.is_dataclass(kind) or hasattr(kind, "__required_keys__") or hasattr(kind, "_field_defaults"):
        try:
            hints = typing.get_type_hints(kind, include_extras=True)
        except NameError:  # a name that only the module's type checker sees; pydantic says it better
            return
        required = getattr(kind, "__required_keys__", hints.keys() - vars(kind).keys())
        yield from ((name, hint) for name, hint in hints.items() if name in required)


def _first(found: Iterator[Difference | None]) -> Difference | None:
    return next((one for one in found if one is not None), None)
