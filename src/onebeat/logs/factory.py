"""A faster factory for log records, which caches everything that depends on the file's path alone."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from typing import Any

from onebeat.concurrency.forks import after_fork_in_child

_REMEMBERED = 5_000  # paths
_TIMES = frozenset(("created", "msecs", "relativeCreated"))
_paths: dict[str, tuple[str, str]] = {}
_modules = sys.modules
_levels: dict[int, str] = getattr(logging, "_levelToName", {})  # what getLevelName looks into
_begun = getattr(logging, "_startTime", time.time())
_START = _begun / 1e9 if _begun > 1e12 else _begun  # nanoseconds from Python 3.13 on


class _Here(threading.local):
    """The present thread and its process; asking the system for either costs more than the rest of a record."""

    def __init__(self) -> None:
        thread = threading.current_thread()  # asked for its name each time, which may change
        self.known = os.getpid(), threading.get_ident(), thread


_here = _Here()


def _forked() -> None:
    global _here
    _here = _Here()


after_fork_in_child(_forked)


class Record(logging.LogRecord):
    """The same attributes with the same values as `logging.LogRecord`; `use()` checks that before it is used."""

    def __init__(
        self,
        name: str,
        level: int,
        pathname: str,
        lineno: int,
        msg: object,
        args: Any,
        exc_info: Any,
        func: str | None = None,
        sinfo: str | None = None,
        **_: Any,
    ) -> None:
        created = time.time()
        self.name = name
        self.msg = msg
        if args and len(args) == 1 and isinstance(args[0], dict) and args[0]:
            args = args[0]
        self.args = args
        self.levelname = _levels.get(level) or logging.getLevelName(level)
        self.levelno = level
        self.pathname = pathname
        self.filename, self.module = _paths.get(pathname) or _names_of(pathname)
        self.exc_info = exc_info
        self.exc_text = None
        self.stack_info = sinfo
        self.lineno = lineno
        self.funcName = func  # type: ignore[assignment]  # None when logging does not look for callers
        self.created = created
        self.msecs = created % 1 * 1000 // 1
        self.relativeCreated = (created - _START) * 1000
        process, ident, thread = _here.known
        if logging.logThreads:
            self.thread = ident
            self.threadName = thread.name
        else:
            self.thread = self.threadName = None
        if not logging.logMultiprocessing:
            self.processName = None
        else:
            self.processName = "MainProcess"
            if (module := _modules.get("multiprocessing")) is not None:
                try:
                    self.processName = module.current_process().name
                except Exception:  # noqa: BLE001, S110 - as in logging: half imported, anything may be missing
                    pass
        self.process = process if logging.logProcesses else None
        if sys.version_info >= (3, 12):
            self.taskName = _task_name() if logging.logAsyncioTasks else None


def use() -> None:
    """Let logging make its records here, unless someone else makes them already or this Python's differ."""
    if logging.getLogRecordFactory() is logging.LogRecord and _alike():
        logging.setLogRecordFactory(Record)


def leave() -> None:
    """Undo `use`."""
    if logging.getLogRecordFactory() is Record:
        logging.setLogRecordFactory(logging.LogRecord)


def _alike() -> bool:
    """Whether both make the same of the same call; a later Python may know an attribute that is not known here."""
    for args in ((), (1, "a"), ({"a": 1},), ({},)):
        call: tuple[Any, ...] = ("shop", 25, "/srv/shop/mail.py", 7, "msg", args, None, "send", "stack")
        ours, theirs = vars(Record(*call)), vars(logging.LogRecord(*call))
        if ours.keys() != theirs.keys() or any(ours[key] != theirs[key] for key in ours.keys() - _TIMES):
            return False
        if any(
            abs(ours[key] - theirs[key]) > 2_000 for key in _TIMES
        ):  # milliseconds, or seconds: the same kind of thing
            return False
    return True


def _names_of(path: str) -> tuple[str, str]:
    try:
        filename = os.path.basename(path)
        names = (filename, os.path.splitext(filename)[0])
    except (TypeError, ValueError, AttributeError):  # as in logging
        return path, "Unknown module"
    if len(_paths) < _REMEMBERED:
        _paths[path] = names
    return names


def _task_name() -> str | None:
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return None
    try:
        return str(asyncio.current_task().get_name())
    except Exception:  # noqa: BLE001 - as in logging: outside any task
        return None
