"""What runs in a child process: one call after another from its pipe, each in the tracking context of its caller."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import pickle
import runpy
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from onebeat.errors import Stopped
from onebeat.offload.child import remote_error, wire
from onebeat.offload.child.process_tree import end_family
from onebeat.offload.child.reference import Reference, culprit, resolve
from onebeat.offload.child.wire import Channel, Closed, Packed, Unreadable
from onebeat.offload.limits import Limit
from onebeat.tracking import carrying
from onebeat.tracking.context import VARIABLE, Tracking

serving = False
"""True in a child process of onebeat."""


def main(reader: int, writer: int) -> None:
    """Answer calls until the parent closes the pipe."""
    global serving
    serving = True
    channel = Channel(reader, writer)
    os.register_at_fork(after_in_child=partial(_let_go, reader, writer))
    try:
        _, hello = channel.receive()
        _settle_in(hello, channel)
        channel.send(Packed(wire.READY, os.getpid()))
        while True:
            _answer(channel)
    except Closed:
        return


def alone(reader: int, writer: int, preload: list[str]) -> None:
    """`main` in an interpreter of its own."""
    signal.signal(signal.SIGINT, lambda *_: None)
    for name in preload:
        import_module(name)
    for fd in (reader, writer):
        os.set_inheritable(fd, False)
    main(reader, writer)


def _let_go(*pipes: int) -> None:
    """In a process that a function forked: the pipes are not its own, and its parent's end must be noticed."""
    for fd in pipes:
        os.close(fd)


def _answer(channel: Channel) -> None:
    """Read one call, run it, send what it came to."""
    try:
        kind, call = channel.receive()
        if kind == wire.HELLO:  # the main module, sent only when a call needs it
            return _adopt_main(*call)
    except Unreadable as unreadable:
        cause = unreadable.__cause__ or unreadable
        cause.add_note("(while the child process rebuilt the function and its arguments)")
        if _no_main and "__main__" in str(cause):
            cause.add_note(_no_main)
        return channel.send(_failure(cause, skip=1))
    try:
        value = contextvars.Context().run(_run, *call)
    except BaseException as error:  # noqa: BLE001 - SystemExit too: it ends the call, not the process
        answer = _failure(error, skip=2)
    else:
        answer = _value(value)
    call = value = None
    _flush()
    channel.send(answer)
    return None


def _run(where: Any, args: tuple[Any, ...], kwargs: dict[str, Any], carried: str | None, seconds: float | None) -> Any:
    """Call the function in its caller's unit; its module is imported first, for it registers what is propagated."""
    global _arrived
    function = _resolved(where) if isinstance(where, tuple) else where
    if carried is None and seconds is None:
        _arrived = (None, None)
        return function(*args, **kwargs)
    with carrying.unpacked(carried):
        unit = VARIABLE.get()
        _arrived = (unit, None if unit is None else unit.fields)
        limit = Limit(seconds)
        limit.enter()
        try:
            return function(*args, **kwargs)
        except asyncio.CancelledError as left:
            if not limit.over:
                raise
            raise Stopped(str(left)) from None  # left at a checkpoint: its caller is told that its time is over


def _resolved(where: Reference) -> Callable[..., Any]:
    """Looked up once; a name in a child's modules does not change its meaning."""
    found = _functions.get(where)
    if found is None:
        try:
            found = _functions[where] = resolve(where)
        except AttributeError as error:
            if where[0] != "__main__" or not _no_main:
                raise
            raise TypeError(f"__main__.{where[1]} cannot be found in a child process: {_no_main}") from error
    return found


log = logging.getLogger("onebeat.offload")
_functions: dict[Reference, Callable[..., Any]] = {}
_arrived: tuple[Tracking | None, Any] = (None, None)  # the unit of the call, and its fields as they came
_no_main = ""  # why the main program's own functions and classes are not known here


def _value(value: Any) -> Packed:
    try:
        small = wire.plain(value)
        return Packed(wire.PLAIN if small else wire.VALUE, value, small=small)
    except Exception as error:  # noqa: BLE001 - pickle raises whatever a __reduce__ raises
        refused = TypeError(f"what the function returned cannot be sent: {culprit(value, 'its value')}")
        refused.__cause__ = error
        return _failure(refused, skip=0)


def _failure(error: BaseException, skip: int) -> Packed:
    return Packed(wire.ERROR, remote_error.pack(error, skip))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # closed, or none at all: nothing to flush
            continue


def _settle_in(hello: dict[str, Any], channel: Channel) -> None:
    """Look like the parent: import path, folder, environment, arguments, log levels."""
    sys.path[:] = hello["path"]
    sys.argv[:] = hello["argv"]
    os.environ.clear()
    os.environ.update(hello["environ"])
    root = logging.getLogger()
    root.handlers[:] = [Forward(channel)]
    for name, level in hello["levels"].items():
        logging.getLogger(name).setLevel(level)
    try:
        os.chdir(hello["cwd"])
    except OSError as error:
        log.warning("a child process cannot enter its parent's folder: %s", error)
    if hello["watch"]:
        threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()


def _leave_with(parent: int) -> None:
    """End this process and all it started when its parent is gone, where no seed does that."""
    import time

    while os.getppid() == parent:
        time.sleep(1)
    end_family(os.getpid())
    os._exit(1)


def _adopt_main(name: str | None, path: str | None) -> None:
    """Make the parent's main module importable here, without running what its `__main__` guard protects."""
    global _no_main
    if "__mp_main__" in sys.modules:
        return
    if name is None and path is None:
        _no_main = (
            "the main program is no file (a notebook, a prompt, `python -c`). Put it into a module and import that."
        )
        return
    module = types.ModuleType("__mp_main__")
    try:
        if name is not None:
            content = runpy.run_module(name, run_name="__mp_main__", alter_sys=True)
        else:
            content = runpy.run_path(path or "", run_name="__mp_main__")
    except BaseException as error:
        log.warning("the main module cannot be imported by a child", exc_info=True)
        _no_main = (
            f"importing the main program raised {type(error).__name__}. Protect what starts the program with "
            "`if __name__ == '__main__':`, or put the function into a module and import that."
        )
        return
    module.__dict__.update(content)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module


class Forward(logging.Handler):
    """Sends each record to the parent, whose own logging decides what becomes of it."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._channel.send(_packed(record))
        except Closed:
            return  # the parent is gone, and this process is about to be
        except Exception:  # noqa: BLE001 - logging's own rule: a record never breaks its caller
            self.handleError(record)


def _packed(record: logging.LogRecord) -> Packed:
    fields = dict(record.__dict__)
    fields["msg"], fields["args"] = record.getMessage(), None
    if record.exc_info and not record.exc_text:
        fields["exc_text"] = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
    fields["exc_info"] = None
    unit = VARIABLE.get()
    known = unit is None or (unit is _arrived[0] and unit.fields is _arrived[1])
    carried = None if known else carrying.pack()  # the function opened a unit of its own, or bound fields
    return Packed(wire.LOG, ({name: _sendable(value) for name, value in fields.items()}, carried))


def _sendable(value: Any) -> Any:
    """An extra as it is if it survives the journey, proved here once; else its repr."""
    if type(value) in (str, int, float, bool, type(None)):
        return value
    try:
        pickle.loads(pickle.dumps(value, 5))  # noqa: S301 - just pickled here
    except Exception:  # noqa: BLE001 - pickle raises whatever a __reduce__ or a constructor raises
        return repr(value)
    return value
