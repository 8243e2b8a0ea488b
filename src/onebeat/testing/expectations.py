"""Compares the stored jobs of a task with the arguments that a test expects."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from onebeat.errors import InvalidArguments
from onebeat.tasks.task import Task


def expected_arguments(task: Task[Any, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a test expects by parameter; parameters that it does not name may have any value.

    Raises `InvalidArguments` for a parameter that the task does not have.
    """
    try:
        return _by_name(inspect.signature(task.function).bind_partial(*args, **kwargs))
    except TypeError as error:
        raise InvalidArguments(f"{task.name}{inspect.signature(task.function)}: {error}") from None


def stored_arguments(task: Task[Any, Any], text: str) -> dict[str, Any]:
    """Return the arguments of a stored job by parameter, restored to the annotated types, with the defaults."""
    args, kwargs = task.signature.unpack(text)
    bound = inspect.signature(task.function).bind_partial(*args, **kwargs)
    bound.apply_defaults()
    return _by_name(bound)


def fits(stored: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Return whether a job has every expected argument.

    >>> fits({"user_id": 1, "note": ""}, {"user_id": 1})
    True
    """
    return all(name in stored and bool(stored[name] == value) for name, value in expected.items())


def describe_call(name: str, arguments: Mapping[str, Any]) -> str:
    """Return a call as text.

    >>> describe_call("send_email", {"user_id": 1})
    'send_email(user_id=1)'
    """
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def _by_name(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Return the arguments with those of `**kwargs` beside the others."""
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            found.update(value)
        else:
            found[name] = value
    return found
