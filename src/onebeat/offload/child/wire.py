"""Frames between a process and its own child over two pipes: pickled, large buffers by reference, never copied.

Pickle is used here and nowhere else, between two processes of one user over pipes without a name; nothing of it is ever
stored. A frame is one byte of kind, eight of length, and a pickle. What pickle can hand on by reference (bytes,
arrays, buffers above 64 KiB) goes from its own memory into the pipe and from the pipe into its final place, with
the interpreter lock released meanwhile: a hundred megabytes do not hold up the event loop.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import threading
from collections.abc import Callable
from typing import Any

HELLO, CALL, LOG, VALUE, ERROR, READY, PLAIN = range(7)  # PLAIN: a value that is `plain`

HEAD = struct.Struct("!BQ")
SMALL = 64 * 1024  # bytes; a frame up to this size is read and written in one piece
SHORT = 1024  # characters or bytes of a text that is plain
FEW = 128  # parts of a value that is plain, its lists' and dictionaries' included


class Closed(Exception):
    """The other side is gone."""


class Unreadable(Exception):
    """A frame arrived whole, but its pickle could not be rebuilt; the cause says why, and the channel is in step."""

    def __init__(self, kind: int) -> None:
        self.kind = kind


def plain(value: Any) -> bool:
    """Whether it is pickled and rebuilt in next to no time, running nobody's code.

    Numbers, short texts and None, and lists, tuples and dictionaries of a few of these.

    >>> plain("name"), plain({"sizes": [1, 2]}), plain(2**100), plain([None] * 200)
    (True, True, False, False)
    """
    held = [value]
    for one in held:  # which grows meanwhile
        kind = type(one)
        if kind is int:
            if not -(1 << 63) <= one < 1 << 63:
                return False
        elif kind is str or kind is bytes:
            if len(one) > SHORT:
                return False
        elif kind is list or kind is tuple or kind is dict:
            if len(held) + len(one) > FEW:
                return False
            held += one if kind is not dict else (*one, *one.values())
        elif one is not None and kind is not float and kind is not bool:
            return False
    return True


class Packed:
    """An object made ready for sending; holds what it refers to until it is sent."""

    def __init__(self, kind: int, value: Any, *, small: bool = False) -> None:
        self.parts: list[Any] = []
        if small:  # and without large buffers: in one piece
            body = pickle.dumps(value, 5)
            self.parts.append(HEAD.pack(kind, len(body)) + body)
            return
        self._pickler = pickle.Pickler(_Sink(self.parts.append), 5)
        self._pickler.dump(value)  # kept: the pickler's memo owns the strings whose memory the parts show
        if len(self.parts) == 1:
            size = len(self.parts[0])
        else:
            self.parts = [memoryview(part).cast("B") for part in self.parts]
            size = sum(map(len, self.parts))
        head = HEAD.pack(kind, size)
        if size <= SMALL:
            self.parts = [head + self.parts[0] if len(self.parts) == 1 else head + b"".join(self.parts)]
        else:
            self.parts.insert(0, head)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def mentions(self, name: bytes) -> bool:
        """Whether one of the small parts holds this text."""
        return any(name in bytes(part) for part in self.parts if len(part) <= SMALL + HEAD.size)


class Channel:
    """One end of the two pipes; it blocks until the other side has done its part or is gone."""

    def __init__(self, reader: int, writer: int) -> None:
        self.reader, self._writer = reader, writer
        self._buffer = memoryview(bytearray(SMALL + HEAD.size))
        self._start = self._end = 0
        self._sending = threading.Lock()  # a child's threads log while its main thread answers

    def send(self, packed: Packed) -> None:
        """Send one frame whole; `Closed` when the other side is gone."""
        with self._sending:
            try:
                for part in packed.parts:
                    sent = os.write(self._writer, part)
                    while sent < len(part):
                        sent += os.write(self._writer, memoryview(part)[sent:])
            except BrokenPipeError:
                raise Closed from None

    def send_now(self, packed: Packed) -> None:
        """`send` for a frame of at most `select.PIPE_BUF` and an empty pipe: it never waits."""
        try:
            os.writev(self._writer, packed.parts)
        except BrokenPipeError:
            raise Closed from None

    def receive(self) -> tuple[int, Any]:
        """The next frame's kind and value; `Closed` at the end, `Unreadable` for a pickle that does not rebuild."""
        self._fill(HEAD.size)
        kind, size = HEAD.unpack_from(self._buffer, self._start)
        self._start += HEAD.size
        if size <= SMALL:
            self._fill(size)
            body = self._buffer[self._start : self._start + size]
            self._start += size
            try:
                return kind, pickle.loads(body)  # noqa: S301 - from our own child or parent, over an unnamed socket
            except Exception as error:
                raise Unreadable(kind) from error
        stream = _Body(self, size)
        try:
            return kind, pickle.Unpickler(stream).load()  # noqa: S301 - as above
        except Closed:
            raise
        except Exception as error:
            stream.skip()
            raise Unreadable(kind) from error

    def arrived(self, kind: int) -> bool:
        """Whether a whole small frame of this kind is there, after one read of a pipe that is known to be readable."""
        self._shift()
        self._end += os.readv(self.reader, [self._buffer[self._end :]])  # nothing at its end, which `receive` tells
        if self._end < HEAD.size:
            return False
        found, size = HEAD.unpack_from(self._buffer)
        return bool(found == kind and self._end >= HEAD.size + size)

    def _shift(self) -> None:
        """What is in the buffer begins at its front."""
        if self._start:
            have = self._end - self._start
            self._buffer[:have] = self._buffer[self._start : self._end]
            self._start, self._end = 0, have

    def _fill(self, size: int) -> None:
        """Have at least `size` (at most `SMALL`) bytes in the buffer."""
        if self._end - self._start >= size:
            return
        self._shift()
        while self._end < size:
            self._end += self._read(self._buffer[self._end :])

    def _read(self, into: memoryview) -> int:
        count = os.readv(self.reader, [into])
        if count == 0:
            raise Closed
        return count

    def take(self, into: memoryview) -> None:
        """Fill `into` from the buffer first, then straight from the pipe."""
        have = min(len(into), self._end - self._start)
        into[:have] = self._buffer[self._start : self._start + have]
        self._start += have
        while have < len(into):
            have += self._read(into[have:])


class _Sink:
    """Collects what the pickler writes: its own small frames, and large buffers as they are."""

    __slots__ = ("write",)

    def __init__(self, write: Callable[[Any], None]) -> None:
        self.write = write


class _Body(io.RawIOBase):
    """The rest of one frame, as the file an unpickler reads; it cannot read beyond."""

    def __init__(self, channel: Channel, size: int) -> None:
        self._channel, self._left = channel, size

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        view = memoryview(into).cast("B")
        view = view[: self._left]
        self._left -= len(view)
        self._channel.take(view)
        return len(view)

    def skip(self) -> None:
        """Read what is left, so that the next frame begins where it should."""
        waste = memoryview(bytearray(SMALL))
        while self._left:
            self.readinto(waste)
