"""Starting and ending child processes: forked by the seed on Linux, spawned elsewhere; whole groups are ended."""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from contextlib import suppress

from onebeat.errors import ConfigurationError
from onebeat.offload.child.exit_status import STATUS, End, from_code, from_status
from onebeat.offload.child.fork_server import BORN
from onebeat.offload.child.pipes import UNFORKED, Pipes
from onebeat.offload.child.process_tree import Process, descendants, end_group

GRACE = 0.5  # seconds between asking a group to end and ending it


class Child:
    """A started child: its pipes, its process id, and how it ends."""

    def __init__(self, pipes: Pipes, process: Process, popen: subprocess.Popen[bytes] | None = None) -> None:
        self.process, self.pipes = process, pipes
        self.alone = popen is not None
        """Whether it must look by itself whether its parent lives."""
        self._popen = popen
        self._waiting = threading.Lock()
        self._end: End | None = None

    @property
    def pid(self) -> int:
        """Its number, for people: after its end it may be another's."""
        return self.process.pid

    def ended(self, within: float) -> End | None:
        """How it ended, waiting at most `within` seconds for that; None while it runs. Its group has ended then too."""
        with self._waiting:
            if self._end is not None:
                return self._end
            if self._popen is not None:
                if (code := _wait(self._popen, within)) is not None:
                    self._end = from_code(code)
            elif self.pipes.status in self.pipes and _readable(self.pipes.status, within):
                self._end = from_status(os.read(self.pipes.status, STATUS.size))
            return self._end

    def end(self, grace: float = GRACE) -> None:
        """End the child and every process it started: asked first, ended after `grace` seconds. From any thread."""
        family = descendants(self.process)
        self._signal(family, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while (left := deadline - time.monotonic()) > 0:
            gone = self.ended(min(left, 0.01) if family else left) is not None
            if gone and not any(process.alive for process in family):
                break
            if gone:
                time.sleep(0.01)  # what it started has the same grace
        family |= descendants(self.process)
        self._signal(family, signal.SIGKILL)
        self.ended(5)
        deadline = time.monotonic() + 5
        while any(process.alive for process in family) and time.monotonic() < deadline:
            time.sleep(0.002)  # the kernel needs a moment

    def says_something(self, within: float) -> bool:
        """Whether there is something to read from it, waiting at most `within` seconds."""
        return _readable(self.pipes.reader, within)

    def close(self) -> None:
        """Give back the descriptors."""
        self.pipes.close()

    def hang_up(self) -> None:
        """Close the pipe to the child: an idle one ends by itself then."""
        self.pipes.close(self.pipes.writer)

    def _signal(self, family: set[Process], number: int) -> None:
        """To a group only by whoever waits for its leader, and before: the seed does that for the children it forks."""
        if self._popen is None:
            self.process.signal(number)
        else:
            with self._waiting:
                if self._end is None:
                    end_group(self.pid, number)
        for process in family:
            process.signal(number)


class Seedbed:
    """Starts children through one seed process per process, which is itself started on first use."""

    def __init__(self, preload: tuple[str, ...] = ()) -> None:
        self._preload = preload
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._popen: subprocess.Popen[bytes] | None = None
        self._closed = False

    def start(self) -> Child:
        """A new child; the seed is started again when it is gone. After `close`: `ConnectionError`."""
        with self._lock:
            if self._closed:
                raise ConnectionError("closed: no more child processes are started here")
            for again in (True, False):
                control = self._control or self._plant()
                try:
                    return _fork(control)
                except OSError:
                    self._uproot()
                    if not again:
                        raise
        raise AssertionError("unreachable")

    def close(self) -> None:
        """End the seed; its children end with it."""
        with self._lock:
            self._closed = True
            self._uproot()

    def _plant(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            told = f"{theirs.fileno()}, {os.getpid()}, {[*self._preload]!r}"
            self._popen = _python(
                f"from onebeat.offload.child.fork_server import main; main({told})", [theirs.fileno()]
            )
        self._control = ours
        return ours

    def _uproot(self) -> None:
        if self._control is not None:
            with suppress(OSError):  # it is gone already
                self._control.shutdown(socket.SHUT_RDWR)  # a fork of this process may hold the socket open
            self._control.close()
            self._control = None
        if self._popen is not None:
            if _wait(self._popen, 2) is None:
                end_group(self._popen.pid, signal.SIGKILL)
                self._popen.wait()
            self._popen = None


class Spawner:
    """Starts each child as a new interpreter: slower, and right everywhere."""

    def __init__(self, preload: tuple[str, ...] = ()) -> None:
        self._preload = preload

    def start(self) -> Child:
        """A new child."""
        pipes = Pipes()
        try:
            reader, writer, _ = pipes.theirs
            told = f"{reader}, {writer}, {[*self._preload]!r}"
            popen = _python(f"from onebeat.offload.child.main import alone; alone({told})", (reader, writer))
            pipes.close(*pipes.theirs)
        except OSError:
            pipes.close()
            raise
        return Child(pipes, Process.of(popen.pid), popen)

    def close(self) -> None:
        """Nothing is kept."""


Launcher = Seedbed | Spawner
FORKS = sys.platform == "linux" and os.path.exists("/proc/self/stat")
"""Whether children are forked here: a process of one's child is told from a later one by what /proc says of it."""


def launcher(preload: tuple[str, ...] = (), *, spawn: bool = not FORKS) -> Launcher:
    """The way to start children here; `ConfigurationError` where there is none."""
    if sys.platform == "win32":
        raise ConfigurationError(
            "to_process needs pipes and signals of POSIX, which Windows has not: use to_thread, or run in WSL"
        )
    return Spawner(preload) if spawn else Seedbed(preload)


def _fork(control: socket.socket) -> Child:
    """Ask the seed for a child."""
    pipes = Pipes()
    try:
        control.sendmsg([b"+"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", pipes.theirs))])
        pipes.close(*pipes.theirs)
        data = os.read(pipes.status, BORN.size) if _readable(pipes.status, 60) else b""
        if len(data) < BORN.size:
            raise ConnectionError("the seed process ended or did not answer within 60 s")
    except OSError:
        pipes.close()
        raise
    return Child(pipes, Process(*BORN.unpack(data)))


def folder() -> str:
    """This process's working directory; ``/`` when it has been removed: Python 3.13.0 does not start in such a one."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"


def _python(code: str, inherited: Collection[int]) -> subprocess.Popen[bytes]:
    """An interpreter like this one, in a session of its own, with this import path."""
    code = f"import sys; sys.path[:] = {sys.path!r}; {code}"
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # what multiprocessing uses too
    with UNFORKED:  # Popen waits until nobody holds its own pipe to the new process any more
        return subprocess.Popen(  # noqa: S603 - our own interpreter and code
            [sys.executable, *flags, "-c", code],
            pass_fds=inherited,
            stdin=subprocess.DEVNULL,
            cwd=folder(),
            start_new_session=True,
        )


def _wait(popen: subprocess.Popen[bytes], within: float) -> int | None:
    """How a group's leader ended, within so many seconds; its group is ended before its number is given back.

    macOS can look without waiting since Python 3.13; before, what the leader left running there is left alone.
    """
    deadline = time.monotonic() + within
    pause = 0.0005
    while hasattr(os, "waitid") and popen.returncode is None:
        try:
            if os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                end_group(popen.pid, signal.SIGKILL)
                break
        except ChildProcessError:  # somebody in this process waits for all children: the number is given back already
            break
        if time.monotonic() >= deadline:
            return None
        time.sleep(pause)
        pause = min(2 * pause, 0.01)
    try:
        return popen.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None


def _readable(fd: int, within: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(within * 1000))
