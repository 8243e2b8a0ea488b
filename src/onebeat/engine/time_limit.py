"""A limit of time for a coroutine, which costs a timer only once the coroutine waits for something."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, Protocol, TypeVar, cast

R = TypeVar("R")


class Timer(Protocol):
    """What `start_timer` returns."""

    def cancel(self) -> object:
        """Stop it."""


class Limited(Generic[R]):
    """Await it to await `coroutine`; `start_timer` is called when that waits for the first time.

    What ends at once, as many short jobs do, needs no timer. The caller's task runs every step.
    """

    __slots__ = ("_coroutine", "_start_timer")

    def __init__(self, coroutine: Coroutine[Any, Any, R], start_timer: Callable[[], Timer]) -> None:
        self._coroutine = coroutine
        self._start_timer = start_timer

    def __await__(self) -> Generator[Any, Any, R]:
        steps = self._coroutine.__await__()
        try:
            waits_for = next(steps)
        except StopIteration as done:
            return cast(R, done.value)
        timer = self._start_timer()
        try:
            while True:
                try:
                    yield waits_for
                except GeneratorExit:
                    steps.close()
                    raise
                except BaseException as error:  # noqa: BLE001 - thrown into the coroutine, as `yield from` would do
                    try:
                        waits_for = steps.throw(error)
                    except StopIteration as done:
                        return cast(R, done.value)
                else:
                    return (yield from steps)
        finally:
            timer.cancel()
