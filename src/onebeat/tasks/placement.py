"""Placement: whether a function can run on the event loop, in a thread or in a child process."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from onebeat.errors import ConfigurationError
from onebeat.tasks.context import JobContext
from onebeat.tasks.dependencies import depends_of

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
    refuse_in_a_process(name, run_in, _passed_by_onebeat(plain))


def refuse_in_a_process(name: str, run_in: str, injected: Iterable[str]) -> None:
    """Raise `ConfigurationError` for a task of a child process with a parameter that only this process can pass."""
    for parameter in injected if run_in == "process" else ():
        raise ConfigurationError(
            f"task {name!r} runs in a process, where neither a JobContext nor what Depends makes can be passed to its "
            f"parameter {parameter!r}: take what it needs as plain arguments, or leave out run_in='process'"
        )


def _passed_by_onebeat(function: Callable[..., Any]) -> Iterator[str]:
    """Yield the parameters that this process passes itself; annotations may be text that cannot be evaluated yet."""
    for parameter in inspect.signature(function).parameters.values():
        hint = parameter.annotation
        is_context = hint is JobContext or (isinstance(hint, str) and hint.rpartition(".")[2] == JobContext.__name__)
        is_text = isinstance(hint, str) and re.search(r"\b(Depends|Security)\(", hint)
        if is_context or is_text or depends_of(hint, parameter.default) is not None:
            yield parameter.name
