"""A slot: one thread, two pipes, one child; it sends a call and waits for whatever comes first: value, end, time."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from onebeat.errors import RemoteError, Stopped, WorkerProcessDied
from onebeat.offload.child import messages, remote_error, wire
from onebeat.offload.child.exit_status import End
from onebeat.offload.child.launch import Child, Launcher
from onebeat.offload.child.wire import Channel, Closed, Packed, Unreadable
from onebeat.offload.pool.calls import Call, log, name_of
from onebeat.tracking import carrying
from onebeat.tracking.context import tracking_id

STARTING = 60.0  # seconds a child may take from its start to its first word


class Slot:
    """Runs one call at a time in its child. Everything here happens on the slot's thread, except `end`."""

    def __init__(self, launcher: Launcher, recycle: int | None) -> None:
        self._launcher, self._recycle = launcher, recycle
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._channel: Channel | None = None
        self._call: Call | None = None
        self._ending: threading.Thread | None = None
        self._main_sent = self._replace = self._asked = False
        self._calls = 0

    def begin(self, call: Call) -> int | None:
        """Send a small call to an idle child, on the caller's thread; the descriptor on which its answer comes.

        None: it needs what only the slot's own thread does. The pipe to an idle child is empty, so this never waits.
        """
        channel = self._channel
        if channel is None or self._replace or (self._recycle is not None and self._calls + 1 >= self._recycle):
            return None
        packed = messages.small(call, main_known=self._main_sent)
        if packed is None:
            return None
        call.started, call.slot, self._asked = time.monotonic(), self, True
        with self._lock:
            self._call = call
        try:
            channel.send_now(packed)
        except Closed:  # it died between calls; the thread replaces it
            self._asked = False
            with self._lock:
                self._call = None
            return None
        return channel.reader

    def answer_now(self, call: Call) -> tuple[Any] | None:
        """The plain answer to a call that has begun, once something came; None: the thread must see to it."""
        channel = self._channel
        if channel is None or not channel.arrived(wire.PLAIN):
            return None
        with self._lock:
            if self._ending is not None:
                return None
            self._call = call.slot = None
        _, value = channel.receive()
        self._asked = False
        self._calls += 1
        return (value,)

    def run(self, call: Call) -> Any:
        """What the function returns, from the child. Runs in the caller's context."""
        begun = self._call is call
        packed = None if begun else messages.pack(call)
        with self._lock:
            self._call = call
        call.slot = self
        try:
            if packed is not None:
                self._send(packed, call)
            return self._answer(call)
        except Closed:
            raise self._died(call) from None
        finally:
            call.slot = None
            self._finish()

    def end(self, call: Call) -> None:
        """End the child if it still runs this call; from any thread, at once."""
        with self._lock:
            if self._call is call and self._ending is None and (child := self._child) is not None:
                self._ending = threading.Thread(target=child.end, name="onebeat-ending", daemon=True)
                self._ending.start()

    def warm(self) -> None:
        """Have a child that is ready for a call. What prevents it is said in the log: nobody waits for it."""
        try:
            self._ready()
        except Exception:  # noqa: BLE001 - whatever it is, this thread must go on and try again
            log.warning("a child process could not be started; the next call tries again", exc_info=True)
            self._end()

    def tidy(self) -> None:
        """Between calls: replace a child that was ended or has run its number of calls."""
        if self._replace or self._worn:
            self.warm()

    def close(self) -> None:
        """Let the child end, and end it if it does not."""
        self._dismiss()

    @property
    def _worn(self) -> bool:
        return self._recycle is not None and self._calls >= self._recycle

    def _ready(self) -> Channel:
        """The channel to a child that is ready for a call."""
        if self._worn:
            self._dismiss()
        return self._channel or self._start()

    def _send(self, packed: Packed, call: Call) -> None:
        """Send the call; a child that died between calls is replaced, for the call has not begun there."""
        for again in (True, False):
            channel = self._ready()
            if call.limit.reason is not None:  # told while there was no child to end
                raise Stopped(call.limit.reason)
            try:
                if not self._main_sent and packed.mentions(b"__main__"):
                    channel.send(Packed(wire.HELLO, messages.main_program()))
                    self._main_sent = True
                self._asked = True
                channel.send(packed)
                return
            except Closed:
                if not again or self._ending is not None:
                    raise
                log.warning("a child process ended between calls: %s", self._ended())
                self._bury()

    def _answer(self, call: Call) -> Any:
        """The value that the child sends, or the exception; its log records come before."""
        assert self._channel is not None, "a call was sent on it"
        try:
            kind, value = _next(self._channel)
        except Unreadable as unreadable:
            self._asked = False
            words = f"what {name_of(call.function)} returned cannot be rebuilt here: {unreadable.__cause__}"
            raise RemoteError(words) from unreadable.__cause__
        self._asked = False
        if kind == wire.ERROR:
            raise remote_error.unpack(value)
        return value

    def _finish(self) -> None:
        """No longer to be ended for this call; if that has begun, see it through.

        A child that still owes an answer would give it to the next call: it is ended too.
        """
        with self._lock:
            self._call, ending, self._ending = None, self._ending, None
        self._calls += 1
        if ending is not None:
            ending.join()
            self._bury()
        elif self._asked:
            self._end()

    def _start(self) -> Channel:
        """A new child that has said it is ready; `Closed` when it ended before, or says nothing for a minute."""
        child = self._launcher.start()
        with self._lock:
            self._child = child
        channel = Channel(child.pipes.reader, child.pipes.writer)
        self._main_sent = self._replace = self._asked = False
        self._calls = 0
        try:
            channel.send(Packed(wire.HELLO, messages.hello(watch=child.alone)))
            if not child.says_something(STARTING):
                child.end(0)
            _next(channel)  # its READY
        except Closed:
            raise  # how it ended is yet to be told
        except BaseException:
            self._end()
            raise
        self._channel = channel
        return channel

    def _died(self, call: Call) -> Exception:
        """The child is gone in the midst of a call: because it was told to, or by itself. End what it left behind."""
        with self._lock:
            asked, pid = self._ending is not None, self._child.pid if self._child is not None else 0
        if asked:
            return Stopped(call.limit.reason or "told to end")
        end = self._ended()
        after = time.monotonic() - call.started
        self._end()
        words = f"the process of {name_of(call.function)} ended by {end} after {after:.2f} s"
        if (tracking := tracking_id()) is not None:
            words += f"; tracking id {tracking}"
        error = WorkerProcessDied(f"{words} (process {pid})", exit_code=end.exit_code, signal=end.signal)
        log.warning("%s", error)
        return error

    def _ended(self) -> End:
        return (self._child.ended(2) if self._child is not None else None) or End()

    def _dismiss(self) -> None:
        """Let an idle child end by itself, so that what it registered for its exit runs; else end it."""
        if self._child is not None:
            self._child.hang_up()
            self._child.ended(1)
        self._end()

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
        self._bury()

    def _bury(self) -> None:
        """Forget a child; the next one starts without waiting for a call."""
        with self._lock:
            child, self._child, self._channel = self._child, None, None
        if child is not None:
            child.close()
        self._replace, self._asked = True, False


def _next(channel: Channel) -> tuple[int, Any]:
    """The next frame that is no log record. Those go to this process's logging, and none of them harms a call."""
    while True:
        try:
            kind, value = channel.receive()
        except Unreadable as unreadable:
            if unreadable.kind != wire.LOG:
                raise
            log.warning("a log record of a child process is lost", exc_info=True)
            continue
        if kind != wire.LOG:
            return kind, value
        try:
            _record(*value)
        except Exception:  # noqa: BLE001 - whatever a handler raises, it is not the call's
            log.warning("a log record of a child process is lost", exc_info=True)


def _record(fields: dict[str, Any], carried: str | None) -> None:
    """Hand a child's log record to this process's logging: in the caller's context, or in the one it was made in."""
    logger = logging.getLogger(fields.get("name"))
    if logger.isEnabledFor(fields.get("levelno", logging.INFO)):
        with carrying.unpacked(carried):
            logger.handle(logging.makeLogRecord(fields))
