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
from dataclasses import dataclass

from onebeat.errors import ConfigurationError
from onebeat.offload.family import Process, descendants, end_group
from onebeat.offload.seed import BORN, STATUS

GRACE = 0.5  # seconds between asking a group to end and ending it


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a child ended: by exit code or by signal, and the most memory it had."""

    exit_code: int | None = None
    signal: int | None = None
    peak: int | None = None  # bytes

    def __str__(self) -> str:
        words = "an unknown end" if self.exit_code is None else f"exit code {self.exit_code}"
        if self.signal is not None:
            words = f"signal {_signal_name(self.signal)} ({self.signal})"
        if self.signal == getattr(signal, "SIGKILL", None):
            words += " (the kernel sends it when memory runs out)"
        return words if self.peak is None else f"{words}, at most {self.peak / 2**20:.0f} MiB used"


class Child:
    """A started child: its pipes, its process id, and how it ends."""

    def __init__(
        self, pipes: Pipes, process: Process, watched: int | None, popen: subprocess.Popen[bytes] | None = None
    ):
        self.process = process
        self.reader: int | None = pipes.reader
        self.writer: int | None = pipes.writer
        self.alone = popen is not None
        """Whether it must look by itself whether its parent lives."""
        self._watched, self._popen = watched, popen
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
                    self._end = _from_code(code)
            elif self._watched is not None and _readable(self._watched, within):
                self._end = _from_status(os.read(self._watched, STATUS.size))
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
        return self.reader is not None and _readable(self.reader, within)

    def close(self) -> None:
        """Give back the descriptors."""
        self.hang_up()
        for fd in (self.reader, self._watched):
            if fd is not None:
                os.close(fd)
        self.reader = self._watched = None

    def hang_up(self) -> None:
        """Close the pipe to the child: an idle one ends by itself then."""
        if self.writer is not None:
            os.close(self.writer)
        self.writer = None

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


class Pipes:
    """Two pipes between this process and a child: ours to keep, theirs to hand over."""

    def __init__(self) -> None:
        self.their_reader, self.writer = os.pipe()
        self.reader, self.their_writer = os.pipe()

    def handed_over(self) -> None:
        """Close the child's ends here."""
        os.close(self.their_reader)
        os.close(self.their_writer)

    def drop(self) -> None:
        """Close our ends too."""
        os.close(self.reader)
        os.close(self.writer)


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
            self._popen = _python(f"from onebeat.offload.seed import main; main({told})", [theirs.fileno()])
        self._control = ours
        return ours

    def _uproot(self) -> None:
        if self._control is not None:
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
        theirs = (pipes.their_reader, pipes.their_writer)
        told = f"{theirs[0]}, {theirs[1]}, {[*self._preload]!r}"
        try:
            popen = _python(f"from onebeat.offload.child import alone; alone({told})", theirs)
        except OSError:
            pipes.drop()
            raise
        finally:
            pipes.handed_over()
        return Child(pipes, Process.of(popen.pid), None, popen)

    def close(self) -> None:
        """Nothing is kept."""


Launcher = Seedbed | Spawner


def launcher(preload: tuple[str, ...] = (), *, spawn: bool = sys.platform != "linux") -> Launcher:
    """The way to start children here; `ConfigurationError` where there is none."""
    if sys.platform == "win32":
        raise ConfigurationError(
            "to_process needs pipes and signals of POSIX, which Windows has not: use to_thread, or run in WSL"
        )
    return Spawner(preload) if spawn else Seedbed(preload)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return "without a name"


def _fork(control: socket.socket) -> Child:
    """Ask the seed for a child."""
    pipes = Pipes()
    status, their_status = os.pipe()
    try:
        fds = array.array("i", [pipes.their_reader, pipes.their_writer, their_status])
        control.sendmsg([b"+"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        pipes.handed_over()
        os.close(their_status)
        data = os.read(status, BORN.size) if _readable(status, 60) else b""
        if len(data) < BORN.size:
            raise ConnectionError("the seed process ended or did not answer within 60 s")
    except OSError:
        pipes.drop()
        os.close(status)
        raise
    return Child(pipes, Process(*BORN.unpack(data)), status)


def _python(code: str, inherited: Collection[int]) -> subprocess.Popen[bytes]:
    """An interpreter like this one, in a session of its own, with this import path."""
    code = f"import sys; sys.path[:] = {sys.path!r}; {code}"
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # what multiprocessing uses too
    return subprocess.Popen(  # noqa: S603 - our own interpreter and code
        [sys.executable, *flags, "-c", code],
        pass_fds=inherited,
        stdin=subprocess.DEVNULL,
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


def _from_status(data: bytes) -> End:
    if len(data) < STATUS.size:
        return End()  # the seed went first
    status, peak = STATUS.unpack(data)
    return _from_code(os.waitstatus_to_exitcode(status), peak * 1024)


def _from_code(code: int, peak: int | None = None) -> End:
    return End(signal=-code, peak=peak) if code < 0 else End(exit_code=code, peak=peak)
