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
from dataclasses import dataclass
from pathlib import Path

from onebeat.errors import ConfigurationError
from onebeat.offload.seed import PID, STATUS

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

    def __init__(self, pipes: Pipes, pid: int, watched: int | None, popen: subprocess.Popen[bytes] | None = None):
        self.pid = pid
        self.reader: int | None = pipes.reader
        self.writer: int | None = pipes.writer
        self.alone = popen is not None
        """Whether it must look by itself whether its parent lives."""
        self._watched, self._popen = watched, popen
        self._waiting = threading.Lock()
        self._end: End | None = None

    def ended(self, within: float) -> End | None:
        """How it ended, waiting at most `within` seconds for that; None while it runs."""
        with self._waiting:
            if self._end is not None:
                return self._end
            if self._popen is not None:
                with suppress(subprocess.TimeoutExpired):
                    self._end = _from_code(self._popen.wait(within))
            elif self._watched is not None and _readable(self._watched, within):
                self._end = _from_status(os.read(self._watched, STATUS.size))
            return self._end

    def end(self, grace: float = GRACE) -> None:
        """End the child and every process it started: asked first, ended after `grace` seconds. From any thread."""
        family = descendants(self.pid)
        _signal(self.pid, family, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while (left := deadline - time.monotonic()) > 0:
            gone = self.ended(min(left, 0.01) if family else left) is not None
            if gone and not any(process.alive for process in family):
                break
            if gone:
                time.sleep(0.01)  # what it started has the same grace
        family |= descendants(self.pid)
        _signal(self.pid, family, getattr(signal, "SIGKILL", signal.SIGTERM))
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


@dataclass(frozen=True, slots=True)
class Process:
    """A process that cannot be mistaken for a later one of the same number."""

    pid: int
    born: int

    @property
    def alive(self) -> bool:
        found = _stat(self.pid)
        return found is not None and found.born == self.born and found.state != "Z"


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
            try:
                self._popen.wait(2)
            except subprocess.TimeoutExpired:
                self._popen.kill()
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
        return Child(pipes, popen.pid, None, popen)

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


def descendants(pid: int) -> set[Process]:
    """What a process started, directly or not, or within its session; found on Linux only, else empty."""
    if sys.platform != "linux":
        return set()
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (stat := _stat(int(folder.name))) is not None:
            found[int(folder.name)] = stat
    family = {pid}
    while grown := {p for p, s in found.items() if p not in family and (s.parent in family or s.session == pid)}:
        family |= grown
    return {Process(p, found[p].born) for p in family - {pid} if found[p].state != "Z"}


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    parent: int
    session: int
    born: int


def _stat(pid: int) -> _Stat | None:
    """proc_pid_stat(5); the name in brackets may hold anything, so what counts begins behind the last bracket."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return _Stat(fields[0], int(fields[1]), int(fields[3]), int(fields[19]))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return "without a name"


def _signal(group: int, others: set[Process], number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(group, number)
        else:
            os.kill(group, number)
    for process in others:
        if process.alive:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, number)


def _fork(control: socket.socket) -> Child:
    """Ask the seed for a child."""
    pipes = Pipes()
    status, their_status = os.pipe()
    try:
        fds = array.array("i", [pipes.their_reader, pipes.their_writer, their_status])
        control.sendmsg([b"+"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        pipes.handed_over()
        os.close(their_status)
        data = os.read(status, PID.size) if _readable(status, 60) else b""
        if len(data) < PID.size:
            raise ConnectionError("the seed process ended or did not answer within 60 s")
    except OSError:
        pipes.drop()
        os.close(status)
        raise
    return Child(pipes, PID.unpack(data)[0], status)


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
