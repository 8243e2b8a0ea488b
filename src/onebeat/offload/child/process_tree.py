"""A process with what descends from it, and signals that reach it alone, never a later process of the same number."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """A process that cannot be mistaken for a later one of the same number. Linux only."""

    pid: int
    born: int  # clock ticks after boot

    @classmethod
    def of(cls, pid: int) -> Process:
        """The one that has this number now; for processes that the caller has yet to wait for, or itself."""
        found = _stat(pid)
        return cls(pid, 0 if found is None else found.born)

    @property
    def alive(self) -> bool:
        """Whether it still runs; one that has ended and was not yet waited for does not."""
        found = _stat(self.pid)
        return found is not None and found.born == self.born and found.state != "Z"

    def signal(self, number: int) -> None:
        """Send the signal if it still runs. A descriptor holds on to the process between the look and the signal."""
        with suppress(ProcessLookupError, PermissionError):
            pinned = _pin(self.pid)
            try:
                if not self.alive:
                    return
                if pinned is None:
                    os.kill(self.pid, number)
                else:
                    signal.pidfd_send_signal(pinned, number)
            finally:
                if pinned is not None:
                    os.close(pinned)


def descendants(root: Process) -> set[Process]:
    """What a process started, directly or not, or within its session; found on Linux only, else empty.

    Also after its end: what it left in its session. Empty when its number belongs to another process by now.
    """
    if sys.platform != "linux":
        return set()
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (stat := _stat(int(folder.name))) is not None:
            found[int(folder.name)] = stat
    family = {root.pid}
    while grown := {p for p, s in found.items() if p not in family and (s.parent in family or s.session == root.pid)}:
        family |= grown
    owner = _stat(root.pid)  # looked at last: until here the number was nobody else's
    if owner is not None and owner.born != root.born:
        return set()
    return {Process(p, found[p].born) for p in family - {root.pid} if found[p].state != "Z"}


def end_group(leader: int, number: int) -> None:
    """Send the signal to the group of a leader that nobody has waited for yet: only so long is the number its own."""
    with suppress(ProcessLookupError, PermissionError):  # macOS refuses it when the group's last process has ended
        os.killpg(leader, number)


def end_family(leader: int) -> None:
    """End what a group's leader started, also in sessions of its own, and the group; nobody has waited for it yet."""
    for process in descendants(Process.of(leader)):
        process.signal(signal.SIGKILL)
    end_group(leader, signal.SIGKILL)  # last: the leader may be who calls this


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


def _pin(pid: int) -> int | None:
    """A descriptor of the process; None where the kernel (before Linux 5.3) or a sandbox has none."""
    if sys.platform != "linux" or not hasattr(signal, "pidfd_send_signal"):
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except OSError:
        return None
