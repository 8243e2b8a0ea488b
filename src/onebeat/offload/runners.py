"""The runners of synchronous jobs: `ThreadRunner` and `ProcessRunner`, for the protocol that the executor uses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from onebeat.errors import Busy
from onebeat.offload.limits import Limit
from onebeat.offload.pool.calls import AwaitedCall
from onebeat.offload.pool.lanes import Lane
from onebeat.offload.pool.process_lane import ProcessLane
from onebeat.offload.processes import process_settings
from onebeat.offload.threads import run_on_own_thread


class ThreadRunner:
    """Run synchronous jobs on a lane of its own, which is as wide as the worker has slots.

    A thread cannot be killed: `stop` sets the flag that `checkpoint()` and `remaining()` read. The limit that is
    active where `start` is called (``offload.limits.within``) is the limit of the function.

    >>> async def main():
    ...     runner = ThreadRunner(2)
    ...     running = runner.start(sorted, [2, 1])
    ...     return await running.future
    >>> asyncio.run(main())
    [1, 2]
    """

    def __init__(self, width: int) -> None:
        self._lane = Lane("jobs", width=width, queue=0)
        self._closed = False

    @property
    def free(self) -> int:
        """Number of calls that could start at once; a function that ignores a stop keeps its thread."""
        return 0 if self._closed else self._lane.free

    def start(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> RunningThread:
        """Start the call on a thread, with the caller's context variables; raise `Busy` when no thread is free."""
        if self._closed:
            raise Busy("this runner is closed")
        call = AwaitedCall(function, args, kwargs, Limit())
        self._lane.submit(call)
        return RunningThread(call)

    async def close(self) -> None:
        """Start nothing more, and tell running calls to end; their daemon threads are not awaited."""
        self._closed = True
        for call in self._lane.shut_down():
            call.stop("the worker is closing")


class RunningThread:
    """A call on a thread; `future` completes when the function has really ended."""

    def __init__(self, call: AwaitedCall) -> None:
        self._call = call
        self.future: asyncio.Future[Any] = call.future
        """Completes with the value, the exception, or `Stopped` when the function left at a `checkpoint()`."""

    def stop(self, reason: str) -> bool:
        """Set the flag that `checkpoint()` and `remaining()` read; return False, because a thread cannot be ended."""
        self._call.stop(reason)
        return False


class ProcessRunner:
    """Run synchronous jobs in child processes of its own, at most `width` at once; each can be ended.

    Without `width` the settings of `setup_offload` apply. By default that is one child, and more while the quota of
    this server has tokens.

    A function is sent by module and qualified name, so a decorated one (a task) works too: its wrapper's
    ``__wrapped__`` leads to it. Children start on first use.

    >>> async def main():
    ...     runner = ProcessRunner(1)
    ...     running = runner.start(sum, [2, 1])
    ...     try:
    ...         return await running.future
    ...     finally:
    ...         await runner.close()
    >>> asyncio.run(main())
    3
    """

    def __init__(self, width: int | None = None, *, recycle: int | None = None) -> None:
        own = process_settings() if width is None else {"width": width, "recycle": recycle}
        self._lane = ProcessLane("job processes", **(own | {"queue": 0}))
        self._closed = False

    @property
    def free(self) -> int:
        """Number of calls that could start at once."""
        return 0 if self._closed else self._lane.free

    def start(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> RunningProcess:
        """Start the call in a child, with the caller's tracking id; raise `Busy` when no child is free."""
        call = AwaitedCall(function, args, kwargs, Limit())
        self._lane.submit(call)
        return RunningProcess(call)

    async def close(self) -> None:
        """Start nothing more and end all children, busy ones too."""
        self._closed = True
        await run_on_own_thread(self._lane.close)


class RunningProcess:
    """A call in a child; `future` completes when the function, or its child, has really ended."""

    def __init__(self, call: AwaitedCall) -> None:
        self._call = call
        self.future: asyncio.Future[Any] = call.future
        """Completes with the value, the exception, `WorkerProcessDied`, or `Stopped` after `stop`."""

    def stop(self, reason: str) -> bool:
        """End the child and its process tree: SIGTERM first, SIGKILL after half a second. Return True."""
        self._call.stop(reason)
        return True
