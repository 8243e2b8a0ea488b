"""The fork server: a small process with the preloaded modules that forks each child within milliseconds.

It has one thread, so its forks are safe. When its parent ends, its control socket closes and it kills all children.
When the fork server itself is killed, the kernel kills the children. Linux only.
"""

from __future__ import annotations

import array
import ctypes
import gc
import os
import select
import signal
import socket
import struct

from onebeat.offload.child.exit_status import WAIT_RECORD
from onebeat.offload.child.preload import import_modules
from onebeat.offload.child.process_tree import Process, kill_tree, signal_group

START_RECORD = struct.Struct("!IQ")  # a new child: its process id and its start time
PR_SET_PDEATHSIG = 1  # prctl(2): the signal that a process gets when its parent dies


def main(control_fd: int, parent: int, preload: list[str]) -> None:
    """Serve until the parent has ended. In a forked child this returns when the child has served its last call."""
    from onebeat.offload.child.main import serve

    _ignore_interrupt()
    import_modules(preload)
    gc.freeze()  # keeps the memory of preloaded modules shared between the children
    pipes = ForkServer(socket.socket(fileno=control_fd), parent).run()
    if pipes is not None:
        serve(*pipes)


class ForkServer:
    """Fork a child for each request, and report each child's exit on the status pipe that came with the request."""

    def __init__(self, control: socket.socket, parent: int) -> None:
        self._control, self._parent = control, parent
        self._status_pipes: dict[int, int] = {}  # process id of a child → its status pipe

    def run(self) -> tuple[int, int] | None:
        """Return None at the end of the server. In a new child, return the pipes that it reads from and writes to."""
        wakeup, waker = os.pipe()
        for fd in (wakeup, waker):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(wakeup, select.POLLIN)
        while os.getppid() == self._parent:  # checked each second: a fork of the parent may keep the socket open
            ready = {fd for fd, _ in poll.poll(1000)}
            if wakeup in ready:
                os.read(wakeup, 4096)
            self._reap()
            if self._control.fileno() in ready:
                request = self._receive_request()
                if request is None:
                    break
                reader, writer, status = request
                if self._fork(status, (wakeup, waker)):
                    return reader, writer
                os.close(reader)
                os.close(writer)
        for pid in self._status_pipes:
            kill_tree(pid)
        return None

    def _receive_request(self) -> tuple[int, int, int] | None:
        """Return a new child's two pipes and its status pipe, or None when the parent has closed the socket."""
        space = socket.CMSG_SPACE(3 * array.array("i").itemsize)
        data, ancillary, _, _ = self._control.recvmsg(1, space, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return None
        fds = array.array("i")
        for _, _, payload in ancillary:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        reader, writer, status = fds
        return reader, writer, status

    def _fork(self, status: int, wakeup_pipe: tuple[int, int]) -> bool:
        """Fork a child; return True in the child."""
        server = os.getpid()
        pid = os.fork()
        if pid:
            self._status_pipes[pid] = status
            _write(status, START_RECORD.pack(pid, Process.of(pid).start_time))
            return False
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()  # a session of its own: no Ctrl-C from the terminal, and one signal reaches all that it starts
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:
            os._exit(1)
        self._control.close()
        for fd in (status, *wakeup_pipe, *self._status_pipes.values()):
            os.close(fd)
        return True

    def _reap(self) -> None:
        """Report each child that has ended; its group is killed first, because its id may be reused afterwards."""
        for pid, status_pipe in list(self._status_pipes.items()):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            signal_group(pid, signal.SIGKILL)  # the processes that it left may hold its pipes open
            _, status, usage = os.wait4(pid, 0)
            del self._status_pipes[pid]
            _write(status_pipe, WAIT_RECORD.pack(status, usage.ru_maxrss))
            os.close(status_pipe)


def _write(fd: int, data: bytes) -> None:
    try:
        os.write(fd, data)
    except BrokenPipeError:
        return  # the reader has closed its end and does not ask for it any more


def _ignore_interrupt() -> None:
    """Install an empty handler for Ctrl-C; programs that a function starts would inherit SIG_IGN instead."""
    signal.signal(signal.SIGINT, lambda *_: None)
