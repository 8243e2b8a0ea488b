"""What a process tells its child: a call, named so that the child finds it, and how the process itself looks."""

from __future__ import annotations

import logging
import os
import select
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from onebeat.errors import InvalidArguments
from onebeat.offload.child import wire
from onebeat.offload.child.launch import folder
from onebeat.offload.child.reference import culprit, reference
from onebeat.offload.child.wire import Packed
from onebeat.offload.pool.calls import Call, name_of
from onebeat.tracking import carrying

Parts = tuple[Any, tuple[Any, ...], dict[str, Any]]


def pack(call: Call) -> Packed:
    """The call as a frame; `TypeError` names the part that cannot be sent."""
    function, args, kwargs = _parts(call)
    try:
        return _packed(call, reference(function) or function, args, kwargs, small=False)
    except InvalidArguments:  # what is carried along does not fit
        raise
    except Exception as error:
        raise TypeError(_refused(function, args, kwargs)) from error


def small(call: Call, *, main_known: bool) -> Packed | None:
    """The same in next to no time, for a call by name with plain arguments that fits into an empty pipe; else None."""
    function, args, kwargs = _parts(call)
    where = reference(function)
    if where is None or (where[0] == "__main__" and not main_known) or not (wire.plain(args) and wire.plain(kwargs)):
        return None
    packed = _packed(call, where, args, kwargs, small=True)
    return packed if len(packed) <= select.PIPE_BUF else None


def _parts(call: Call) -> Parts:
    """Function, arguments and keywords; also of a partial one, for only its name brings a decorated function across."""
    function: Any = call.function
    if isinstance(function, partial):
        return function.func, function.args + call.args, {**function.keywords, **call.kwargs}
    return function, call.args, call.kwargs


def _packed(call: Call, where: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, small: bool) -> Packed:
    """With what is carried along and the time that is left."""
    left = None if call.limit.deadline is None else call.limit.deadline - time.monotonic()
    return Packed(wire.CALL, (where, args, kwargs, carrying.pack(), left), small=small)


def _refused(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    parts: list[tuple[str, Any]] = [("the function", reference(function) or function)]
    parts += [(f"argument {number}", value) for number, value in enumerate(args, 1)]
    parts += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    sentences = (culprit(value, path) for path, value in parts)
    found = next((sentence for sentence in sentences if not sentence.endswith(" can be pickled")), "pickle refuses it")
    return (
        f"{name_of(function)} cannot be sent to a process: {found}. "
        "A process gets what pickle can take: functions of a module, plain values."
    )


def hello(watch: bool) -> dict[str, Any]:
    """How this process looks: import path, arguments, environment, folder, log levels."""
    levels = {"": logging.getLogger().level} | {
        name: logger.level
        for name, logger in list(logging.Logger.manager.loggerDict.items())
        if isinstance(logger, logging.Logger) and logger.level
    }
    return {
        "path": sys.path,
        "argv": sys.argv,
        "environ": dict(os.environ),
        "cwd": folder(),
        "levels": levels,
        "watch": watch,
    }


def main_program() -> tuple[str | None, str | None]:
    """Name or path of this process's main module; neither for a notebook's, a prompt's, or that of `python -c`."""
    module = sys.modules["__main__"]
    sys.modules.setdefault(
        "__mp_main__", module
    )  # what its classes are called in the child; multiprocessing's name too
    spec = getattr(module, "__spec__", None)
    path = os.path.abspath(getattr(module, "__file__", None) or "")
    return (spec.name if spec is not None else None), (path if os.path.isfile(path) else None)
