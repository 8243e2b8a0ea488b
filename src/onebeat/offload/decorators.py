"""`@blocking` and `@cpu_bound`: turn a plain function into one that is awaited, on a thread or in a process."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, Literal, ParamSpec, TypeVar, overload

from onebeat.errors import ConfigurationError
from onebeat.offload.limits import in_seconds
from onebeat.offload.pool.calls import deferred_kind, name_of
from onebeat.offload.pool.lanes import Lane
from onebeat.offload.processes import to_process
from onebeat.offload.threads import check_choice, to_thread

P = ParamSpec("P")
R = TypeVar("R")
AwaitableFunction = Callable[P, Coroutine[Any, Any, R]]


@overload
def blocking(function: Callable[P, R], /) -> AwaitableFunction[P, R]: ...
@overload
def blocking(
    *,
    lane: Lane | None = None,
    timeout: float | timedelta | None = None,
    on_timeout: Literal["abandon", "wait"] = "abandon",
) -> Callable[[Callable[P, R]], AwaitableFunction[P, R]]: ...
def blocking(
    function: Callable[..., Any] | None = None,
    /,
    *,
    lane: Lane | None = None,
    timeout: float | timedelta | None = None,
    on_timeout: Literal["abandon", "wait"] = "abandon",
) -> Any:
    """Turn a blocking function into one that is awaited: each call runs on a thread, as with `to_thread`.

    Keyword arguments of the call go to the function. The plain function is `__wrapped__`. Under a route decorator it
    gives a ``def`` route a lane of its own instead of Starlette's forty shared threads.

    >>> @blocking(timeout=5)
    ... def read(text: str, *, upper: bool = False) -> str:
    ...     return text.upper() if upper else text
    >>> import asyncio
    >>> asyncio.run(read("hi", upper=True))
    'HI'
    """
    check_choice("on_timeout", on_timeout, ("abandon", "wait"))
    timeout = in_seconds(timeout)

    def decorate(plain: Callable[..., Any]) -> Callable[..., Any]:
        _refuse("blocking", plain)

        @functools.wraps(plain)
        async def call(*args: Any, **kwargs: Any) -> Any:
            bound = functools.partial(plain, **kwargs) if kwargs else plain
            return await to_thread(bound, *args, timeout=timeout, lane=lane, on_timeout=on_timeout)

        return call

    return decorate if function is None else decorate(function)


@overload
def cpu_bound(function: Callable[P, R], /) -> AwaitableFunction[P, R]: ...
@overload
def cpu_bound(
    *, timeout: float | timedelta | None = None, cancel: Literal["end", "wait"] = "end"
) -> Callable[[Callable[P, R]], AwaitableFunction[P, R]]: ...
def cpu_bound(
    function: Callable[..., Any] | None = None,
    /,
    *,
    timeout: float | timedelta | None = None,
    cancel: Literal["end", "wait"] = "end",
) -> Any:
    """Turn a CPU-bound function into one that is awaited: each call runs in a child process, as with `to_process`.

    The function must be defined at the top of a module or in a class there, so that a child finds it by name. A lambda
    or a function defined inside another is refused here with `ConfigurationError`, not at its first call. The plain
    function is `__wrapped__`.

    >>> @cpu_bound(timeout=30)
    ... def add(a: int, b: int) -> int:
    ...     return a + b
    >>> add.__wrapped__(1, 2)
    3
    """
    check_choice("cancel", cancel, ("end", "wait"))
    timeout = in_seconds(timeout)

    def decorate(plain: Callable[..., Any]) -> Callable[..., Any]:
        _refuse("cpu_bound", plain)
        if "<" in getattr(plain, "__qualname__", "<"):
            raise ConfigurationError(
                f"@cpu_bound: {name_of(plain)} is defined inside a function or is a lambda, so a child process cannot "
                "find it. Define it at the top of a module."
            )

        @functools.wraps(plain)
        async def call(*args: Any, **kwargs: Any) -> Any:
            bound = functools.partial(plain, **kwargs) if kwargs else plain
            return await to_process(bound, *args, timeout=timeout, cancel=cancel)

        return call

    return decorate if function is None else decorate(function)


def _refuse(decorator: str, plain: Callable[..., Any]) -> None:
    if isinstance(plain, classmethod | staticmethod):
        outer = f"@{type(plain).__name__}"
        raise ConfigurationError(
            f"@{decorator} belongs below {outer}, next to the function itself: write {outer} above @{decorator}"
        )
    if not callable(plain):
        raise ConfigurationError(f"@{decorator} takes a function, not {type(plain).__name__}; its options are keywords")
    if (kind := deferred_kind(plain)) is not None:
        raise ConfigurationError(f"@{decorator} takes a plain function; {name_of(plain)} is {kind}")
