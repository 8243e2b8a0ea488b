"""Log files named by date and shared by several processes; a record goes to the file of its own date."""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import Final, NamedTuple

from onebeat.errors import ConfigurationError
from onebeat.logs.folder import Untrusted, open_file, open_folder
from onebeat.logs.queue import Bucket
from onebeat.logs.writer import complain

OPEN_FILES: Final = 3  # days: today's, yesterday's around midnight, one for a clock that steps back
_DAY = 86_400
SETTLED = 30  # looks, a millisecond apart, at a file that does not grow: the half line at its end is nobody's any more
_LOCAL_DISKS = frozenset(
    ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "ramfs", "overlay", "reiserfs", "jfs", "bcachefs")
)


class DatedFiles:
    """A sink of one file a day, `<name>-<date>.log`, opened for appending and never renamed.

    An append on a local POSIX disk is one indivisible step, so processes share a file without a lock, and there is no
    rotation in which a line could get lost. On Windows, and where the disk is not known to be local, each process
    writes files of its own, `<name>-<date>.<host>.<pid>.log`, as with `per_process=True`. A folder or file that another
    user could have prepared is refused: the folder here with `ConfigurationError`, else when it is opened.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        name: str = "app",
        keep_days: int | None = 7,
        per_process: bool = False,
        utc: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = "file"
        self.directory = Path(directory).absolute()
        _require_trusted(self.directory)
        self.per_process = per_process or not on_local_disk(self.directory)
        self._file_name = name
        self._keep_days = keep_days
        self._utc = utc
        self._clock = clock
        self._open: dict[str, _DayFile] = {}  # by date, oldest use first
        self._span = (0.0, 0.0, "")  # first and last moment of a day, and its date
        self._pruned = ""

    def write(self, batch: deque[Bucket]) -> None:
        """Append each line to the file of its date; neighbours of one date are one write."""
        while batch:
            day = self.day(batch[0].moment)
            run = list(takewhile(lambda bucket, day=day: self.day(bucket.moment) == day, batch))  # type: ignore[misc]  # mypy cannot infer the default's type
            self._file(day).append(run)
            while batch and not batch[0].lines:
                batch.popleft()

    def close(self) -> None:
        """Close the files; the next write opens them again."""
        while self._open:
            self._open.popitem()[1].close()

    def day(self, moment: float) -> str:
        """The date of a moment, by UTC or by the local clock."""
        first, last, day = self._span
        if first <= moment < last:
            return day
        try:
            self._span = _day_around(moment, self._utc)
        except (ValueError, OverflowError, OSError):  # a record with an impossible moment goes to today's file
            self._span = _day_around(self._clock(), self._utc)
            return self._span[2]
        return self._span[2]

    def _file(self, day: str) -> _DayFile:
        file = self._open.pop(day, None)
        if file is None:
            file = _DayFile(self.directory / self._file_of(day))
            while len(self._open) >= OPEN_FILES:
                self._open.pop(next(iter(self._open))).close()
            self._prune()
        self._open[day] = file
        return file

    def _file_of(self, day: str) -> str:
        own = f".{_host()}.{os.getpid()}" if self.per_process else ""
        return f"{self._file_name}-{day}{own}.log"

    def _prune(self) -> None:
        """Once a day: delete what is older than today and `keep_days` full days before it."""
        today = _day_around(self._clock(), self._utc)[2]
        if self._keep_days is None or today == self._pruned:
            return
        self._pruned = today
        prune(self.directory, self._file_name, date.fromisoformat(today) - timedelta(days=self._keep_days))


def _require_trusted(directory: Path) -> None:
    """Raise `ConfigurationError` for a folder that other users may write to; one that is missing will be made."""
    try:
        with open_folder(directory):
            return
    except Untrusted as error:
        raise ConfigurationError(f"the log directory cannot be used: {error}") from error
    except OSError:  # it is missing, or cannot be read now: each write tries again and says what is wrong
        return


def prune(directory: Path, name: str, oldest_kept: date) -> list[str]:
    """Delete the files of days before `oldest_kept`, and nothing else: exact names, regular files, past dates.

    A link, or a folder that others may write to, is left alone. Several processes may do this at once; what another one
    deleted first is no error. Returns what was deleted.
    """
    pattern = re.compile(rf"{re.escape(name)}-(\d{{4}}-\d{{2}}-\d{{2}})(\.[\w-]+\.\d+)?\.log", re.ASCII)
    deleted: list[str] = []
    problem: OSError | None = None
    try:
        with open_folder(directory) as folder, os.scandir(directory if folder is None else folder) as entries:
            for entry in entries:
                match = pattern.fullmatch(entry.name)
                if not match or not _before(match[1], oldest_kept) or not entry.is_file(follow_symlinks=False):
                    continue
                try:
                    os.unlink(entry.path, dir_fd=folder)
                    deleted.append(entry.name)
                except FileNotFoundError:
                    continue
                except OSError as error:  # somebody else's in a shared directory: the others go all the same
                    problem = error
    except FileNotFoundError:
        pass
    except OSError as error:
        problem = error
    if problem is not None:
        complain(f"old files in {directory} not deleted: {problem}")
    return sorted(deleted)


def _before(text: str, day: date) -> bool:
    try:
        return date.fromisoformat(text) < day
    except ValueError:
        return False  # 2026-02-31 is nobody's log


def _day_around(moment: float, utc: bool) -> tuple[float, float, str]:
    if utc:
        first = moment // _DAY * _DAY
        return first, first + _DAY, datetime.fromtimestamp(first, UTC).date().isoformat()
    day = datetime.fromtimestamp(moment).date()
    first = datetime(day.year, day.month, day.day).timestamp()
    after = day + timedelta(days=1)
    return first, datetime(after.year, after.month, after.day).timestamp(), day.isoformat()


class _Torn(NamedTuple):
    """A line of which a full disk took only a part."""

    inode: int
    size: int  # of the file, right behind our part
    line: bytes
    done: int  # bytes of it that are written


class _DayFile:
    """One open file, or none yet; knows when it was removed, moved or left with half a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        self._doubtful = True  # the file may end in half a line: at the first write, and after an error
        self._torn: _Torn | None = None

    def append(self, run: list[Bucket]) -> None:
        """Write all lines and remove them from their buckets; after an error, those that are written whole."""
        self._reopen_if_moved()
        start = self._mend() if self._doubtful else b""
        lines = [line for bucket in run for line in bucket.render()]
        if self._torn is not None and self._write_rest(self._torn) == lines[0]:
            del lines[0]
            _remove_first(run, 1)
        data = start + b"".join(lines)
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, memoryview(data)[done:] if done else data)
        except BaseException:
            _remove_first(run, self._whole_lines(lines, done - len(start)))
            raise
        _remove_first(run, len(lines))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _reopen_if_moved(self) -> None:
        """Someone may have removed the file or moved it away (logrotate): go on in a new one of the right name."""
        if self._fd >= 0:
            try:
                there = os.stat(self.path, follow_symlinks=False)
                here = os.fstat(self._fd)
                if (there.st_ino, there.st_dev) == (here.st_ino, here.st_dev):
                    return
            except FileNotFoundError:
                pass
            self.close()
        self._fd = open_file(self.path)
        self._doubtful = True

    def _mend(self) -> bytes:
        """A newline if the file ends in half a line that is not ours to complete."""
        size = _settled_size(self._fd)
        torn = self._torn
        if torn is not None and (os.fstat(self._fd).st_ino, size) != (torn.inode, torn.size):
            self._torn = torn = None  # someone wrote behind our half line: it is written anew, whole
        self._doubtful = False
        if torn is not None or size == 0:
            return b""
        return b"" if _last_byte(self._fd, size) == b"\n" else b"\n"

    def _write_rest(self, torn: _Torn) -> bytes:
        """Complete our half line; returns the whole of it."""
        done = torn.done
        try:
            while done < len(torn.line):
                done += os.write(self._fd, torn.line[done:])
        except BaseException:
            self._doubtful = True
            self._torn = _Torn(torn.inode, torn.size + done - torn.done, torn.line, done)
            raise
        self._torn = None
        return torn.line

    def _whole_lines(self, lines: list[bytes], done: int) -> int:
        """After an error: how many lines are written whole; notes the one that is not."""
        self._doubtful = True
        for position, line in enumerate(lines):
            if done < len(line):
                if done > 0:
                    state = os.fstat(self._fd)
                    self._torn = _Torn(state.st_ino, state.st_size, line, done)
                return position
            done -= len(line)
        return len(lines)


def _remove_first(run: list[Bucket], count: int) -> None:
    for bucket in run:
        here = min(count, len(bucket.lines))
        bucket.remove_first(here)
        count -= here


def _settled_size(fd: int) -> int:
    """The file's size, once no other process is in the middle of a write: one may wait for a processor for a while."""
    size, still = os.fstat(fd).st_size, 0
    while still < SETTLED and size > 0 and _last_byte(fd, size) != b"\n":
        time.sleep(0.001)
        before, size = size, os.fstat(fd).st_size
        still = still + 1 if size == before else 0
    return size


def _last_byte(fd: int, size: int) -> bytes:
    os.lseek(fd, size - 1, os.SEEK_SET)  # harmless: what is opened for appending is written at its end all the same
    return os.read(fd, 1)


def on_local_disk(directory: Path) -> bool:
    """Whether appends of several processes to one file here are known to be indivisible."""
    if sys.platform == "win32":
        return False
    if not sys.platform.startswith("linux"):
        return True
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            return _disk_of(directory, mounts.read().splitlines()) in _LOCAL_DISKS
    except OSError:
        return True  # no /proc: a container that hides it, on the same kinds of disk


def _disk_of(directory: Path, mounts: list[str]) -> str:
    """The file system's type under a path, by the longest mount point that leads to it (proc(5), mountinfo)."""
    real = os.path.realpath(directory)
    best, found = "", ""
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), before.split(" ")[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, found = point, after.split(" ")[0]
    return found


def _host() -> str:
    return re.sub(r"[^\w-]", "_", socket.gethostname(), flags=re.ASCII)[:64] or "host"
