"""The conversion of any object to plain JSON values, within limits of depth, length and number. It never raises."""

from __future__ import annotations

import enum
import math
from collections import UserList, deque
from collections.abc import Callable, Iterable, Mapping, Set as AbstractSet, ValuesView
from datetime import date, datetime, time, timedelta
from types import SimpleNamespace
from typing import Any, Final

from onebeat.logs.redact import REDACTED, without_secrets

FIELD_LIMIT: Final = 8 * 1024  # characters of one text value
DEPTH_LIMIT: Final = 8  # containers within containers
ITEM_LIMIT: Final = 128  # members of one container
NODE_LIMIT: Final = 2_000  # values in one field, so that wide cycles end
TEXT_BUDGET: Final = 64 * 1024  # characters of all texts in one field; a line has room for 48 KiB
_SLACK: Final = 1024  # characters looked at behind a limit: a secret that the limit cuts through is known by its end
_BIG = 1 << 63  # numbers beyond 64 bits lose digits in most readers of JSON

_FIELDS: Final = ("__dataclass_fields__", "__pydantic_fields__", "__attrs_attrs__")  # where classes keep their fields
_LISTS: Final = (list, tuple, AbstractSet, deque, UserList, ValuesView)

Secret = Callable[[str, object], bool]


def plain(value: object, secret: Secret) -> Any:
    """The value as null, boolean, number, text, list or mapping; secrets replaced, long things cut with a marker.

    >>> from onebeat.logs.redact import Redactor
    >>> plain({"user": 7, "password": "x", "at": float("nan"), "raw": b"\\xff"}, Redactor())
    {'user': 7, 'password': '[redacted]', 'at': None, 'raw': '\\\\xff'}
    """
    return _Plain(secret).value(value, 0)


def clip(text: str, limit: int = FIELD_LIMIT) -> str:
    """At most `limit` characters and a marker that says how many are missing.

    >>> clip("abcdef", 4)
    'abcd…[+2 characters]'
    """
    if len(text) <= limit:
        return text
    return f"{text[:limit]}…[+{len(text) - limit} characters]"


def clean(text: str, limit: int = FIELD_LIMIT) -> str:
    """The text without secrets, at most `limit` characters of it; a huge one costs no more than a long one.

    >>> clean("postgresql://u:hunter2@db", 20)
    'postgresql://u:[reda…[+8 characters]'
    """
    if len(text) <= limit + _SLACK:
        return clip(without_secrets(text), limit)
    head = without_secrets(text[: limit + _SLACK])
    head = head[: min(limit, len(head) - _SLACK)]  # a secret may be cut at the very end
    return f"{head}…[+{len(text) - limit} characters]"


def described(value: object) -> str:
    """`str(value)`; if that fails, what the value is and how it failed."""
    try:
        return str.__str__(str(value))
    except Exception as error:  # noqa: BLE001 - whatever a user's __str__ raises must not lose the record
        return f"<{kind(value)}: __str__ raised {kind(error)}>"


def shown(value: object) -> str:
    """`repr(value)`; if that fails, what the value is and how it failed."""
    try:
        return str.__str__(repr(value))
    except Exception as error:  # noqa: BLE001 - whatever a user's __repr__ raises must not lose the record
        return f"<{kind(value)}: __repr__ raised {kind(error)}>"


def kind(value: object) -> str:
    """The name of the value's class, which hostile metaclasses cannot make fail."""
    return str(type.__getattribute__(type(value), "__name__"))


class _Plain:
    """One conversion; counts its values and their characters, so that it ends soon."""

    __slots__ = ("_left", "_room", "_secret")

    def __init__(self, secret: Secret) -> None:
        self._secret = secret
        self._left = NODE_LIMIT
        self._room = TEXT_BUDGET

    def value(self, value: object, depth: int) -> Any:
        self._left -= 1
        if value is None or value is True or value is False:
            return value
        if self._left < 0:
            return "…[too many values]"
        try:
            return self._scalar(value, depth)
        except Exception as error:  # noqa: BLE001 - hostile subclasses of anything may raise anything
            return f"<{kind(value)}: {kind(error)}>"

    def _scalar(self, value: object, depth: int) -> Any:
        if isinstance(value, enum.Enum):
            return self.value(value.value, depth + 1) if depth < DEPTH_LIMIT else described(value)
        if isinstance(value, str):
            return self._text(str.__str__(value))
        if isinstance(value, int):
            return int(value) if -_BIG <= value < _BIG else _number(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else None
        if isinstance(value, (bytes, bytearray, memoryview)):
            raw = bytes(value[: FIELD_LIMIT + 2 * _SLACK])
            return self._text(raw.decode("utf-8", "backslashreplace"))
        if isinstance(value, (datetime, date, time)):
            return value.isoformat()
        if isinstance(value, timedelta):
            return value.total_seconds()
        if isinstance(value, BaseException):
            return self._text(f"{kind(value)}: {described(value)}")
        return self._container(value, depth)

    def _text(self, text: str) -> str:
        """The text without secrets, as far as the budget of the field reaches."""
        if self._room <= 0:
            return f"…[{len(text)} characters left out]"
        limit = min(FIELD_LIMIT, self._room)
        self._room -= min(len(text), limit)
        return clean(text, limit)

    def _container(self, value: object, depth: int) -> Any:
        names = _names_of(value)
        is_mapping = isinstance(value, Mapping)
        if names is None and not is_mapping and not isinstance(value, _LISTS):
            return self._text(described(value))
        if depth >= DEPTH_LIMIT:
            return f"…[{kind(value)} too deep]"
        if names is not None:
            return self._mapping(((name, getattr(value, name, None)) for name in names), depth)
        if is_mapping:
            return self._mapping(value.items(), depth)  # type: ignore[attr-defined]  # isinstance was asked above
        return self._list(value, depth)

    def _mapping(self, pairs: Any, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if len(result) >= ITEM_LIMIT or self._left < 0:
                result["…"] = "[more left out]"
                break
            name = clip(key if type(key) is str else described(key), 256)
            result[name] = REDACTED if self._secret(name, value) else self.value(value, depth + 1)
        return result

    def _list(self, values: Any, depth: int) -> list[Any]:
        if (name := self._secret_name(values)) is not None:
            return [name, REDACTED]
        result: list[Any] = []
        for value in values:
            if len(result) >= ITEM_LIMIT or self._left < 0:
                result.append("…[more left out]")
                break
            result.append(self.value(value, depth + 1))
        return result

    def _secret_name(self, values: object) -> str | None:
        """The name of a pair of a secret's name and its value, as in the raw headers of a request."""
        if not isinstance(values, (tuple, list)) or len(values) != 2:
            return None
        name, value = values
        if isinstance(name, bytes):
            name = name[:256].decode("latin-1")
        return name if type(name) is str and len(name) <= 256 and self._secret(name, value) else None


def _names_of(value: object) -> Iterable[str] | None:
    """The fields of a dataclass, a named tuple, an attrs class, a pydantic model or a namespace; None for all else."""
    if isinstance(value, type):
        return None
    if isinstance(value, SimpleNamespace):
        return list(vars(value))
    cls = type(value)
    if isinstance(value, tuple):
        names = getattr(cls, "_fields", None)
        return names if isinstance(names, tuple) else None
    for attribute in _FIELDS:
        fields = getattr(cls, attribute, None)
        if isinstance(fields, Mapping):
            return [*fields, *(getattr(value, "__pydantic_extra__", None) or ())]
        if isinstance(fields, tuple):
            return [field.name for field in fields]
    return None


def _number(value: int) -> str:
    bits = int.bit_length(value)
    return int.__repr__(value) if bits < 4_000 else f"<integer of {bits} bits>"
