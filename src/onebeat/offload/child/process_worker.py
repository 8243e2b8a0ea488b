"""The process worker: it owns one child process, sends it calls, and waits for the value, an exit or a stop."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from onebeat.errors import RemoteError, Stopped, WorkerProcessDied
from onebeat.offload.child import messages, remote_error, wire
from onebeat.offload.child.exit_status import ExitStatus
from onebeat.offload.child.launch import ChildProcess, Launcher
from onebeat.offload.child.wire import Channel, ChannelClosed, Frame, UnreadableFrame
from onebeat.offload.pool.calls import BlockingCall, log, name_of
from onebeat.tracking import carrying
from onebeat.tracking.context import tracking_id

START_TIMEOUT = 60.0  # seconds from a child's start until it reports that it is ready


class ProcessWorker:
    """Run one call at a time in a child process.

    All methods run on the pool thread that owns this worker, except `terminate` and the two of the fast path.
    """

    def __init__(self, launcher: Launcher, recycle: int | None, initializer: bytes | None = None) -> None:
        self._launcher, self._recycle, self._initializer = launcher, recycle, initializer
        self._lock = threading.Lock()
        self._child: ChildProcess | None = None
        self._channel: Channel | None = None
        self._call: BlockingCall | None = None
        self._terminating: threading.Thread | None = None
        self._main_sent = self._must_replace = self._answer_pending = False
        self._calls = 0

    def send_small(self, call: BlockingCall) -> int | None:
        """Send a small call to the idle child, and return the descriptor on which its answer arrives.

        Return None when only the pool thread can send it. The pipe to an idle child is empty, so this never waits.
        """
        channel = self._channel
        if channel is None or self._must_replace or (self._recycle is not None and self._calls + 1 >= self._recycle):
            return None
        frame = messages.small_call_frame(call, main_known=self._main_sent)
        if frame is None:
            return None
        call.started, call.terminator, self._answer_pending = time.monotonic(), self, True
        with self._lock:
            self._call = call
        try:
            channel.send_without_waiting(frame)
        except ChannelClosed:  # the child died between calls, and the pool thread replaces it
            self._answer_pending = False
            with self._lock:
                self._call = None
            return None
        return channel.reader

    def receive_plain(self, call: BlockingCall) -> tuple[Any] | None:
        """Return the plain answer to a small call once the pipe is readable; None when the pool thread must read it."""
        channel = self._channel
        if channel is None or not channel.has_received(wire.PLAIN):
            return None
        with self._lock:
            if self._terminating is not None:
                return None
            self._call = call.terminator = None
        _, value = channel.receive()
        self._answer_pending = False
        self._calls += 1
        return (value,)

    def run(self, call: BlockingCall) -> Any:
        """Run the call in the child and return its value; the current context is the caller's."""
        is_sent = self._call is call
        frame = None if is_sent else messages.call_frame(call)
        with self._lock:
            self._call = call
        call.terminator = self
        try:
            if frame is not None:
                self._send(frame, call)
            return self._receive_answer(call)
        except ChannelClosed:
            raise self._death_of_child(call) from None
        finally:
            call.terminator = None
            self._finish()

    def terminate(self, call: BlockingCall) -> None:
        """Begin to end the child if it still runs this call; may be called from any thread and returns at once."""
        with self._lock:
            if self._call is call and self._terminating is None and (child := self._child) is not None:
                self._terminating = threading.Thread(target=child.terminate, name="onebeat-terminate", daemon=True)
                self._terminating.start()

    def start_child(self) -> None:
        """Start the child if there is none. A failure is only logged, because no call waits for it."""
        try:
            self._ready_channel()
        except Exception:  # noqa: BLE001 - whatever it is, this thread must continue and try again
            log.warning("a child process could not be started; the next call tries again", exc_info=True)
            self._terminate_child()

    def replace_if_needed(self) -> None:
        """Replace a child that was ended or has run its number of calls."""
        if self._must_replace or self._is_used_up:
            self.start_child()

    def close(self) -> None:
        """Let the idle child exit by itself, so that its atexit functions run; then terminate it."""
        if self._child is not None:
            self._child.close_input()
            self._child.wait(1)
        self._terminate_child()

    @property
    def _is_used_up(self) -> bool:
        return self._recycle is not None and self._calls >= self._recycle

    def _ready_channel(self) -> Channel:
        """Return the channel to a child that is ready for a call."""
        if self._is_used_up:
            self.close()
        return self._channel or self._start()

    def _send(self, frame: Frame, call: BlockingCall) -> None:
        """Send the call; a child that died between calls is replaced, because the call has not begun there."""
        for may_retry in (True, False):
            channel = self._ready_channel()
            if call.limit.reason is not None:  # stopped while there was no child to terminate
                raise Stopped(call.limit.reason)
            try:
                if not self._main_sent and frame.mentions(b"__main__"):
                    channel.send(Frame(wire.MAIN, messages.main_program()))
                    self._main_sent = True
                self._answer_pending = True
                channel.send(frame)
                return
            except ChannelClosed:
                if not may_retry or self._terminating is not None:
                    raise
                log.warning("a child process ended between calls: %s", self._exit_status())
                self._discard_child()

    def _receive_answer(self, call: BlockingCall) -> Any:
        """Return the value that the child sends or raise its exception; log records may arrive before."""
        assert self._channel is not None, "a call was sent on it"
        try:
            kind, value = _receive(self._channel)
        except UnreadableFrame as unreadable:
            self._answer_pending = False
            message = f"the value that {name_of(call.function)} returned cannot be rebuilt here: {unreadable.__cause__}"
            raise RemoteError(message) from unreadable.__cause__
        self._answer_pending = False
        if kind == wire.ERROR:
            raise remote_error.unpack(value)
        return value

    def _finish(self) -> None:
        """Detach the call, and wait for a termination that has begun for it.

        A child that has not sent its answer is terminated too; otherwise the next call would receive that answer.
        """
        with self._lock:
            self._call, terminating, self._terminating = None, self._terminating, None
        self._calls += 1
        if terminating is not None:
            terminating.join()
            self._discard_child()
        elif self._answer_pending:
            self._terminate_child()

    def _start(self) -> Channel:
        """Start a child and wait until it is ready; `ChannelClosed` when it ends first or is silent for a minute."""
        child = self._launcher.start()
        with self._lock:
            self._child = child
        channel = Channel(child.pipes.reader, child.pipes.writer)
        self._main_sent = self._must_replace = self._answer_pending = False
        self._calls = 0
        try:
            state = messages.parent_state(child.must_watch_parent, self._initializer)
            channel.send(Frame(wire.HELLO, state))
            self._main_sent = state["main"] is not None
            if not child.wait_readable(START_TIMEOUT):
                child.terminate(0)
            _receive(channel)  # READY
        except ChannelClosed:
            raise  # the caller reports the exit status
        except BaseException:
            self._terminate_child()
            raise
        self._channel = channel
        return channel

    def _death_of_child(self, call: BlockingCall) -> Exception:
        """Return the error for a child that ended during a call; terminate the processes that it left."""
        with self._lock:
            was_terminated, pid = self._terminating is not None, self._child.pid if self._child is not None else 0
        if was_terminated:
            return Stopped(call.limit.reason or "told to end")
        status = self._exit_status()
        duration = time.monotonic() - call.started
        self._terminate_child()
        message = f"the process of {name_of(call.function)} ended by {status} after {duration:.2f} s"
        if (tracking := tracking_id()) is not None:
            message += f"; tracking id {tracking}"
        error = WorkerProcessDied(f"{message} (process {pid})", exit_code=status.exit_code, signal=status.signal)
        log.warning("%s", error)
        return error

    def _exit_status(self) -> ExitStatus:
        return (self._child.wait(2) if self._child is not None else None) or ExitStatus()

    def _terminate_child(self) -> None:
        if self._child is not None:
            self._child.terminate()
        self._discard_child()

    def _discard_child(self) -> None:
        """Release an ended child; the next one is started without waiting for a call."""
        with self._lock:
            child, self._child, self._channel = self._child, None, None
        if child is not None:
            child.close()
        self._must_replace, self._answer_pending = True, False


def _receive(channel: Channel) -> tuple[int, Any]:
    """Return the next frame that is not a log record; records go to this process's logging and never fail a call."""
    while True:
        try:
            kind, value = channel.receive()
        except UnreadableFrame as unreadable:
            if unreadable.kind != wire.LOG:
                raise
            log.warning("a log record of a child process was lost", exc_info=True)
            continue
        if kind != wire.LOG:
            return kind, value
        try:
            _handle_record(*value)
        except Exception:  # noqa: BLE001 - an error of a handler does not belong to the call
            log.warning("a log record of a child process was lost", exc_info=True)


def _handle_record(fields: dict[str, Any], carried: str | None) -> None:
    """Pass a child's log record to this process's logging, in its own context if one came with it."""
    logger = logging.getLogger(fields.get("name"))
    if logger.isEnabledFor(fields.get("levelno", logging.INFO)):
        with carrying.unpacked(carried):
            logger.handle(logging.makeLogRecord(fields))
