"""The messages that a process sends to its child: calls, and the state of the process itself."""

from __future__ import annotations

import logging
import os
import pickle
import select
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from onebeat.errors import ConfigurationError, InvalidArguments
from onebeat.offload.child import wire
from onebeat.offload.child.launch import working_directory
from onebeat.offload.child.reference import describe_unpicklable, reference
from onebeat.offload.child.wire import Frame
from onebeat.offload.pool.calls import BlockingCall, name_of
from onebeat.tasks.context import current
from onebeat.tracking import carrying

CallParts = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""A function with its positional and its keyword arguments."""


def call_frame(call: BlockingCall) -> Frame:
    """Return the call as a frame; `TypeError` names the part that cannot be sent."""
    function, args, kwargs = _parts(call)
    try:
        return _frame(call, reference(function) or function, args, kwargs, plain=False)
    except InvalidArguments:  # the carried context is too large
        raise
    except Exception as error:
        raise TypeError(_refusal_message(function, args, kwargs)) from error


def small_call_frame(call: BlockingCall, *, main_known: bool) -> Frame | None:
    """Return a frame for a call by name with plain arguments that fits into an empty pipe; None for any other call.

    This takes microseconds and calls no user code. `main_known` says whether the child has imported the main program.
    """
    function, args, kwargs = _parts(call)
    where = reference(function)
    if where is None or (where[0] == "__main__" and not main_known):
        return None
    if not (wire.is_plain(args) and wire.is_plain(kwargs)):
        return None
    frame = _frame(call, where, args, kwargs, plain=True)
    return frame if len(frame) <= select.PIPE_BUF else None


def _parts(call: BlockingCall) -> CallParts:
    """Split a call; a `functools.partial` is opened, because a decorated function can only be sent by its name."""
    function: Any = call.function
    if isinstance(function, partial):
        return function.func, function.args + call.args, {**function.keywords, **call.kwargs}
    return function, call.args, call.kwargs


def _frame(call: BlockingCall, where: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, plain: bool) -> Frame:
    """Return the frame of a call, with the carried context, the remaining seconds and the running job."""
    left = None if call.limit.deadline is None else call.limit.deadline - time.monotonic()
    context = current.get()
    job = None if context is None else context.for_child_process()
    return Frame(wire.CALL, (where, args, kwargs, carrying.pack(), left, job), plain=plain)


def initializer_bytes(function: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    """Return an initializer as a child receives it; `ConfigurationError` names what a child cannot receive."""
    where = reference(function)
    if where is None:
        raise ConfigurationError(
            f"setup_offload(initializer={name_of(function)}): a child process cannot find it by name. "
            "Define it at the top of a module."
        )
    try:
        return pickle.dumps((where, args), 5)
    except Exception as error:
        raise ConfigurationError(f"setup_offload(initargs=…): {_refusal_message(function, args, {})}") from error


def _refusal_message(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    parts: list[tuple[str, Any]] = [("the function", reference(function) or function)]
    parts += [(f"argument {number}", value) for number, value in enumerate(args, 1)]
    parts += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    sentences = (describe_unpicklable(value, path) for path, value in parts)
    found = next((sentence for sentence in sentences if not sentence.endswith(" can be pickled")), "pickle refuses it")
    return (
        f"{name_of(function)} cannot be sent to a process: {found}. "
        "A child process can receive what pickle supports: functions of a module, and plain values."
    )


def parent_state(watch_parent: bool, initializer: bytes | None) -> dict[str, Any]:
    """Return what a child copies from this process: import path, arguments, environment, directory, log levels.

    With an initializer that the main program defines, the child learns where that program is.
    """
    levels = {"": logging.getLogger().level} | {
        name: logger.level
        for name, logger in list(logging.Logger.manager.loggerDict.items())
        if isinstance(logger, logging.Logger) and logger.level
    }
    return {
        "path": sys.path,
        "argv": sys.argv,
        "environ": dict(os.environ),
        "cwd": working_directory(),
        "levels": levels,
        "watch_parent": watch_parent,
        "initializer": initializer,
        "main": main_program() if initializer is not None and b"__main__" in initializer else None,
    }


def main_program() -> tuple[str | None, str | None]:
    """Return the module name and the path of the main program; both are None for a notebook, a prompt, `python -c`."""
    module = sys.modules["__main__"]
    sys.modules.setdefault("__mp_main__", module)  # the module name of its classes in the child, as in multiprocessing
    spec = getattr(module, "__spec__", None)
    path = os.path.abspath(getattr(module, "__file__", None) or "")
    return (spec.name if spec is not None else None), (path if os.path.isfile(path) else None)
