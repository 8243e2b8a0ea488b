"""What travels with a job or a call to a child process: at most 8 KiB of JSON text, checked again on arrival."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, TypeVar

from onebeat.concurrency.forks import ForkSafeLock
from onebeat.errors import ConfigurationError, InvalidArguments
from onebeat.tracking.context import Tracking, trace
from onebeat.tracking.ids import is_valid
from onebeat.tracking.traceparent import Trace, read

LIMIT: Final = 8 * 1024  # bytes of the whole text
FIELDS_LIMIT: Final = 4 * 1024  # bytes of the user's fields; the largest are left behind
STATE_LIMIT: Final = 1024  # bytes of tracestate; a longer one is left behind as a whole
NAME_LIMIT: Final = 128  # characters of a field's name
T = TypeVar("T")

_log = logging.getLogger("onebeat.tracking")
_lock = ForkSafeLock()


@dataclass(frozen=True, slots=True)
class _Registered:
    var: ContextVar[Any]
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


_registered: Mapping[str, _Registered] = MappingProxyType({})


def _same(value: Any) -> Any:
    return value


def propagate(
    var: ContextVar[T],
    /,
    *,
    encode: Callable[[T], Any] = _same,
    decode: Callable[[Any], T] = _same,
) -> ContextVar[T]:
    """Let a context variable of your own travel to jobs and child processes, as JSON, under its name.

    `encode` makes a JSON value of it, `decode` makes it again. Call it at import time, in every process. All that
    travels may take 8 KiB. Threads and asyncio tasks carry every variable anyway. Raises `ConfigurationError` for two
    variables of one name.

    >>> tenant = propagate(ContextVar("tenant", default="none"))
    >>> tenant.get()
    'none'
    """
    global _registered
    with _lock:
        known = _registered.get(var.name)
        if known is not None and known.var is not var:
            raise ConfigurationError(
                f"two context variables named {var.name!r} are propagated; give one of them another name"
            )
        _registered = MappingProxyType({**_registered, var.name: _Registered(var, encode, decode)})
    return var


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """What arrived, checked: nothing in it can harm a log, a header or a limit."""

    parent_id: str | None = None
    trace: Trace | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)  # what a child process needs to be in the same unit


NOTHING: Final = Payload()


def write(unit: Tracking | None, **more: Any) -> str | None:
    """The text for what is in force here; None if there is nothing to carry.

    Raises `InvalidArguments` if a propagated variable is no JSON, or all of them are too large.
    """
    parts: dict[str, Any] = dict(more)
    variables = _variables()
    if variables:
        parts["vars"] = variables
    if unit is not None:
        parts["parent"] = unit.unit_id
        _add_trace(parts, trace())
        if unit.fields:
            parts["fields"] = _fitting(unit.fields)
    if not parts:
        return None
    text = _json(parts)
    if len(text) > LIMIT:
        largest = max(variables, key=lambda name: len(_json(variables[name])), default="tracestate")
        raise InvalidArguments(
            f"what travels with the call takes {len(text)} bytes, more than {LIMIT}; the largest of the propagated "
            f"context variables is {largest!r}: let it travel as an id of the data instead"
        )
    return text


def read_payload(text: object) -> Payload:
    """What a text from a database or a pipe says, without what is wrong in it. Never raises."""
    if text is None:
        return NOTHING
    if not isinstance(text, str) or len(text) > LIMIT:
        return Payload()
    try:
        parts = json.loads(text)
    except (ValueError, RecursionError):
        return Payload()
    if not isinstance(parts, dict):
        return Payload()
    fields, variables, own = parts.get("fields"), parts.get("vars"), parts.get("own")
    return Payload(
        parent_id=parts["parent"] if is_valid(parts.get("parent")) else None,
        trace=_trace(parts.get("traceparent"), parts.get("tracestate")),
        fields=MappingProxyType(_checked(fields)) if isinstance(fields, dict) else MappingProxyType({}),
        variables=variables if isinstance(variables, dict) else {},
        own=own if isinstance(own, dict) else {},
    )


def set_variables(values: Mapping[str, Any]) -> list[tuple[ContextVar[Any], Token[Any]]]:
    """Set the registered variables among these; one that cannot be made again is left out, with a warning."""
    tokens: list[tuple[ContextVar[Any], Token[Any]]] = []
    for name, value in values.items():
        known = _registered.get(name)
        if known is None:
            continue
        try:
            made = known.decode(value)
        except Exception as error:  # noqa: BLE001 - the user's decode may raise anything; the job shall run
            _log.warning("the propagated context variable %r cannot be restored: %s", name, type(error).__name__)
            continue
        tokens.append((known.var, known.var.set(made)))
    return tokens


def reset_variables(tokens: list[tuple[ContextVar[Any], Token[Any]]]) -> None:
    """Take back what `set_variables` set, also if the context has changed meanwhile."""
    for var, token in reversed(tokens):
        try:
            var.reset(token)
        except ValueError:  # left in another context, which keeps nothing of ours
            continue


# ── out ───────────────────────────────────────────────────────────────────────────────────────────────────────────────
def _variables() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, known in _registered.items():
        try:
            value = known.var.get()
        except LookupError:
            continue
        encoded = known.encode(value)
        try:
            _json(encoded)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidArguments(
                f"the propagated context variable {name!r} is no JSON ({error}); give propagate() an encode"
            ) from error
        found[name] = encoded
    return found


def _add_trace(parts: dict[str, Any], present: Trace | None) -> None:
    if present is None:
        return
    parts["traceparent"] = present.header(present.span_id)
    if present.state and len(present.state) <= STATE_LIMIT:
        parts["tracestate"] = present.state


def _fitting(fields: Mapping[str, Any]) -> dict[str, Any]:
    """As many fields as fit, the small ones first; what is no JSON travels as text."""
    sized = sorted(((len(_json(pair)), pair) for pair in map(_plain, fields.items())), key=lambda item: item[0])
    kept: dict[str, Any] = {}
    room = FIELDS_LIMIT
    for size, (name, value) in sized:
        if size > room:
            break
        room -= size
        kept[name] = value
    return {name: kept[name] for name in fields if name in kept}


def _plain(pair: tuple[str, Any]) -> tuple[str, Any]:
    name, value = pair
    try:
        _json(value)
    except (TypeError, ValueError, RecursionError):
        try:
            value = str(value)
        except Exception:  # noqa: BLE001 - a __str__ that raises
            value = f"<{type(value).__name__}>"
    return name, value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


# ── in ────────────────────────────────────────────────────────────────────────────────────────────────────────────────
def _trace(parent: object, state: object) -> Trace | None:
    if not isinstance(parent, str) or not parent.isascii():
        return None
    states = [state.encode()] if isinstance(state, str) and state.isascii() else []
    return read([parent.encode()], states)


def _checked(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if is_valid(name) and len(name) <= NAME_LIMIT}
