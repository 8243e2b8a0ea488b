"""Where a task's function may run: the event loop, a thread, a child process; what cannot work is refused at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Literal

from onebeat.errors import ConfigurationError
from onebeat.tasks.context import JobContext

RunIn = Literal["auto", "loop", "thread", "process"]


def check_placement(function: Callable[..., Any], name: str, run_in: str) -> None:
    """Raise `ConfigurationError`, with what to change, for a function that cannot run there."""
    if run_in not in ("auto", "loop", "thread", "process"):
        raise ConfigurationError(f"task {name!r}: run_in={run_in!r}; take 'auto', 'loop', 'thread' or 'process'")
    plain = inspect.unwrap(function)
    if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
        raise ConfigurationError(f"task {name!r} is a generator, whose body no job would run: return a value instead")
    if run_in in ("thread", "process") and inspect.iscoroutinefunction(plain):
        raise ConfigurationError(
            f"task {name!r} is async and runs on the event loop; run_in={run_in!r} is for sync functions"
        )
    if run_in != "process":
        return
    if "<" in getattr(plain, "__qualname__", ""):
        raise ConfigurationError(
            f"task {name!r}: {plain.__qualname__} is made inside a function or is a lambda, so a child process cannot "
            "find it: define it at the top of a module"
        )
    for parameter, kind in _given(plain):
        raise ConfigurationError(
            f"task {name!r} runs in a process, where there is no {kind} for its parameter {parameter!r}: "
            "take what it needs as plain arguments, or leave out run_in='process'"
        )


def _given(function: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """The parameters that are filled by this process; their annotations may be text that cannot be read yet."""
    for parameter in inspect.signature(function).parameters.values():
        hint, default = parameter.annotation, parameter.default
        if hint is JobContext or (isinstance(hint, str) and hint.rpartition(".")[2] == JobContext.__name__):
            yield parameter.name, JobContext.__name__
        metadata = (*getattr(hint, "__metadata__", ()), default)
        if any(type(one).__name__ == "Depends" for one in metadata) or (isinstance(hint, str) and "Depends(" in hint):
            yield parameter.name, "Depends"
