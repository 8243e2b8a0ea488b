"""How a child process ended: by exit code or by signal, in words, with the most memory it had."""

from __future__ import annotations

import os
import signal
import struct
from dataclasses import dataclass

STATUS = struct.Struct("!iQ")  # what the seed tells of a child: what waitpid says, and the most memory it had, in KiB


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


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return "without a name"


def from_status(data: bytes) -> End:
    """What the seed tells."""
    if len(data) < STATUS.size:
        return End()  # the seed went first
    status, peak = STATUS.unpack(data)
    return from_code(os.waitstatus_to_exitcode(status), peak * 1024)


def from_code(code: int, peak: int | None = None) -> End:
    """What `subprocess` and `os.waitstatus_to_exitcode` give: a signal is a negative number."""
    return End(signal=-code, peak=peak) if code < 0 else End(exit_code=code, peak=peak)
