"""The runners of jobs: ThreadRunner and ProcessRunner, behind the protocol the executor uses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from onebeat.errors import Busy
from onebeat.offload.limits import Limit
from onebeat.offload.pool.calls import Awaited
from onebeat.offload.pool.lanes import Lane
from onebeat.offload.pool.process_lane import ProcessLane
from onebeat.offload.processes import process_settings
from onebeat.offload.threads import to_thread


class ThreadRunner:
    """Runs synchronous jobs on a lane of its own, as wide as the worker has slots.

    A thread cannot be killed: `stop` sets the flag that `checkpoint()` and `remaining()` read. The time limit in
    force where `start` is called (``offload.limits.within``) is the function's own.

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
        """How many calls could start at once; a function that ignores its stop holds its place until it returns."""
        return 0 if self._closed else self._lane.free

    def start(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> RunningThread:
        """Start the call on a thread with the caller's context variables; `Busy` when none is free."""
        if self._closed:
            raise Busy("this runner is closed")
        call = Awaited(function, args, kwargs, Limit())
        self._lane.submit(call)
        return RunningThread(call)

    async def close(self) -> None:
        """Start nothing more and ask what still runs to end; it is left behind as daemon threads."""
        self._closed = True
        for call in self._lane.shut():
            call.stop("the worker is closing")


class RunningThread:
    """A call on a thread; `future` completes when the function has really ended."""

    def __init__(self, call: Awaited) -> None:
        self._call = call

    @property
    def future(self) -> asyncio.Future[Any]:
        """The value, the exception, or `Stopped` when the function left at a `checkpoint()`."""
        return self._call.future

    def stop(self, reason: str) -> bool:
        """Set the flag that `checkpoint()` and `remaining()` read; always False, for a thread is only asked."""
        self._call.stop(reason)
        return False


class ProcessRunner:
    """Runs synchronous jobs in child processes of its own, at most `width` at once; each can be ended.

    Without `width`: as `setup_offload` says; by default one, and more while the workers of this server have some left.

    A call is sent as module and qualified name, so a decorated function (a task) works: its wrapper's ``__wrapped__``
    leads to it. Children start on first use.

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
        """How many calls could start at once."""
        return 0 if self._closed else self._lane.free

    def start(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> RunningProcess:
        """Start the call in a child that knows the caller's tracking id; `Busy` when none is free."""
        call = Awaited(function, args, kwargs, Limit())
        self._lane.submit(call)
        return RunningProcess(call)

    async def close(self) -> None:
        """Start nothing more and end all children, busy ones too."""
        self._closed = True
        closing = Lane("closing", width=1)
        await to_thread(self._lane.close, lane=closing)
        closing.shut()  # else each start and stop of a scheduler would leave a thread


class RunningProcess:
    """A call in a child; `future` completes when the function, or its child, has really ended."""

    def __init__(self, call: Awaited) -> None:
        self._call = call

    @property
    def future(self) -> asyncio.Future[Any]:
        """The value, the exception, `WorkerProcessDied`, or `Stopped` when `stop` ended it."""
        return self._call.future

    def stop(self, reason: str) -> bool:
        """End the child and what it started: asked first, ended after half a second. Always True."""
        self._call.stop(reason)
        return True
