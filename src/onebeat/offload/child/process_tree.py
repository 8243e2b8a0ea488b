"""The process tree below a process, and signals that never reach a later process with the same id."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """A process, identified by id and start time, so that a later one with the same id differs. Linux only."""

    pid: int
    start_time: int  # clock ticks after boot

    @classmethod
    def of(cls, pid: int) -> Process:
        """Return the process that has this id now; the caller has not waited for it yet, or is the process itself."""
        found = _stat(pid)
        return cls(pid, 0 if found is None else found.start_time)

    @property
    def is_alive(self) -> bool:
        """True while it runs; a zombie, which has ended and was not waited for, is not alive."""
        found = _stat(self.pid)
        return found is not None and found.start_time == self.start_time and found.state != "Z"

    def signal(self, number: int) -> None:
        """Send the signal if the process is alive; a pidfd keeps its id from being reused between check and signal."""
        with suppress(ProcessLookupError, PermissionError):
            pidfd = _open_pidfd(self.pid)
            try:
                if not self.is_alive:
                    return
                if pidfd is None:
                    os.kill(self.pid, number)
                else:
                    signal.pidfd_send_signal(pidfd, number)
            finally:
                if pidfd is not None:
                    os.close(pidfd)


def descendants(root: Process) -> set[Process]:
    """Return the processes that `root` started, directly or not, or that live in its session; empty outside Linux.

    After the end of `root` these are the processes left in its session. The set is empty when another process has
    taken over the id.
    """
    if sys.platform != "linux":
        return set()
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (stat := _stat(int(folder.name))) is not None:
            found[int(folder.name)] = stat
    tree = {root.pid}
    while grown := {p for p, s in found.items() if p not in tree and (s.parent in tree or s.session == root.pid)}:
        tree |= grown
    owner = _stat(root.pid)  # read last: if the id still belongs to `root`, it did so during the whole scan
    if owner is not None and owner.start_time != root.start_time:
        return set()
    return {Process(p, found[p].start_time) for p in tree - {root.pid} if found[p].state != "Z"}


def signal_group(leader: int, number: int) -> None:
    """Send the signal to a leader's process group; its id may be reused once somebody has waited for the leader."""
    with suppress(ProcessLookupError, PermissionError):  # macOS refuses it when the group's last process has ended
        os.killpg(leader, number)


def kill_tree(leader: int) -> None:
    """Kill a group leader, its group and its descendants in other sessions; nobody may have waited for it before."""
    for process in descendants(Process.of(leader)):
        process.signal(signal.SIGKILL)
    signal_group(leader, signal.SIGKILL)  # last, because the caller may be the leader


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    parent: int
    session: int
    start_time: int


def _stat(pid: int) -> _Stat | None:
    """Read /proc/<pid>/stat (proc_pid_stat(5)); the name in brackets may hold anything, so skip its last bracket."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return _Stat(fields[0], int(fields[1]), int(fields[3]), int(fields[19]))


def _open_pidfd(pid: int) -> int | None:
    """Return a pidfd of the process; None where the kernel (before Linux 5.3) or a sandbox has none."""
    if sys.platform != "linux" or not hasattr(signal, "pidfd_send_signal"):
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except OSError:
        return None
