"""The SQLite file: where it may lie, and how onebeat opens it."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import sys
from pathlib import Path
from urllib.parse import unquote

from sqlalchemy import create_engine
from sqlalchemy.engine import URL, Engine
from sqlalchemy.pool import NullPool

from onebeat.errors import ConfigurationError

OLDEST = (3, 35)  # UPDATE … RETURNING
SAFE = (3, 51, 3)  # before it a rare race between checkpoints could damage a WAL (https://www.sqlite.org/wal.html)
BUSY_TIMEOUT = 5.0  # seconds
SYNCHRONOUS = ("FULL", "NORMAL", "EXTRA")

# Kinds of file system that do not share memory between hosts, or lie about locks.
_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\w*|9p|fuse(\..*)?|fuseblk|virtiofs|ceph|glusterfs|lustre|afs|ncpfs|vboxsf|prl_fs|vmhgfs.*"
)


def open_engine(url: URL) -> Engine:
    """onebeat's own engine on the file, in driver autocommit: transactions are begun and ended in text."""
    return create_engine(
        url,
        poolclass=NullPool,
        hide_parameters=True,
        connect_args={
            "isolation_level": None,
            "check_same_thread": False,
            "timeout": BUSY_TIMEOUT,
            "cached_statements": 256,
        },
    )


def prepare_writer(connection: sqlite3.Connection, synchronous: str) -> None:
    """WAL and durable commits; raises what SQLite raises when the file cannot be written."""
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    connection.execute(f"PRAGMA synchronous = {check_synchronous(synchronous)}")
    connection.execute("PRAGMA journal_size_limit = 67108864")  # bytes; a burst does not keep its disk for ever
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    connection.execute("BEGIN IMMEDIATE")  # on a read-only file a mere read transaction, so try a change and undo it
    try:
        connection.execute(f"PRAGMA user_version = {int(version)}")
    finally:
        connection.execute("ROLLBACK")
    connection.execute("PRAGMA busy_timeout = 0")  # from here on `SQLiteThread` does the waiting


def set_flushing(connection: sqlite3.Connection, flushed: bool, *, synchronous: str) -> None:
    """Whether the next commits wait for the disk as `synchronous` says, or leave that to a later one.

    Without it a commit survives its process, not a power cut; the file is whole in either case.
    """
    connection.execute(f"PRAGMA synchronous = {check_synchronous(synchronous) if flushed else 'NORMAL'}")


def prepare_reader(connection: sqlite3.Connection) -> None:
    """A reader that could not write by mistake."""
    connection.execute("PRAGMA query_only = ON")


def require_version(found: tuple[int, ...]) -> None:
    """Raise `ConfigurationError` for a SQLite library too old to serve."""
    if found < OLDEST:
        raise ConfigurationError(
            f"Python was built with SQLite {_dotted(found)}; onebeat needs {_dotted(OLDEST)} or later "
            "(a newer Python image has it), or another database"
        )


def cautions(found: tuple[int, ...]) -> list[str]:
    """What an operator should know about this library, in words."""
    if found >= SAFE:
        return []
    return [
        f"SQLite {_dotted(found)} has a very rare race that can damage a WAL file while several processes write; "
        f"{_dotted(SAFE)} does not"
    ]


def file_of(url: URL) -> Path | None:
    """The file a URL names, made absolute; None for a database in memory."""
    name = url.database or ""
    if name.startswith("file:"):
        name = unquote(name.removeprefix("file:").partition("?")[0])
    if name in ("", ":memory:") or url.query.get("mode") == "memory":
        return None
    return Path(name).absolute()


def require_place(path: Path, *, allow_network: bool, mountinfo: Path = Path("/proc/self/mountinfo")) -> None:
    """Raise `ConfigurationError` where the file could not be used safely, or not at all."""
    if not path.parent.is_dir():
        raise ConfigurationError(f"the directory of {path} does not exist; create it, or correct the database URL")
    if path.is_dir():
        raise ConfigurationError(f"{path} is a directory; name a file in the database URL")
    kind = filesystem_of(path, mountinfo)
    if kind is not None and _NETWORK.fullmatch(kind) and not allow_network:
        raise ConfigurationError(
            f"{path} lies on a network or shared file system ({kind}), where SQLite's write-ahead log can be damaged "
            "by a second host; put the file on a local disk, use PostgreSQL or MariaDB, or, if only one host ever "
            "opens it, set sqlite_allow_network=True"
        )


def make_private(url: URL) -> None:
    """Make a missing file, with mode 0600: arguments of jobs are stored in it as they are.

    SQLite gives its `-wal` and `-shm` files the same mode. A file that is there keeps its own.
    """
    path = file_of(url)
    if path is None or url.query.get("mode", "rwc") != "rwc":
        return
    try:
        if sys.platform == "linux":
            os.mknod(path, 0o600 | stat.S_IFREG)  # closing a descriptor would free locks of SQLite in this process
        else:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError:  # it is there, or cannot be made: SQLite opens it, or says why it cannot
        return


def filesystem_of(path: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> str | None:
    """The kind of file system below a path, from Linux's list of mounts (proc(5)); None where there is no such list."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        lines = mountinfo.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    real = os.path.realpath(path)
    best, kind = "", None
    for line in lines:
        head, separator, tail = line.partition(" - ")
        fields = head.split(" ")
        if not separator or len(fields) < 5:
            continue
        mount = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), fields[4])
        inside = real == mount or real.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):  # of two mounts on one point the later covers the earlier
            best, kind = mount, tail.split(" ")[0]
    return kind


def check_synchronous(level: str) -> str:
    """Return the level in capitals; raises `ConfigurationError` for one that is unknown or unsafe."""
    if level.upper() not in SYNCHRONOUS:
        raise ConfigurationError(f"sqlite_synchronous is {level[:20]!r}; use one of {', '.join(SYNCHRONOUS)}")
    return level.upper()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)
