"""Process lanes: each thread owns one child process, and the workers of a server share a quota of children."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from onebeat.errors import Busy
from onebeat.offload.child.launch import launcher
from onebeat.offload.child.process_worker import ProcessWorker
from onebeat.offload.limits import Limit
from onebeat.offload.pool import fast_path
from onebeat.offload.pool.calls import BlockingCall, log
from onebeat.offload.pool.lanes import Lane, PoolThread
from onebeat.offload.pool.process_quota import ProcessQuota


class ProcessLane(Lane):
    """A lane whose threads own one child process each.

    With a `quota` the lane may always have one child. Each further child takes a token, and all workers of this
    server share the tokens.
    """

    unit = "processes"
    min_threads = 1

    def __init__(
        self,
        name: str,
        width: int,
        queue: int = 256,
        *,
        recycle: int | None = None,
        preload: tuple[str, ...] = (),
        spawn: bool | None = None,
        quota: ProcessQuota | None = None,
        initializer: bytes | None = None,
    ) -> None:
        self._quota, self._initializer = quota, initializer
        self._limit_logged = False
        self._recycle = recycle
        self._new_launcher = partial(launcher, preload) if spawn is None else partial(launcher, preload, spawn=spawn)
        super().__init__(name, width, queue)

    @property
    def free(self) -> int:
        """Number of calls that could start at once: in idle children, and in one more child if it may be started."""
        if self._quota is None:
            return super().free
        with self._lock:
            idle, threads = len(self._idle), len(self._threads)
        if idle == 0 and threads < self.width and (threads == 0 or self._quota.has_free_token()):
            return 1
        return idle

    def submit(self, call: BlockingCall) -> None:
        super().submit(call)
        if self._queue:  # the call before it may never end by itself: its event loop may have stopped
            self._hand_over_fast_calls(only_stranded=True)

    def start_children(self) -> None:
        """Start every child now."""
        for _ in range(self.width - len(self.threads())):
            try:
                self.submit(BlockingCall(_start_child, (), {}, Limit()))
            except Busy:
                return

    def close(self, timeout: float = 2.0) -> None:
        """Start nothing more and end every child, busy ones too; wait at most `timeout` seconds for their ends."""
        deadline = time.monotonic() + timeout
        running = self.shut_down()
        self._hand_over_fast_calls()
        for call in running:
            call.stop("the process lane is closing")
        for thread in self.threads():
            thread.join(max(0.0, deadline - time.monotonic()))
        self._launcher.close()

    def may_add(self, thread: PoolThread) -> bool:
        """Return True for the first thread; each further thread needs a token of the quota."""
        if self._quota is None or not self._threads:
            return True
        thread.token = self._quota.acquire()
        return thread.token is not None

    def try_fast_path(self, call: BlockingCall, thread: PoolThread) -> bool:
        return fast_path.try_fast_path(call, thread, self)

    def execute(self, call: BlockingCall, thread: PoolThread) -> Any:
        if thread.process_worker is None:
            self._log_limit()
            thread.process_worker = ProcessWorker(self._launcher, self._recycle, self._initializer)
        if call.function is _start_child:
            return thread.process_worker.start_child()
        return thread.process_worker.run(call)

    def before_idle(self, thread: PoolThread) -> None:
        if thread.process_worker is not None and not self.closed:
            thread.process_worker.replace_if_needed()

    def on_thread_end(self, thread: PoolThread) -> None:
        """End the child, then give back a token: the thread's own or another's, for the last thread needs none."""
        try:
            if thread.process_worker is not None:
                thread.process_worker.close()
        finally:
            with self._lock:
                holder = next((one for one in (thread, *self._threads) if one.token is not None), None)
                if holder is not None:
                    holder.token.close()
                    holder.token = None

    def reset(self) -> None:
        """Return to the initial state; a forked process gives up its parent's tokens and starts its own children."""
        for thread in getattr(self, "_threads", ()):
            if thread.token is not None:
                thread.token.close()
        super().reset()
        self._launcher = self._new_launcher()

    def _hand_over_fast_calls(self, only_stranded: bool = False) -> None:
        """Let the pool threads finish the calls on the fast path, all or only those whose event loop has stopped."""
        for thread in list(self._threads):
            if (call := thread.fast_call) is not None and (not only_stranded or call.is_stranded):
                call.hand_over()

    def _log_limit(self) -> None:
        """Log once, with the first child, how many children there can be."""
        with self._lock:
            logged, self._limit_logged = self._limit_logged, True
        if not logged:
            log.info("%s: %s", self.name, describe_limit(self.width, self._quota))


def describe_limit(width: int, quota: ProcessQuota | None) -> str:
    """Return a text for the log that says how many children there can be.

    >>> describe_limit(3, None)
    'at most 3 child processes here, as many in each other worker of this server'
    """
    if quota is None or not quota.is_shared:
        most = width if quota is None else min(width, 1 + len(quota))
        return f"at most {most} child processes here, as many in each other worker of this server"
    return (
        f"one child process here, as in each other worker of this server, and {len(quota)} more that all workers share"
    )


def _start_child() -> None:
    """Never runs: a process worker that receives it only starts its child."""
