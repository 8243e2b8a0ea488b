"""Placement: whether a function can run on the event loop, in a thread or in a child process."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Literal

from onebeat.errors import ConfigurationError
from onebeat.tasks.context import JobContext

RunIn = Literal["auto", "loop", "thread", "process"]


def check_placement(function: Callable[..., Any], name: str, run_in: str) -> None:
    """Raise `ConfigurationError` when the function cannot run in `run_in`; the message says what to change."""
    if run_in not in ("auto", "loop", "thread", "process"):
        raise ConfigurationError(f"task {name!r}: run_in={run_in!r}; give 'auto', 'loop', 'thread' or 'process'")
    plain = inspect.unwrap(function)
    if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
        raise ConfigurationError(
            f"task {name!r} is a generator function, and calling it runs nothing: return a value instead of yielding"
        )
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
    for parameter, kind in _passed_by_onebeat(plain):
        raise ConfigurationError(
            f"task {name!r} runs in a process, where there is no {kind} for its parameter {parameter!r}: "
            "take what it needs as plain arguments, or leave out run_in='process'"
        )


def _passed_by_onebeat(function: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """Yield the parameters that this process passes itself; annotations may be text that cannot be evaluated yet."""
    for parameter in inspect.signature(function).parameters.values():
        hint, default = parameter.annotation, parameter.default
        if hint is JobContext or (isinstance(hint, str) and hint.rpartition(".")[2] == JobContext.__name__):
            yield parameter.name, JobContext.__name__
        metadata = (*getattr(hint, "__metadata__", ()), default)
        if any(type(one).__name__ == "Depends" for one in metadata) or (isinstance(hint, str) and "Depends(" in hint):
            yield parameter.name, "Depends"
