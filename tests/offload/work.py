"""What the tests run in child processes: importable there by name."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from onebeat.offload import blocking, checkpoint, cpu_bound, remaining
from onebeat.tracking import bind, current, propagate, tracking, tracking_id

tenant = propagate(ContextVar("offload_tenant", default="nobody"))
unregistered = ContextVar("offload_unregistered", default="unset")


def pid() -> int:
    return os.getpid()


def spin() -> None:
    while True:
        pass


def spin_noting(path: str) -> None:
    """Note our own number, then spin."""
    Path(path).write_text(str(os.getpid()))
    spin()


def sleep_noting(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def stubborn(path: str) -> None:
    """Ignore the polite signal."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    spin_noting(path)


def with_grandchildren(path: str) -> None:
    """Start processes that would outlive this one: one in its group, one in a session of its own, one forked."""
    sleep = [
        sys.executable,
        "-c",
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)",
    ]
    tree = [subprocess.Popen(sleep), subprocess.Popen(sleep, start_new_session=True)]
    forked = os.fork()
    if forked == 0:
        time.sleep(600)
        os._exit(0)
    temporary = Path(path + ".part")
    temporary.write_text(" ".join(str(number) for number in (os.getpid(), forked, *(p.pid for p in tree))))
    temporary.rename(path)
    spin()


def forks_and_dies(path: str) -> None:
    """Die while a forked process still lives."""
    forked = os.fork()
    if forked == 0:
        time.sleep(600)
        os._exit(0)
    Path(path).write_text(str(forked))
    os._exit(7)


def note_and_exit(path: str, code: int) -> None:
    Path(path).write_text(str(os.getpid()))
    os._exit(code)


def exit_with(code: int) -> None:
    os._exit(code)


def dies_always() -> None:
    os._exit(1)


def segfault() -> None:
    ctypes.string_at(0)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(path: str) -> str:
    """Return once the file is there."""
    while not Path(path).exists():
        time.sleep(0.005)
    return path


class TwoArguments(Exception):
    """Pickles, and does not rebuild: its constructor wants two arguments and passes on one."""

    def __init__(self, shop: str, item: str) -> None:
        super().__init__(f"{shop} has no {item}")


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class Vicious(Exception):
    def __reduce__(self) -> Any:
        raise OSError("not even this works")

    def __str__(self) -> str:
        raise ValueError("no words either")


class Disguised(Exception):
    """Pickles, and rebuilds as something that cannot be raised."""

    def __reduce__(self) -> Any:
        return str, ("no exception at all",)


class Kept(Exception):
    """Rebuilds with what was added to it."""


def fail(kind: str) -> None:
    if kind == "value":
        raise ValueError("from far away")
    if kind == "two":
        raise TwoArguments("corner shop", "bread")
    if kind == "unpicklable":
        raise Unpicklable
    if kind == "vicious":
        raise Vicious
    if kind == "disguised":
        raise Disguised("a wolf")
    if kind == "kept":
        error = Kept("with a note")
        error.add_note("written in the child")
        raise error
    if kind == "exit":
        sys.exit(3)
    if kind == "interrupt":
        raise KeyboardInterrupt


class Bomb:
    """Cannot be rebuilt on the other side."""

    def __reduce__(self) -> Any:
        return _explode, ()


def _explode() -> None:
    raise RuntimeError("while rebuilding")


def bomb() -> Bomb:
    return Bomb()


def returns_lambda() -> Callable[[], int]:
    return lambda: 1


def identity(value: Any) -> Any:
    return value


def length(value: Any) -> int:
    return len(value)


def buffer(size: int) -> bytes:
    return bytes(size)


def logs(words: str) -> None:
    logger = logging.getLogger("tests.offload.child")
    logger.debug("not wanted at this level")
    logger.warning("said %s", words, extra={"shelf": 7})
    try:
        raise ValueError("inside")
    except ValueError:
        logger.exception("with a traceback")


def logs_an_exception(value: Any) -> Any:
    """The exception pickles, and does not rebuild anywhere."""
    logging.getLogger("tests.offload.child").warning("oh", extra={"shelf": TwoArguments("corner shop", "bread")})
    return value


class OnlyIn:
    """Rebuilds in one process only."""

    def __init__(self, process: int) -> None:
        self.process = process

    def __setstate__(self, state: dict[str, int]) -> None:
        if state["process"] != os.getpid():
            raise RuntimeError("not here")


def logs_what_only_it_can_rebuild(value: Any) -> Any:
    logging.getLogger("tests.offload.child").warning("oh", extra={"shelf": OnlyIn(os.getpid())})
    return value


class Poison:
    """Rebuilding it in one process wants to end that process."""

    def __init__(self, process: int) -> None:
        self.process = process
        self.rest = os.urandom(300_000)

    def __setstate__(self, state: dict[str, int]) -> None:
        if state["process"] == os.getpid():
            sys.exit(1)


def poison(process: int) -> Poison:
    return Poison(process)


def left() -> float | None:
    return remaining()


def polite() -> None:
    while True:
        checkpoint()


def environment(name: str) -> str | None:
    return os.environ.get(name)


def again() -> str:
    """Try to use a process from within one."""
    from onebeat.offload import to_process_sync

    return str(to_process_sync(pid))


def doubled(function: Callable[..., int]) -> Callable[..., int]:
    """A decorator: its wrapper stands under the function's name."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> int:
        return 2 * function(*args, **kwargs)

    return wrapper


@doubled
@doubled
def decorated(number: int) -> int:
    return number


def surroundings() -> tuple[str | None, str | None, str, str]:
    unit = current()
    return tracking_id(), None if unit is None else unit.unit_id, tenant.get(), unregistered.get()


def logs_in_units() -> None:
    logger = logging.getLogger("tests.offload.child")
    logger.warning("plain")
    bind(bound="in the child")
    logger.warning("bound")
    with tracking("own-id"):
        logger.warning("own")
    logger.warning("after")


def fails_in_a_unit() -> None:
    with tracking("inner", lock=threading.Lock()):  # a field that pickle refuses
        raise ValueError("tagged")


@cpu_bound(timeout=30)
def add(a: int, *, b: int = 0) -> int:
    return a + b


def counting() -> Iterator[int]:
    yield 1


class Service:
    """Methods of every kind, decorated."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    @blocking
    def blocked(self, number: int) -> int:
        return self.factor * number

    @cpu_bound
    def computed(self, number: int) -> int:
        return self.factor * number

    @classmethod
    @cpu_bound
    def of_the_class(cls, number: int) -> tuple[str, int]:
        return cls.__name__, number

    @staticmethod
    @cpu_bound
    def of_nobody(number: int) -> int:
        return number


class Derived(Service):
    @cpu_bound
    def computed(self, number: int) -> int:
        return 100 * self.factor * number


def logs_later(number: int) -> int:
    """Log from another thread, soon after the answer."""
    threading.Timer(0.001, logging.getLogger("tests.offload.child").warning, ("later",)).start()
    return number


def sleeps(seconds: float, value: int) -> int:
    time.sleep(seconds)
    return value


def moves_away(folder: str) -> None:
    """Leave another directory, environment and file mode mask behind, as a careless function does."""
    os.chdir(folder)
    os.environ["ONEBEAT_LEFT"] = "behind"
    os.environ["ONEBEAT_KEPT"] = "changed"
    os.environ.pop("ONEBEAT_GONE", None)
    os.umask(0o777)


def stands() -> dict[str, Any]:
    mask = os.umask(0)
    os.umask(mask)
    names = ("ONEBEAT_LEFT", "ONEBEAT_KEPT", "ONEBEAT_GONE")
    by_c = subprocess.run(["/usr/bin/env"], capture_output=True, text=True, check=True).stdout
    return {
        "directory": os.getcwd(),
        "environment": [os.environ.get(name) for name in names],
        "for programs": [f"{name}={os.environ.get(name)}" in by_c for name in names],
        "mask": mask,
    }


def moves_away_and_fails(folder: str) -> None:
    moves_away(folder)
    raise ValueError("after the move")


initialized: list[str] = []


def initialize(*words: str) -> None:
    """Set up this child: what it changes stays for every call."""
    initialized.extend(words)
    os.environ["ONEBEAT_INITIALIZED"] = " ".join(words)


def how_initialized() -> tuple[list[str], str | None]:
    return initialized, os.environ.get("ONEBEAT_INITIALIZED")


def fails_until_there_is(path: str) -> None:
    if not Path(path).exists():
        raise ConnectionError(f"{path} is missing")
