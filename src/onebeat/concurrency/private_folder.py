"""A folder in the temporary one that belongs to this user alone, and a secret that only this user's processes know."""

from __future__ import annotations

import os
import secrets
import stat
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

_BYTES = 32  # of the secret


def private_folder() -> Path | None:
    """Return the folder, made on first use; None when no folder can be this user's alone.

    It belongs to this user, with mode 0700, and is no link. On Windows there is none.
    """
    if sys.platform == "win32":
        return None
    try:
        folder = Path(tempfile.gettempdir()) / f"onebeat-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:  # no folder can be written: a read-only root file system
        return None
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return folder if private else None


@cache
def user_secret() -> bytes | None:
    """Return 32 random bytes that all processes of this user on this host share; None without a private folder."""
    folder = private_folder()
    if folder is None:
        return None
    path = folder / "secret"
    try:
        return _read(path) or _made(path)
    except OSError:  # the disk is full, or the folder was removed in this moment
        return None


def _read(path: Path) -> bytes | None:
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        return None
    return found if len(found) == _BYTES else None


def _made(path: Path) -> bytes | None:
    """Make the secret, unless another process does it at the same time: then return that one's."""
    new = path.with_name(f"secret-{secrets.token_hex(8)}")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(secrets.token_bytes(_BYTES))
    with suppress(FileExistsError):
        os.link(new, path)  # whole at once, and it replaces nothing
    new.unlink()
    return _read(path)
