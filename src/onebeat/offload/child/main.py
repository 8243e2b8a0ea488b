"""The main loop of a child process: it runs one call after another, each in its caller's tracking context."""

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
import time
import traceback
import types
from collections.abc import Callable
from functools import partial
from typing import Any

from onebeat.errors import RemoteError, Stopped
from onebeat.offload.child import remote_error, wire
from onebeat.offload.child.preload import import_modules
from onebeat.offload.child.process_tree import kill_tree
from onebeat.offload.child.reference import FunctionReference, describe_unpicklable, resolve
from onebeat.offload.child.surroundings import Surroundings
from onebeat.offload.child.wire import Channel, ChannelClosed, Frame, UnreadableFrame
from onebeat.offload.limits import Limit
from onebeat.tasks.context import JobContext, current
from onebeat.tracking import carrying
from onebeat.tracking.context import VARIABLE, Tracking

is_child = False
"""True in a child process of onebeat."""


def serve(reader: int, writer: int) -> None:
    """Answer calls until the parent closes the pipe."""
    global is_child
    is_child = True
    channel = Channel(reader, writer)
    os.register_at_fork(after_in_child=partial(_close_inherited_pipes, reader, writer))
    try:
        _, state = channel.receive()
        _apply_parent_state(state, channel)
        channel.send(Frame(wire.READY, os.getpid()))
        _initialize_early(state)
        while True:
            _serve_call(channel)
    except ChannelClosed:
        return


def _initialize_early(state: dict[str, Any]) -> None:
    """Call the initializer before the first call arrives; a failure is kept for that call, which tries again."""
    global _initializer
    _initializer = state["initializer"]
    if _initializer is None:
        return
    if state["main"] is not None:
        _import_main_program(*state["main"])
    try:
        contextvars.Context().run(_initialize)
    except RemoteError as error:
        log.warning("%s", error)
    _flush()


def main_spawned(reader: int, writer: int, preload: list[str]) -> None:
    """Run `serve` in a new interpreter, after importing the modules to preload."""
    signal.signal(signal.SIGINT, lambda *_: None)
    import_modules(preload)
    for fd in (reader, writer):
        os.set_inheritable(fd, False)
    serve(reader, writer)


def _close_inherited_pipes(*pipes: int) -> None:
    """Close the pipes in a process that a function forked, so that the parent notices the child's end."""
    for fd in pipes:
        os.close(fd)


def _serve_call(channel: Channel) -> None:
    """Read one call, run it, and send its value or exception."""
    try:
        kind, call = channel.receive()
        if kind == wire.MAIN:  # sent only when a call needs the main program
            return _import_main_program(*call)
    except UnreadableFrame as unreadable:
        cause = unreadable.__cause__ or unreadable
        cause.add_note("(while the child process rebuilt the function and its arguments)")
        if _main_missing_because and "__main__" in str(cause):
            cause.add_note(_main_missing_because)
        return channel.send(_error_frame(cause, skip=1))
    where, args, kwargs, *rest = call
    surroundings = None
    try:
        _initialize()
        function = _resolve_cached(where) if isinstance(where, tuple) else where
        surroundings = Surroundings()  # now, because an import may change the environment for good
        value = contextvars.Context().run(_run, function, args, kwargs, *rest)
    except BaseException as error:  # noqa: BLE001 - SystemExit too: it ends the call, not the process
        answer = _error_frame(error, skip=2)
    else:
        answer = _value_frame(value)
    call = args = kwargs = value = None
    if surroundings is not None:
        surroundings.restore()
    _flush()
    channel.send(answer)
    return None


def _initialize() -> None:
    """Call the initializer of `setup_offload` if it has not succeeded in this child yet; `RemoteError` if it fails."""
    global _initializer
    if _initializer is None:
        return
    name = ""
    try:
        where, args = pickle.loads(_initializer)  # noqa: S301 - from our own parent
        name = f"{where[0]}.{where[1]}"
        _resolve_cached(where)(*args)
    except BaseException as error:
        text = "".join(traceback.format_exception(error))
        message = f"the initializer {name} failed in a child process, so no call runs there: {error!r:.500}"
        raise RemoteError(message, traceback=text) from error
    _initializer = None


def _run(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    carried: str | None,
    seconds: float | None,
    job: dict[str, Any] | None,
) -> Any:
    """Call the function in its caller's tracking context, and in its job."""
    global _received
    if carried is None and seconds is None and job is None:
        _received = (None, None)
        return function(*args, **kwargs)
    if job is not None:
        current.set(JobContext.in_child_process(job))
    with carrying.unpacked(carried):
        unit = VARIABLE.get()
        _received = (unit, None if unit is None else unit.fields)
        limit = Limit(seconds)
        limit.activate()
        try:
            return function(*args, **kwargs)
        except asyncio.CancelledError as cancelled:
            if not limit.expired:
                raise
            raise Stopped(str(cancelled)) from None  # the function left at a checkpoint


def _resolve_cached(where: FunctionReference) -> Callable[..., Any]:
    """Return the function of a reference, which is resolved once: the modules of a child do not change."""
    found = _functions.get(where)
    if found is None:
        try:
            found = _functions[where] = resolve(where)
        except AttributeError as error:
            if where[0] != "__main__" or not _main_missing_because:
                raise
            message = f"__main__.{where[1]} cannot be found in a child process: {_main_missing_because}"
            raise TypeError(message) from error
    return found


log = logging.getLogger("onebeat.offload")
_functions: dict[FunctionReference, Callable[..., Any]] = {}
_initializer: bytes | None = None  # the pickled initializer, until it has succeeded
_received: tuple[Tracking | None, Any] = (None, None)  # the call's tracking context, and its fields at arrival
_main_missing_because = ""  # why the functions and classes of the main program are not known here


def _value_frame(value: Any) -> Frame:
    try:
        plain = wire.is_plain(value)
        return Frame(wire.PLAIN if plain else wire.VALUE, value, plain=plain)
    except Exception as error:  # noqa: BLE001 - pickle raises whatever a __reduce__ raises
        found = describe_unpicklable(value, "its value")
        refused = TypeError(f"the value that the function returned cannot be sent: {found}")
        refused.__cause__ = error
        return _error_frame(refused, skip=0)


def _error_frame(error: BaseException, skip: int) -> Frame:
    return Frame(wire.ERROR, remote_error.pack(error, skip))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # the stream is closed or does not exist
            continue


def _apply_parent_state(state: dict[str, Any], channel: Channel) -> None:
    """Copy the parent's import path, arguments, environment, log levels and working directory."""
    sys.path[:] = state["path"]
    sys.argv[:] = state["argv"]
    os.environ.clear()
    os.environ.update(state["environ"])
    root = logging.getLogger()
    root.handlers[:] = [ForwardingHandler(channel)]
    for name, level in state["levels"].items():
        logging.getLogger(name).setLevel(level)
    try:
        os.chdir(state["cwd"])
    except OSError as error:
        log.warning("a child process cannot enter its parent's working directory: %s", error)
    if state["watch_parent"]:
        threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()


def _exit_with_parent(parent: int) -> None:
    """End this process and its process tree when its parent has ended; used where no fork server does that."""
    while os.getppid() == parent:
        time.sleep(1)
    kill_tree(os.getpid())
    os._exit(1)


def _import_main_program(name: str | None, path: str | None) -> None:
    """Import the parent's main program as `__main__`, without running what its `__main__` guard protects."""
    global _main_missing_because
    if name is None and path is None:
        _main_missing_because = (
            "the main program is not a file (it is a notebook, a prompt or `python -c`). "
            "Move the function to a module and import that."
        )
        return
    module = types.ModuleType("__mp_main__")
    try:
        if name is not None:
            content = runpy.run_module(name, run_name="__mp_main__", alter_sys=True)
        else:
            content = runpy.run_path(path or "", run_name="__mp_main__")
    except BaseException as error:
        log.warning("a child process could not import the main program", exc_info=True)
        _main_missing_because = (
            f"importing the main program raised {type(error).__name__}. Protect what starts the program with "
            "`if __name__ == '__main__':`, or move the function to a module and import that."
        )
        return
    module.__dict__.update(content)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module


class ForwardingHandler(logging.Handler):
    """Send each log record to the parent, whose own logging configuration handles it."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._channel.send(_record_frame(record))
        except ChannelClosed:
            return  # the parent has ended, and this process is about to end
        except Exception:  # noqa: BLE001 - logging's own rule: a record never fails the code that logs
            self.handleError(record)


def _record_frame(record: logging.LogRecord) -> Frame:
    fields = dict(record.__dict__)
    fields["msg"], fields["args"] = record.getMessage(), None
    if record.exc_info and not record.exc_text:
        fields["exc_text"] = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
    fields["exc_info"] = None
    unit = VARIABLE.get()
    is_callers = unit is None or (unit is _received[0] and unit.fields is _received[1])
    carried = None if is_callers else carrying.pack()  # the function opened a context of its own, or bound fields
    return Frame(wire.LOG, ({name: _sendable(value) for name, value in fields.items()}, carried))


def _sendable(value: Any) -> Any:
    """Return an extra field unchanged if a round trip through pickle works here; otherwise its repr."""
    if type(value) in (str, int, float, bool, type(None)):
        return value
    try:
        pickle.loads(pickle.dumps(value, 5))  # noqa: S301 - just pickled here
    except Exception:  # noqa: BLE001 - pickle raises whatever a __reduce__ or a constructor raises
        return repr(value)
    return value
