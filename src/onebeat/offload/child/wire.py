"""The wire format between a process and its child: pickled frames over two pipes; large buffers are never copied.

Pickle is used here and nowhere else: between two processes of one user, over unnamed pipes, and never for storage.
A frame is one byte of kind, eight bytes of length, and a pickle. Pickle hands on large bytes, arrays and buffers
(above 64 KiB) by reference. They go from their own memory into the pipe, and from the pipe into their final place.
The interpreter lock is released meanwhile, so that a hundred megabytes do not block the event loop.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import threading
from collections.abc import Callable
from typing import Any

HELLO, MAIN, CALL, LOG, VALUE, ERROR, READY, PLAIN = range(8)
"""The kinds of frames. To the child: the parent's state, its main program, a call. From the child: a log record, a
value, an exception, its readiness, and a value for which `is_plain` is true."""

HEADER = struct.Struct("!BQ")
SMALL = 64 * 1024  # bytes; a frame up to this size is read and written in one piece
PLAIN_TEXT = 1024  # characters or bytes of a plain text, at most
PLAIN_PARTS = 128  # parts of a plain value at most, including the parts of its lists and dictionaries


class ChannelClosed(Exception):
    """The process at the other end has ended or closed its pipe."""


class UnreadableFrame(Exception):
    """A whole frame arrived, but its pickle could not be rebuilt; the cause says why. The channel stays usable."""

    def __init__(self, kind: int) -> None:
        self.kind = kind


def is_plain(value: Any) -> bool:
    """Return whether the value is pickled and rebuilt within microseconds and without calling user code.

    That holds for numbers, short texts and None, and for lists, tuples and dictionaries with few such values.

    >>> is_plain("name"), is_plain({"sizes": [1, 2]}), is_plain(2**100), is_plain([None] * 200)
    (True, True, False, False)
    """
    parts = [value]
    for part in parts:  # the loop appends to the list
        kind = type(part)
        if kind is int:
            if not -(1 << 63) <= part < 1 << 63:
                return False
        elif kind is str or kind is bytes:
            if len(part) > PLAIN_TEXT:
                return False
        elif kind is list or kind is tuple or kind is dict:
            if len(parts) + len(part) > PLAIN_PARTS:
                return False
            parts += part if kind is not dict else (*part, *part.values())
        elif part is not None and kind is not float and kind is not bool:
            return False
    return True


class Frame:
    """A pickled object that is ready to send; it keeps the memory of its large buffers alive."""

    def __init__(self, kind: int, value: Any, *, plain: bool = False) -> None:
        self.parts: list[Any] = []
        if plain:  # small and without large buffers, so one piece
            body = pickle.dumps(value, 5)
            self.parts.append(HEADER.pack(kind, len(body)) + body)
            return
        self._pickler = pickle.Pickler(_PartCollector(self.parts.append), 5)
        self._pickler.dump(value)  # the pickler is kept: its memo owns the strings that the parts refer to
        if len(self.parts) == 1:
            size = len(self.parts[0])
        else:
            self.parts = [memoryview(part).cast("B") for part in self.parts]
            size = sum(map(len, self.parts))
        header = HEADER.pack(kind, size)
        if size <= SMALL:
            self.parts = [header + self.parts[0] if len(self.parts) == 1 else header + b"".join(self.parts)]
        else:
            self.parts.insert(0, header)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def mentions(self, name: bytes) -> bool:
        """Return whether one of the small parts contains this text."""
        return any(name in bytes(part) for part in self.parts if len(part) <= SMALL + HEADER.size)


class Channel:
    """One end of the two pipes; sending and receiving block until the other end has done its part or is closed."""

    def __init__(self, reader: int, writer: int) -> None:
        self.reader, self._writer = reader, writer
        self._buffer = memoryview(bytearray(SMALL + HEADER.size))
        self._start = self._end = 0
        self._send_lock = threading.Lock()  # threads of a child log while its main thread sends the answer

    def send(self, frame: Frame) -> None:
        """Send one whole frame; raise `ChannelClosed` when the other end is closed."""
        with self._send_lock:
            try:
                for part in frame.parts:
                    sent = os.write(self._writer, part)
                    while sent < len(part):
                        sent += os.write(self._writer, memoryview(part)[sent:])
            except BrokenPipeError:
                raise ChannelClosed from None

    def send_without_waiting(self, frame: Frame) -> None:
        """Send a frame of at most `select.PIPE_BUF` bytes into an empty pipe, which never blocks."""
        try:
            os.writev(self._writer, frame.parts)
        except BrokenPipeError:
            raise ChannelClosed from None

    def receive(self) -> tuple[int, Any]:
        """Return the next frame's kind and value.

        Raises `ChannelClosed` at the end of the pipe, and `UnreadableFrame` for a pickle that cannot be rebuilt.
        """
        self._fill(HEADER.size)
        kind, size = HEADER.unpack_from(self._buffer, self._start)
        self._start += HEADER.size
        if size <= SMALL:
            self._fill(size)
            body = self._buffer[self._start : self._start + size]
            self._start += size
            try:
                return kind, pickle.loads(body)  # noqa: S301 - from our own child or parent, over an unnamed pipe
            except Exception as error:
                raise UnreadableFrame(kind) from error
        stream = _FrameBody(self, size)
        try:
            return kind, pickle.Unpickler(stream).load()  # noqa: S301 - as above
        except ChannelClosed:
            raise
        except Exception as error:
            stream.skip()
            raise UnreadableFrame(kind) from error

    def has_received(self, kind: int) -> bool:
        """Read once from a readable pipe, and return whether a whole small frame of this kind has arrived."""
        self._move_to_front()
        self._end += os.readv(self.reader, [self._buffer[self._end :]])  # 0 bytes at the end, which `receive` reports
        if self._end < HEADER.size:
            return False
        found, size = HEADER.unpack_from(self._buffer)
        return bool(found == kind and self._end >= HEADER.size + size)

    def _move_to_front(self) -> None:
        """Move the unread bytes to the front of the buffer."""
        if self._start:
            count = self._end - self._start
            self._buffer[:count] = self._buffer[self._start : self._end]
            self._start, self._end = 0, count

    def _fill(self, size: int) -> None:
        """Read until at least `size` (at most `SMALL`) bytes are in the buffer."""
        if self._end - self._start >= size:
            return
        self._move_to_front()
        while self._end < size:
            self._end += self._read(self._buffer[self._end :])

    def _read(self, into: memoryview) -> int:
        count = os.readv(self.reader, [into])
        if count == 0:
            raise ChannelClosed
        return count

    def read_into(self, into: memoryview) -> None:
        """Fill `into`, first from the buffer and then directly from the pipe."""
        count = min(len(into), self._end - self._start)
        into[:count] = self._buffer[self._start : self._start + count]
        self._start += count
        while count < len(into):
            count += self._read(into[count:])


class _PartCollector:
    """The file that a pickler writes to: it collects small pickled parts, and large buffers without copying them."""

    __slots__ = ("write",)

    def __init__(self, write: Callable[[Any], None]) -> None:
        self.write = write


class _FrameBody(io.RawIOBase):
    """The rest of one frame as a file for an unpickler, which cannot read beyond the frame."""

    def __init__(self, channel: Channel, size: int) -> None:
        self._channel, self._left = channel, size

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        view = memoryview(into).cast("B")
        view = view[: self._left]
        self._left -= len(view)
        self._channel.read_into(view)
        return len(view)

    def skip(self) -> None:
        """Read the rest of the frame, so that the next read starts at the next frame."""
        waste = memoryview(bytearray(SMALL))
        while self._left:
            self.readinto(waste)
