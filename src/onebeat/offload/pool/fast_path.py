"""The fast path: a small call goes from the event loop to an idle child process and back without a thread switch."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from onebeat.offload.pool.calls import AwaitedCall, BlockingCall, call_on_loop

if TYPE_CHECKING:
    from onebeat.offload.pool.lanes import Lane, PoolThread


def try_fast_path(call: BlockingCall, thread: PoolThread, lane: Lane) -> bool:
    """Return whether the call was sent to the child of `thread` from here; otherwise the thread must take the call."""
    worker: Any = thread.process_worker
    if worker is None or not isinstance(call, AwaitedCall):
        return False
    try:
        reader = worker.send_small(call)
        if reader is not None:
            thread.fast_call = FastPathCall(call, thread, lane, reader)
    except Exception:  # noqa: BLE001 - the pool thread meets the same error and reports it
        return False
    return reader is not None


class FastPathCall:
    """A call that its child runs while the pool thread is idle; any answer but a small plain one goes to that thread.

    Everything happens on the call's event loop, or after that loop has stopped. Nothing here waits: the request fits
    into an empty pipe, the answer has arrived before it is read, and both take microseconds to pickle and to rebuild.
    """

    def __init__(self, call: AwaitedCall, thread: PoolThread, lane: Lane, reader: int) -> None:
        self._call, self._thread, self._lane, self._reader = call, thread, lane, reader
        self._claim = threading.Lock()  # acquired once, and never released, by the side that finishes the call
        call.loop.add_reader(reader, self._on_readable)

    @property
    def is_stranded(self) -> bool:
        """True when the call's event loop does not run any more."""
        return not self._call.loop.is_running()

    def hand_over(self) -> None:
        """Let the pool thread finish the call; may be called from any thread."""
        if self.is_stranded or asyncio._get_running_loop() is self._call.loop:
            self._hand_over()
        else:
            call_on_loop(self._call.loop, self._hand_over)

    def _on_readable(self) -> None:
        """Read the answer; a log record, a large answer or the child's end is left to the pool thread."""
        if not self._try_claim():
            return
        answer = self._thread.process_worker.receive_plain(self._call)
        if answer is None:
            self._lane.wake(self._thread, self._call)
            return
        if self._lane.release(self._call, self._thread):
            self._lane.wake(self._thread)
        self._call.deliver_on_loop(*answer)

    def _hand_over(self) -> None:
        if self._try_claim():
            self._lane.wake(self._thread, self._call)

    def _try_claim(self) -> bool:
        if not self._claim.acquire(blocking=False):
            return False
        self._thread.fast_call = None
        with suppress(RuntimeError):  # the loop is closed
            self._call.loop.remove_reader(self._reader)
        os.set_blocking(self._reader, True)  # uvloop leaves a descriptor that it watched non-blocking
        return True
