"""The surroundings of a call in a child process: what it changes in them is undone before the next call."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any


class Surroundings:
    """The working directory, the environment and the file mode mask of this process at one moment.

    >>> before = Surroundings()
    >>> os.environ["ONEBEAT_EXAMPLE"] = "left behind"
    >>> before.restore()
    >>> "ONEBEAT_EXAMPLE" in os.environ
    False
    """

    __slots__ = ("_directory", "_environment", "_mask")

    def __init__(self) -> None:
        self._directory = _directory()
        self._environment = _environment().copy()
        self._mask = os.umask(0o077)
        os.umask(self._mask)

    def restore(self) -> None:
        """Undo what has changed since. A directory that is gone, or was gone at that moment, cannot be entered."""
        if self._directory is not None and _directory() != self._directory:
            with suppress(OSError):
                os.chdir(self._directory)
        if _environment() != self._environment:
            before = self._environment
            for name in [name for name in os.environb if name not in before]:
                del os.environb[name]
            for name, value in before.items():
                if os.environb.get(name) != value:
                    os.environb[name] = value
        os.umask(self._mask)


def _directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed, or may not be read
        return None


def _environment() -> dict[bytes, bytes]:
    """Return the mapping behind `os.environ`: copying that itself decodes every text, at the cost of a whole call."""
    data: Any = os.environ._data  # type: ignore[attr-defined]  # since Python 3.0; on POSIX of bytes
    return data  # type: ignore[no-any-return]  # POSIX is all that child processes run on
