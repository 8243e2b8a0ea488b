"""A small call without a change of threads: from the event loop to an idle child, and its answer straight back."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from onebeat.offload.pool.calls import Awaited, Call, on_loop

if TYPE_CHECKING:
    from onebeat.offload.pool.lanes import Lane, Worker


def begin(call: Call, worker: Worker, lane: Lane) -> bool:
    """Whether the call could be sent from here; else the slot's thread does it, or goes on from where this came to."""
    slot: Any = worker.slot
    if slot is None or not isinstance(call, Awaited):
        return False
    try:
        answers = slot.begin(call)
        if answers is not None:
            worker.express = Express(call, worker, lane, answers)
    except Exception:  # noqa: BLE001 - the thread meets it again and says it
        return False
    return answers is not None


class Express:
    """A call that is under way while its slot's thread rests. What is not small and plain is left to that thread.

    Everything happens on the call's event loop, or when that one has stopped. Nothing here waits: what is sent fits
    into an empty pipe, what is read is there, and both take microseconds to pickle and to rebuild.
    """

    def __init__(self, call: Awaited, worker: Worker, lane: Lane, answers: int) -> None:
        self._call, self._worker, self._lane, self._answers = call, worker, lane, answers
        self._turn = threading.Lock()  # whoever gets it has the call, for ever
        call.loop.add_reader(answers, self._look)

    @property
    def stranded(self) -> bool:
        """Whether its event loop does not run any more."""
        return not self._call.loop.is_running()

    def leave(self) -> None:
        """Leave it to the slot's thread; from any thread."""
        if self.stranded or asyncio._get_running_loop() is self._call.loop:
            self._leave()
        else:
            on_loop(self._call.loop, self._leave)

    def _look(self) -> None:
        """Something came: the answer, a log record, the child's end."""
        if not self._mine():
            return
        answer = self._worker.slot.answer_now(self._call)
        if answer is None:
            self._lane.wake(self._worker, self._call)
            return
        if self._lane.freed(self._call, self._worker):
            self._lane.wake(self._worker)
        self._call.deliver_here(*answer)

    def _leave(self) -> None:
        if self._mine():
            self._lane.wake(self._worker, self._call)

    def _mine(self) -> bool:
        if not self._turn.acquire(blocking=False):
            return False
        self._worker.express = None
        with suppress(RuntimeError):  # the loop is closed
            self._call.loop.remove_reader(self._answers)
        os.set_blocking(self._answers, True)  # uvloop leaves what it watched the other way
        return True
