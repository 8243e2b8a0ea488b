"""Signature: checks a call's arguments against the function's annotations and stores them as JSON."""

from __future__ import annotations

import hashlib
import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from onebeat.errors import ConfigurationError, InvalidArguments
from onebeat.model import payload
from onebeat.tasks.argument import Argument
from onebeat.tasks.context import JobContext
from onebeat.tasks.dependencies import Dependency, depends_of, read

EMPTY = '{"a":[],"k":{}}'


class Signature:
    """Packs a call into canonical JSON text and unpacks it again.

    >>> def charge(user_id: int, note: str = "") -> None: ...
    >>> packed = Signature(charge, "charge").pack(("7",), {})
    >>> packed
    '{"a":[],"k":{"user_id":7}}'
    >>> Signature(charge, "charge").unpack(packed)
    ((), {'user_id': 7})
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self._function = function
        self._name = name

    @cached_property
    def _hints(self) -> dict[str, Any]:
        try:
            return typing.get_type_hints(inspect.unwrap(self._function), include_extras=True)
        except NameError as error:
            raise ConfigurationError(
                f"task {self._name!r}: {self._annotated_with(error.name)} cannot be read ({error}); "
                "import the name at run time, not under TYPE_CHECKING, and define it outside of functions"
            ) from error
        except TypeError as error:
            raise ConfigurationError(
                f"task {self._name!r} is a {type(self._function).__qualname__}, not a function; wrap it in a `def`, "
                "whose annotations say what it takes"
            ) from error

    def _annotated_with(self, missing: str | None) -> str:
        """Name the parameters whose annotation holds a name that cannot be found."""
        hints = inspect.get_annotations(inspect.unwrap(self._function))
        word = re.compile(rf"\b{missing}\b")
        found = [name for name, hint in hints.items() if word.search(str(hint))]
        parameters = [f"parameter {name!r}" for name in found if name != "return"]
        return f"the annotation of {' and '.join(parameters) or 'what it returns'}"

    @cached_property
    def _full(self) -> inspect.Signature:
        return inspect.signature(self._function)

    @cached_property
    def context_parameter(self) -> str | None:
        """Return the name of the parameter annotated `JobContext`, which the executor passes; None without one."""
        found = [name for name in self._full.parameters if self._hints.get(name) is JobContext]
        return found[0] if found else None

    @cached_property
    def _depends(self) -> dict[str, Any]:
        """The `Depends` of each parameter that has one."""
        found = {
            name: depends_of(self._hints.get(name), parameter.default)
            for name, parameter in self._full.parameters.items()
        }
        return {name: depends for name, depends in found.items() if depends is not None}

    @cached_property
    def dependencies(self) -> tuple[Dependency, ...]:
        """Return what the `Depends` parameters need; raises `ConfigurationError` when only a request provides it."""
        return tuple(read(self._name, name, one, self._hints.get(name)) for name, one in self._depends.items())

    @cached_property
    def injected(self) -> tuple[str, ...]:
        """Return the names of the parameters that onebeat passes: `JobContext` and `Depends`."""
        context = self.context_parameter
        return (*(() if context is None else (context,)), *self._depends)

    @cached_property
    def _callable(self) -> inspect.Signature:
        """The parameters that the enqueuing code passes."""
        kept = [p for name, p in self._full.parameters.items() if name not in self.injected]
        return self._full.replace(parameters=kept)

    @cached_property
    def _arguments(self) -> dict[str, Argument]:
        return {name: Argument(self._name, name, self._hints.get(name, Any)) for name in self._callable.parameters}

    @cached_property
    def fingerprint(self) -> str:
        """Return 16 hex digits that change when names, order, annotations or defaults of the parameters change."""
        parameters = [
            f"{p.kind.name} {p.name} {p.annotation!r} {p.default!r}" for p in self._callable.parameters.values()
        ]
        return hashlib.sha256("\n".join(parameters).encode()).hexdigest()[:16]

    def check(self) -> None:
        """Resolve every annotation now; raises `ConfigurationError` for one that cannot be stored as JSON."""
        self._check_injected()
        _ = self._arguments

    def _check_injected(self) -> None:
        """Raise `ConfigurationError` for a parameter that onebeat cannot pass by its name."""
        parameters = self._full.parameters
        takes_more = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
        for name in self.injected:
            kind = parameters[name].kind
            by_name = kind is inspect.Parameter.KEYWORD_ONLY or (
                kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and not takes_more
            )
            if not by_name:
                raise ConfigurationError(
                    f"task {self._name!r}: onebeat passes its parameter {name!r} by name; make it keyword-only, "
                    "after a `*`"
                )

    def pack(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """Return the arguments as canonical JSON text; raises `InvalidArguments`, which names the argument."""
        if not args and not kwargs and not self._callable.parameters:
            return EMPTY
        try:
            bound = self._callable.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidArguments(f"{self._name}{self._callable}: {error}") from None
        arguments = self._arguments
        positional: list[Any] = []
        named: dict[str, Any] = {}
        by_position = any(p.kind is p.VAR_POSITIONAL for p in self._callable.parameters.values())
        for name, value in bound.arguments.items():
            kind = self._callable.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                positional.extend(arguments[name].store(item) for item in value)
            elif kind is inspect.Parameter.VAR_KEYWORD:
                named.update({key: arguments[name].store(item) for key, item in value.items()})
            elif kind is inspect.Parameter.POSITIONAL_ONLY or (
                by_position and kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
            ):
                positional.append(arguments[name].store(value))
            else:
                named[name] = arguments[name].store(value)
        return payload.encode({"a": positional, "k": named}, what=f"the arguments of {self._name}", exact=True)

    def unpack(self, text: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the stored arguments with the annotated types.

        Raises `InvalidArguments` when they no longer fit the function.
        """
        if text == EMPTY and not self._callable.parameters:
            return (), {}
        stored = payload.decode(text)
        try:
            bound = self._callable.bind(*stored["a"], **stored["k"])
        except (TypeError, KeyError) as error:
            raise InvalidArguments(f"{self._name}{self._callable}: the stored arguments do not fit: {error}") from None
        arguments = self._arguments
        for name, value in bound.arguments.items():
            kind = self._callable.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                bound.arguments[name] = tuple(arguments[name].restore(item) for item in value)
            elif kind is inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = {key: arguments[name].restore(item) for key, item in value.items()}
            else:
                bound.arguments[name] = arguments[name].restore(value)
        return bound.args[: self._positional_count], _named(bound)

    @cached_property
    def _positional_count(self) -> int | None:
        parameters = self._callable.parameters.values()
        if any(p.kind is p.VAR_POSITIONAL for p in parameters):
            return None
        return sum(p.kind is p.POSITIONAL_ONLY for p in parameters)


def _named(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Return the arguments that are passed by keyword: those that `bound.args` does not pass by position."""
    parameters = bound.signature.parameters
    by_position = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        elif kind is inspect.Parameter.KEYWORD_ONLY or (
            kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and not by_position
        ):
            named[name] = value
    return named
