"""`@locked("name-{user_id}")`: a lock around a function, named by its arguments."""

from __future__ import annotations

import inspect
import string
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

from onebeat.errors import ConfigurationError
from onebeat.locks.lock import BackendLock
from onebeat.locks.request import Seconds, lock_request

P = ParamSpec("P")
R = TypeVar("R")


class LockedDecorator(Protocol):
    """Takes a function and returns one that is called alike."""

    def __call__(self, function: Callable[P, R], /) -> Callable[P, R]: ...


class Maker(Protocol):
    """What makes locks."""

    def lock(self, name: str, *, ttl: Seconds = 30, wait: Seconds | None = None) -> BackendLock:
        """The lock of that name."""


class Locked:
    """The decorator; one lock for each name that the arguments make."""

    def __init__(self, locks: Maker, template: str, ttl: Seconds, wait: Seconds | None) -> None:
        self._locks = locks
        self._template = template
        self._ttl = ttl
        self._wait = wait
        self._parameters = parameters(template)
        # What cannot work is said where it is written: the words around the parameters, `ttl`, `wait`.
        lock_request(template.format_map(dict.fromkeys(self._parameters, "x")), ttl, wait)

    def __call__(self, function: Callable[P, R], /) -> Callable[P, R]:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(
                f"{_named(function)} is a generator function, which runs when it is iterated; lock that loop"
            )
        signature = inspect.signature(function)
        self._check(signature, _named(function))

        def lock(args: Any, kwargs: Any) -> BackendLock:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            name = self._template.format_map({name: bound.arguments[name] for name in self._parameters})
            return self._locks.lock(name, ttl=self._ttl, wait=self._wait)

        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def around(*args: P.args, **kwargs: P.kwargs) -> Any:
                async with lock(args, kwargs):
                    return await function(*args, **kwargs)

            return around  # type: ignore[return-value]  # the wrapper returns what the coroutine function returns

        @wraps(function)
        def around_sync(*args: P.args, **kwargs: P.kwargs) -> R:
            with lock(args, kwargs):
                return function(*args, **kwargs)

        return around_sync

    def _check(self, signature: inspect.Signature, function: str) -> None:
        plain = {
            name
            for name, parameter in signature.parameters.items()
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        }
        for name in self._parameters:
            if name not in plain:
                raise ConfigurationError(
                    f"the lock's name {self._template!r} speaks of {name!r}, and {function} has no such parameter; "
                    f"it has {', '.join(sorted(plain)) or 'none'}"
                )


def _named(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))  # a `functools.partial` has none


def parameters(template: str) -> tuple[str, ...]:
    """The parameters that a lock's name is made of.

    Raises `ConfigurationError` for anything but plain names in braces: no attribute, index, conversion or format.

    >>> parameters("mail-{user_id}")
    ('user_id',)
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigurationError(f"the lock's name {template!r} cannot be read: {error}") from None
    names = []
    for _, field, form, conversion in parts:
        if field is None:
            continue
        if not field.isidentifier() or form or conversion:
            raise ConfigurationError(
                f"{{{field}}} in the lock's name {template!r} cannot be used; only plain parameter names in braces can"
            )
        names.append(field)
    return tuple(names)
