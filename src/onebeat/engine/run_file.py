"""A file each worker keeps locked on its host: a sibling that finds the lock free knows at once that it died."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from onebeat.concurrency.private_folder import private_folder

if sys.platform != "win32":
    import fcntl


_WORKER_ID = re.compile(r"[0-9a-f]{32}")  # as `model.ids.token` makes it


def boot_id() -> str | None:
    """What tells this boot of this host from every other, where the system says it (Linux)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return None


class RunFile:
    """Held from start to stop; the kernel frees it when the process dies, however it dies."""

    def __init__(self, worker_id: str) -> None:
        folder = private_folder()
        self._path = None if folder is None else folder / f"{worker_id}.run"
        self._file: int | None = None

    def hold(self) -> None:
        """Create and lock the file. A host that cannot is served by the lease alone."""
        if sys.platform == "win32" or self._path is None:
            return
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # a read-only or foreign temporary folder: the lease still finds the dead
            self.release()

    def release(self) -> None:
        """Unlock and remove the file."""
        if self._file is not None and self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None


def dead_siblings(worker_ids: Iterable[str]) -> list[str]:
    """Those of the workers, all of this boot of this host, whose run file is here and unlocked: their process is gone.

    A file that is missing says nothing: another container of the same host has a temporary folder of its own. An id
    that no worker has made, which may come from the database, names no file.
    """
    folder = private_folder()
    if sys.platform == "win32" or folder is None:
        return []
    made = [worker_id for worker_id in worker_ids if _WORKER_ID.fullmatch(worker_id)]
    return [worker_id for worker_id in made if _is_free(folder / f"{worker_id}.run")]


def _is_free(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        with contextlib.suppress(OSError):
            path.unlink()
        return True
    finally:
        os.close(file)
