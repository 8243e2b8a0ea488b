"""The console output: JSON or text, in whole lines even when several workers share one pipe."""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
from collections import deque
from collections.abc import Callable

from onebeat.logs.queue import Bucket
from onebeat.logs.writer import SinkGone

Render = Callable[[bytes], str]


class Console:
    """A sink on standard error or standard output; `render` makes text of a line, else the JSON goes out as it is.

    A pipe takes up to 4 KiB in one indivisible step; batches are larger. So while it writes, a process holds a lock on
    the pipe itself (`lockf`), which every worker that inherited it can see.
    """

    def __init__(self, stream: str, *, render: Render | None = None) -> None:
        self.name = "console"
        self._stream = stream
        self._render = render
        self._torn: tuple[bytes, int] | None = None  # a line that an error cut, and how many bytes of it are written

    def write(self, batch: deque[Bucket]) -> None:
        lines = [line for bucket in batch for line in bucket.render()]
        if self._render is not None:
            lines = [self._render(line).encode("utf-8", "backslashreplace") for line in lines]
        fd = descriptor(self._stream)
        if fd is None:
            self._write_stream(lines)
        else:
            self._write_whole(fd, batch, lines)
        batch.clear()

    def _write_whole(self, fd: int, batch: deque[Bucket], lines: list[bytes]) -> None:
        """All lines; after an error the batch keeps those that are not written whole, to be gone on with."""
        done = [0]
        if self._torn is not None and lines:
            line, part = self._torn
            if lines[0] == line:
                done = [part]
            else:  # it was given up meanwhile
                _write_whole(fd, memoryview(b"\n"), [0])
                self._torn = None
        try:
            _write_whole(fd, memoryview(b"".join(lines)), done)
            self._torn = None
        except OSError:
            written, part = _whole(lines, done[0])
            self._torn = (lines[written], part) if part else None
            _remove_first(batch, written)
            raise

    def close(self) -> None:
        """Nothing to give back: the descriptor belongs to the process. What is torn is the parent's after a fork."""
        self._torn = None

    def _write_stream(self, lines: list[bytes]) -> None:
        """A console without a descriptor: a notebook, an embedding."""
        stream = getattr(sys, self._stream)
        if stream is None:
            raise SinkGone
        stream.write(b"".join(lines).decode("utf-8", "replace"))
        stream.flush()


def descriptor(stream: str) -> int | None:
    """The file descriptor behind `sys.stderr` or `sys.stdout`, or None where there is none."""
    try:
        return int(getattr(sys, stream).fileno())
    except (AttributeError, OSError, ValueError):
        return None


def is_terminal(stream: str) -> bool:
    """Whether a person is looking."""
    fd = descriptor(stream)
    return fd is not None and os.isatty(fd)


def _whole(lines: list[bytes], done: int) -> tuple[int, int]:
    """How many lines are written whole when `done` bytes are, and how many bytes of the next one."""
    for position, line in enumerate(lines):
        if done < len(line):
            return position, done
        done -= len(line)
    return len(lines), 0


def _remove_first(batch: deque[Bucket], count: int) -> None:
    while batch and count >= len(batch[0].lines):
        count -= len(batch.popleft().lines)
    if count:
        batch[0].remove_first(count)


def _write_whole(fd: int, data: memoryview, done: list[int]) -> None:
    """Write from `done[0]` on, which counts what is written, also when an error comes."""
    locked = False
    try:
        locked = _lock(fd)
        while done[0] < len(data):
            try:
                done[0] += os.write(fd, data[done[0] :])
            except BlockingIOError:  # someone made the shared descriptor non-blocking
                select.select([], [fd], [], 1.0)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise SinkGone from error
    except OSError as error:
        if error.errno in (errno.EIO, errno.EBADF):  # the terminal hung up; the descriptor was closed
            raise SinkGone from error
        raise
    finally:
        if locked:
            _unlock(fd)


if sys.platform == "win32":

    def _lock(fd: int) -> bool:
        return False

    def _unlock(fd: int) -> None:
        return
else:
    import fcntl

    def _lock(fd: int) -> bool:
        """Wait until no other process writes to this pipe or socket."""
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            return False
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX)
        except OSError:  # no locks on this kind of descriptor: lines up to 4 KiB are whole all the same
            return False
        return True

    def _unlock(fd: int) -> None:
        try:
            fcntl.lockf(fd, fcntl.LOCK_UN)
        except OSError:
            return  # the descriptor was closed meanwhile, and the lock with it
