"""The folder of the log files, and files in it: opened only where no other user can have prepared them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Untrusted(OSError):
    """A folder or a file that another user could have put in this place, or may write to."""


@contextmanager
def open_folder(directory: Path, *, make: bool = False) -> Iterator[int | None]:
    """A descriptor of the folder, by which the caller reaches its files even if another one takes its name meanwhile.

    The folder is no link, it belongs to this user or to root, and others may not write to it; else `Untrusted`.
    `make` creates it, with mode 0750. The value is None on Windows, which has neither such owners nor such descriptors.
    """
    if make:
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    if os.open not in os.supports_dir_fd:
        yield None
        return
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if not directory.is_symlink():
            raise
        raise Untrusted(f"{directory} is a link, which could lead elsewhere tomorrow; name the real folder") from error
    try:
        found = os.fstat(descriptor)
        if found.st_uid not in (os.geteuid(), 0) or found.st_mode & stat.S_IWOTH:
            raise Untrusted(
                f"{directory} may be written by other users ({_described(found)}); give the logs a folder that belongs "
                "to this user and that others may not write to (chmod o-w)"
            )
        yield descriptor
    finally:
        os.close(descriptor)


def open_file(path: Path) -> int:
    """Open a log file for appending, and make it and its folder; `Untrusted` where another user could have made it."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
    for flag in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):  # not blocked by a pipe put in our place
        flags |= getattr(os, flag, 0)
    with open_folder(path.parent, make=True) as folder:
        fd = os.open(path if folder is None else path.name, flags, 0o640, dir_fd=folder)
    try:
        _require_trusted(path, os.fstat(fd), has_owner=folder is not None)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _require_trusted(path: Path, found: os.stat_result, *, has_owner: bool) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Untrusted(f"{path} is not a regular file")
    if has_owner and (found.st_uid != os.geteuid() or found.st_mode & stat.S_IWOTH):
        raise Untrusted(
            f"{path} may be written by other users ({_described(found)}); remove it, or give the logs another folder"
        )


def _described(found: os.stat_result) -> str:
    return f"mode {stat.S_IMODE(found.st_mode):04o}, owner {found.st_uid}"
