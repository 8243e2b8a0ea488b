"""A lane of processes: each thread holds one child, started on first use; all workers of a server share a number."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from onebeat.errors import Busy
from onebeat.offload.child.launch import launcher
from onebeat.offload.child.process_worker import Slot
from onebeat.offload.limits import Limit
from onebeat.offload.pool import fast_path
from onebeat.offload.pool.calls import Call, log
from onebeat.offload.pool.lanes import Lane, Worker
from onebeat.offload.pool.share import Share


class ProcessLane(Lane):
    """A lane whose threads each hold one child process.

    With `share` it may always have one child, and each further one takes a token that all workers of this server share.
    """

    places = "processes"
    kept = 1

    def __init__(
        self,
        name: str,
        width: int,
        queue: int = 256,
        *,
        recycle: int | None = None,
        preload: tuple[str, ...] = (),
        spawn: bool | None = None,
        share: Share | None = None,
    ) -> None:
        self._share = share
        self._said = False
        self._recycle = recycle
        self._launch = partial(launcher, preload) if spawn is None else partial(launcher, preload, spawn=spawn)
        super().__init__(name, width, queue)

    @property
    def free(self) -> int:
        """How many calls could start at once: in idle children, and in one more if it may be started."""
        if self._share is None:
            return super().free
        with self._lock:
            idle, workers = len(self._idle), len(self._workers)
        if idle == 0 and workers < self.width and (workers == 0 or self._share.left()):
            return 1
        return idle

    def submit(self, call: Call) -> None:
        super().submit(call)
        if self._queue:  # what it waits for may wait itself, for an event loop that has ended
            self._leave_to_threads(stranded=True)

    def warm(self) -> None:
        """Start every child now."""
        for _ in range(self.width - len(self.threads())):
            try:
                self.submit(Call(_start_only, (), {}, Limit()))
            except Busy:
                return

    def close(self, timeout: float = 2.0) -> None:
        """Start nothing more and end every child, busy ones too; returns when they have ended, or after `timeout`."""
        deadline = time.monotonic() + timeout
        running = self.shut()
        self._leave_to_threads()
        for call in running:
            call.stop("the process lane is closing")
        for thread in self.threads():
            thread.join(max(0.0, deadline - time.monotonic()))
        self._launcher.close()

    def admit(self, worker: Worker) -> bool:
        """The first may always be; each further one needs a token."""
        if self._share is None or not self._workers:
            return True
        worker.token = self._share.take()
        return worker.token is not None

    def begin(self, call: Call, worker: Worker) -> bool:
        return fast_path.begin(call, worker, self)

    def enter(self, call: Call, worker: Worker) -> Any:
        if worker.slot is None:
            self._say()
            worker.slot = Slot(self._launcher, self._recycle)
        if call.function is _start_only:
            return worker.slot.warm()
        return worker.slot.run(call)

    def tidy(self, worker: Worker) -> None:
        if worker.slot is not None and not self.closed:
            worker.slot.tidy()

    def leave(self, worker: Worker) -> None:
        """End its child; then give a token back, its own or another's: the one without a token may be the last."""
        try:
            if worker.slot is not None:
                worker.slot.close()
        finally:
            with self._lock:
                holder = next((one for one in (worker, *self._workers) if one.token is not None), None)
                if holder is not None:
                    holder.token.close()
                    holder.token = None

    def forget(self) -> None:
        """As new: a forked process holds none of its parent's tokens, and starts children of its own."""
        for worker in getattr(self, "_workers", ()):
            if worker.token is not None:
                worker.token.close()
        super().forget()
        self._launcher = self._launch()

    def _leave_to_threads(self, stranded: bool = False) -> None:
        """Calls that are under way without their threads, all of them or the stranded, go on with them."""
        for worker in list(self._workers):
            if (call := worker.express) is not None and (not stranded or call.stranded):
                call.leave()

    def _say(self) -> None:
        """Say once, with the first child, how many there can be."""
        with self._lock:
            said, self._said = self._said, True
        if not said:
            log.info("%s: %s", self.name, bound(self.width, self._share))


def bound(width: int, share: Share | None) -> str:
    """How many children there can be, in words.

    >>> bound(3, None)
    'at most 3 child processes here, as many in each other worker of this server'
    """
    if share is None or not share.common:
        most = width if share is None else min(width, 1 + len(share))
        return f"at most {most} child processes here, as many in each other worker of this server"
    return (
        f"one child process here, as in each other worker of this server, and {len(share)} more that all workers share"
    )


def _start_only() -> None:
    """Not called: a slot that gets it only starts its child."""
