"""The seed: a small process with the preloaded modules that forks each child, so that a child starts in milliseconds.

It has one thread, so its forks are safe. It learns of its parent's end from its control socket, and ends all children
then; the kernel ends them when the seed itself is killed. Linux only.
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
import sys
from importlib import import_module

from onebeat.offload.child.exit_status import STATUS
from onebeat.offload.child.process_tree import Process, end_family, end_group

BORN = struct.Struct("!IQ")  # a new child: its number, and when it was born
PR_SET_PDEATHSIG = 1  # prctl(2): the signal a process gets when its parent dies


def main(control_fd: int, parent: int, preload: list[str]) -> None:
    """Serve until the parent is gone. In a forked child this returns, when the child has nothing more to do."""
    from onebeat.offload.child import main

    _harmless_interrupt()
    for name in preload:
        try:
            import_module(name)
        except Exception as error:  # noqa: BLE001 - the child will say it again if it needs the module
            print(f"onebeat: preloading {name} failed: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
    gc.freeze()  # what is preloaded stays shared between the children
    seed = Seed(socket.socket(fileno=control_fd), parent)
    pipes = seed.serve()
    if pipes is not None:
        main.main(*pipes)


class Seed:
    """Forks a child for each request and reports each child's end on the status pipe that came with it."""

    def __init__(self, control: socket.socket, parent: int) -> None:
        self._control, self._parent = control, parent
        self._status: dict[int, int] = {}  # child → its status pipe

    def serve(self) -> tuple[int, int] | None:
        """In the seed: None at the end. In a new child: the pipes it reads from and writes to."""
        wake, waker = os.pipe()
        for fd in (wake, waker):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(wake, select.POLLIN)
        while os.getppid() == self._parent:  # checked each second: a fork of the parent may hold the socket open
            ready = {fd for fd, _ in poll.poll(1000)}
            if wake in ready:
                os.read(wake, 4096)
            self._reap()
            if self._control.fileno() in ready:
                request = self._request()
                if request is None:
                    break
                reader, writer, status = request
                if self._fork(status, (wake, waker)):
                    return reader, writer
                os.close(reader)
                os.close(writer)
        for pid in self._status:
            end_family(pid)
        return None

    def _request(self) -> tuple[int, int, int] | None:
        """A new child's two pipes and its status pipe, or None when the parent has closed the socket."""
        room = socket.CMSG_SPACE(3 * array.array("i").itemsize)
        data, ancillary, _, _ = self._control.recvmsg(1, room, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return None
        fds = array.array("i")
        for _, _, payload in ancillary:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        reader, writer, status = fds
        return reader, writer, status

    def _fork(self, status: int, wake: tuple[int, int]) -> bool:
        """Fork a child; True in the child."""
        seed = os.getpid()
        pid = os.fork()
        if pid:
            self._status[pid] = status
            _write(status, BORN.pack(pid, Process.of(pid).born))
            return False
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()  # a session and group of its own: no Ctrl-C from the terminal, and one kill for all it starts
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != seed:
            os._exit(1)
        self._control.close()
        for fd in (status, *wake, *self._status.values()):
            os.close(fd)
        return True

    def _reap(self) -> None:
        """Take note of each child that has ended. Its group is ended first: afterwards its number may be another's."""
        for pid, fd in list(self._status.items()):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            end_group(pid, signal.SIGKILL)  # what it left running may hold its pipes open
            _, status, usage = os.wait4(pid, 0)
            del self._status[pid]
            _write(fd, STATUS.pack(status, usage.ru_maxrss))
            os.close(fd)


def _write(fd: int, data: bytes) -> None:
    try:
        os.write(fd, data)
    except BrokenPipeError:
        return  # nobody asks for it any more


def _harmless_interrupt() -> None:
    """A handler that does nothing instead of SIG_IGN, which programs started by the functions would inherit."""
    signal.signal(signal.SIGINT, lambda *_: None)
