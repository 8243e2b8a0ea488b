"""Launchers start child processes: forked by the fork server on Linux, as new interpreters elsewhere."""

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

from onebeat.errors import ConfigurationError, WorkerProcessDied
from onebeat.offload.child.exit_status import WAIT_RECORD, ExitStatus, from_exit_code, from_wait_record
from onebeat.offload.child.fork_server import START_RECORD
from onebeat.offload.child.pipes import FORK_LOCK, Pipes
from onebeat.offload.child.process_tree import Process, descendants, signal_group

GRACE = 0.5  # seconds between SIGTERM and SIGKILL
FORK_TIMEOUT = 60.0  # seconds that the fork server may take to start and to fork a child


class ChildProcess:
    """A started child: its pipes, its process id and its exit status."""

    def __init__(self, pipes: Pipes, process: Process, popen: subprocess.Popen[bytes] | None = None) -> None:
        self.process, self.pipes = process, pipes
        self.must_watch_parent = popen is not None
        """Whether the child itself must notice the end of its parent, because no fork server does."""
        self._popen = popen
        self._wait_lock = threading.Lock()
        self._status: ExitStatus | None = None

    @property
    def pid(self) -> int:
        """The process id, for messages: after the child's end another process may have it."""
        return self.process.pid

    def wait(self, timeout: float) -> ExitStatus | None:
        """Return the exit status, or None if the child still runs after `timeout` seconds.

        Once there is an exit status, the child's process group has been killed too.
        """
        with self._wait_lock:
            if self._status is not None:
                return self._status
            if self._popen is not None:
                if (code := _wait(self._popen, timeout)) is not None:
                    self._status = from_exit_code(code)
            elif self.pipes.status in self.pipes and _is_readable(self.pipes.status, timeout):
                self._status = from_wait_record(os.read(self.pipes.status, WAIT_RECORD.size))
            return self._status

    def terminate(self, grace: float = GRACE) -> None:
        """End the child and its process tree: SIGTERM first, SIGKILL after `grace` seconds. From any thread."""
        tree = descendants(self.process)
        self._signal(tree, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while (left := deadline - time.monotonic()) > 0:
            has_ended = self.wait(min(left, 0.01) if tree else left) is not None
            if has_ended and not any(process.is_alive for process in tree):
                break
            if has_ended:
                time.sleep(0.01)  # its descendants get the rest of the grace period
        tree |= descendants(self.process)
        self._signal(tree, signal.SIGKILL)
        self.wait(5)
        deadline = time.monotonic() + 5
        while any(process.is_alive for process in tree) and time.monotonic() < deadline:
            time.sleep(0.002)  # the kernel needs a moment

    def wait_readable(self, timeout: float) -> bool:
        """Return whether the child has sent something, waiting at most `timeout` seconds."""
        return _is_readable(self.pipes.reader, timeout)

    def close(self) -> None:
        """Close all descriptors."""
        self.pipes.close()

    def close_input(self) -> None:
        """Close the pipe to the child, which makes an idle child exit."""
        self.pipes.close(self.pipes.writer)

    def _signal(self, tree: set[Process], number: int) -> None:
        """Signal the child and its tree; only who waits for the child may signal its group, here or the fork server."""
        if self._popen is None:
            self.process.signal(number)
        else:
            with self._wait_lock:
                if self._status is None:
                    signal_group(self.pid, number)
        for process in tree:
            process.signal(number)


class ForkLauncher:
    """Start children through a fork server of this process, which is itself started on first use."""

    def __init__(self, preload: tuple[str, ...] = ()) -> None:
        self._preload = preload
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._popen: subprocess.Popen[bytes] | None = None
        self._closed = False

    def start(self) -> ChildProcess:
        """Return a new child; a fork server that has ended is replaced once.

        Raises `WorkerProcessDied` when the second one ends too, and `ConnectionError` after `close`.
        """
        with self._lock:
            if self._closed:
                raise ConnectionError("this launcher is closed and starts no more child processes")
            for may_retry in (True, False):
                control = self._control or self._start_server()
                try:
                    return _request_child(control)
                except OSError as error:
                    status = self._stop_server()
                    if not may_retry:
                        if isinstance(error, ConnectionError):
                            raise _start_failure(status) from error
                        raise  # for example, this process has no free descriptor
        raise AssertionError("unreachable")

    def close(self) -> None:
        """End the fork server, which kills its children."""
        with self._lock:
            self._closed = True
            self._stop_server()

    def _start_server(self) -> socket.socket:
        control, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with server_end:
            arguments = f"{server_end.fileno()}, {os.getpid()}, {[*self._preload]!r}"
            self._popen = _start_python(
                f"from onebeat.offload.child.fork_server import main; main({arguments})", [server_end.fileno()]
            )
        self._control = control
        return control

    def _stop_server(self) -> ExitStatus | None:
        """Stop the fork server; return its exit status if it had ended by itself."""
        code = None
        if self._popen is not None and self._control is not None and _has_hung_up(self._control):
            code = _wait(self._popen, 2)
        if self._control is not None:
            with suppress(OSError):  # the other end is closed already
                self._control.shutdown(socket.SHUT_RDWR)  # a fork of this process may keep the socket open
            self._control.close()
            self._control = None
        if self._popen is not None:
            if _wait(self._popen, 2) is None:
                signal_group(self._popen.pid, signal.SIGKILL)
                self._popen.wait()
            self._popen = None
        return None if code is None else from_exit_code(code)


class SpawnLauncher:
    """Start each child as a new interpreter: slower than a fork, and available on every POSIX system."""

    def __init__(self, preload: tuple[str, ...] = ()) -> None:
        self._preload = preload

    def start(self) -> ChildProcess:
        """Return a new child."""
        pipes = Pipes()
        try:
            reader, writer, _ = pipes.child_ends
            arguments = f"{reader}, {writer}, {[*self._preload]!r}"
            code = f"from onebeat.offload.child.main import main_spawned; main_spawned({arguments})"
            popen = _start_python(code, (reader, writer))
            pipes.close(*pipes.child_ends)
        except OSError:
            pipes.close()
            raise
        return ChildProcess(pipes, Process.of(popen.pid), popen)

    def close(self) -> None:
        """Do nothing: a spawn launcher holds no resources."""


Launcher = ForkLauncher | SpawnLauncher
CAN_FORK = sys.platform == "linux" and os.path.exists("/proc/self/stat")
"""Whether the fork server works here: it reads start times from /proc to tell a process from a later one."""


def launcher(preload: tuple[str, ...] = (), *, spawn: bool = not CAN_FORK) -> Launcher:
    """Return a launcher for this system; raise `ConfigurationError` on Windows, which has none."""
    if sys.platform == "win32":
        raise ConfigurationError(
            "to_process needs POSIX pipes and signals, which Windows does not have. Use to_thread, or run in WSL."
        )
    return SpawnLauncher(preload) if spawn else ForkLauncher(preload)


def _request_child(control: socket.socket) -> ChildProcess:
    """Ask the fork server for a child."""
    pipes = Pipes()
    try:
        control.sendmsg([b"+"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", pipes.child_ends))])
        pipes.close(*pipes.child_ends)
        data = os.read(pipes.status, START_RECORD.size) if _is_readable(pipes.status, FORK_TIMEOUT) else b""
        if len(data) < START_RECORD.size:
            raise ConnectionError("the fork server has not forked a child")
    except OSError:
        pipes.close()
        raise
    return ChildProcess(pipes, Process(*START_RECORD.unpack(data)))


def _start_failure(status: ExitStatus | None) -> WorkerProcessDied:
    """Return the error for two fork servers in a row that forked no child."""
    if status is None:
        return WorkerProcessDied(f"the fork server of the child processes did not answer within {FORK_TIMEOUT:g} s")
    return WorkerProcessDied(
        f"the fork server of the child processes ended by {status} before it could fork one. "
        "Check that no module of setup_offload(preload=…) ends its process.",
        exit_code=status.exit_code,
        signal=status.signal,
    )


def working_directory() -> str:
    """Return this process's working directory, or ``/`` when it was removed: Python 3.13.0 does not start in one."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"


def _start_python(code: str, inherited: Collection[int]) -> subprocess.Popen[bytes]:
    """Start an interpreter like this one, in a session of its own, with this import path and these descriptors."""
    code = f"import sys; sys.path[:] = {sys.path!r}; {code}"
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # what multiprocessing uses too
    with FORK_LOCK:  # Popen returns when its internal pipe to the new process is closed, which a fork would keep open
        return subprocess.Popen(  # noqa: S603 - our own interpreter and code
            [sys.executable, *flags, "-c", code],
            pass_fds=inherited,
            stdin=subprocess.DEVNULL,
            cwd=working_directory(),
            start_new_session=True,
        )


def _wait(popen: subprocess.Popen[bytes], timeout: float) -> int | None:
    """Return a group leader's exit code, or None after `timeout` seconds; its group is killed before its id is free.

    macOS has `os.waitid` since Python 3.13. With an older Python there, the rest of the group is left alone.
    """
    deadline = time.monotonic() + timeout
    pause = 0.0005
    while hasattr(os, "waitid") and popen.returncode is None:
        try:
            if os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                signal_group(popen.pid, signal.SIGKILL)
                break
        except ChildProcessError:  # other code in this process has waited for it, so its id may be reused already
            break
        if time.monotonic() >= deadline:
            return None
        time.sleep(pause)
        pause = min(2 * pause, 0.01)
    try:
        return popen.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None


def _has_hung_up(control: socket.socket) -> bool:
    """Return whether the other end of the socket is closed."""
    poll = select.poll()
    poll.register(control, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def _is_readable(fd: int, timeout: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout * 1000))
