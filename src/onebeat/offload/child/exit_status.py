"""The exit status of a child process: its exit code or signal, and its peak memory."""

from __future__ import annotations

import os
import signal
import struct
from dataclasses import dataclass

WAIT_RECORD = struct.Struct("!iQ")  # the fork server's report: waitpid's status, and the peak memory in KiB


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitStatus:
    """How a child ended: its exit code or signal (both None when unknown), and its peak memory in bytes."""

    exit_code: int | None = None
    signal: int | None = None
    peak_memory: int | None = None

    def __str__(self) -> str:
        if self.signal is not None:
            text = f"signal {_signal_name(self.signal)} ({self.signal})"
        else:
            text = "an unknown exit status" if self.exit_code is None else f"exit code {self.exit_code}"
        if self.signal == getattr(signal, "SIGKILL", None):
            text += " (the kernel sends it when memory runs out)"
        return text if self.peak_memory is None else f"{text}, at most {self.peak_memory / 2**20:.0f} MiB used"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return "without a name"


def from_wait_record(data: bytes) -> ExitStatus:
    """Return the exit status that the fork server reported; an unknown one when the server ended first."""
    if len(data) < WAIT_RECORD.size:
        return ExitStatus()
    status, peak_kib = WAIT_RECORD.unpack(data)
    return from_exit_code(os.waitstatus_to_exitcode(status), peak_kib * 1024)


def from_exit_code(code: int, peak_memory: int | None = None) -> ExitStatus:
    """Return the exit status for a code of `subprocess` or `os.waitstatus_to_exitcode`, where signals are negative."""
    if code < 0:
        return ExitStatus(signal=-code, peak_memory=peak_memory)
    return ExitStatus(exit_code=code, peak_memory=peak_memory)
