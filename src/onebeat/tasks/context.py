"""JobContext: what a running function may know and ask."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from onebeat.errors import JobCancelled, LeaseLost, NotStarted
from onebeat.timing.clock import SystemClock

_monotonic = SystemClock().monotonic


class Reports(Protocol):
    """Where a job's progress goes."""

    async def __call__(self, report: dict[str, Any], /) -> None:
        """Write it, or keep it until its half second is over."""

    async def write_last(self) -> None:
        """Write what was kept."""


class JobContext:
    """The running job, for its own function: annotate a parameter with it, or ask `current_job()`.

    `id`: UUID of the job · `attempt`: 1 for the first start · `task`: its name · `schedule_id` and `fire_time` (aware,
    in the schedule's zone) for jobs made by a schedule · `tracking_id` · `fence`: an integer that only grows over the
    starts of this job, for `WHERE fence <= …` in your own tables.
    """

    def __init__(
        self,
        *,
        id: UUID,
        attempt: int,
        task: str,
        tracking_id: str,
        fence: int,
        schedule_id: str | None = None,
        fire_time: datetime | None = None,
        deadline: float | None = None,
        monotonic: Callable[[], float] = _monotonic,
        owned: Callable[[], Awaitable[bool]] | None = None,
        report: Reports | None = None,
    ) -> None:
        self.id = id
        self.attempt = attempt
        self.task = task
        self.tracking_id = tracking_id
        self.fence = fence
        self.schedule_id = schedule_id
        self.fire_time = fire_time
        self._deadline = deadline  # on the clock that `monotonic` reads, seconds
        self._monotonic = monotonic
        self._owned = owned
        self._report = report
        self._reported: Reports | None = None  # once there was something to report
        self._stop = False  # a plain flag: it is only ever set, from any thread
        self._lost = False
        self._left = False  # whether the function was told that its claim is gone
        self._loop = _running_loop()

    @property
    def cancelled(self) -> bool:
        """True once this attempt should end: cancelled, timed out, drained, or its lease lost. Safe from any thread."""
        return self._stop

    @property
    def remaining(self) -> float | None:
        """Seconds until the timeout (negative when past), None without one."""
        return None if self._deadline is None else self._deadline - self._monotonic()

    def checkpoint(self) -> None:
        """Return at once, or raise `LeaseLost`, `JobCancelled` or `TimeoutError`: for long loops of a thread task."""
        if self._lost:
            raise LeaseLost(f"job {self.id} is no longer held by this worker; stop without writing")
        if self._stop:
            raise JobCancelled(f"job {self.id} was asked to stop")
        left = self.remaining
        if left is not None and left <= 0:
            raise TimeoutError(f"job {self.id} is past its timeout")

    async def ensure_owned(self) -> None:
        """Ask the database whether this claim still holds; raises `LeaseLost` when it does not. One round trip."""
        if self._lost or (self._owned is not None and not await self._owned()):
            self._left = True
            raise LeaseLost(
                f"job {self.id}, attempt {self.attempt}: the claim is gone; another worker may be running it"
            )

    async def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """Tell how far the work is; at most one write each half second, the last one always."""
        if self._report is not None:
            self._reported = self._report
            await self._report({"done": done, "total": total, "message": message})

    @property
    def sync(self) -> SyncContext:
        """The same verbs for a task that runs in a thread."""
        return SyncContext(self)

    def _ask_to_stop(self, *, lost: bool = False) -> None:
        self._lost = self._lost or lost
        self._stop = True


class SyncContext:
    """`JobContext`'s awaitable verbs, blocking, for thread tasks."""

    def __init__(self, context: JobContext) -> None:
        self._context = context

    def ensure_owned(self) -> None:
        """See `JobContext.ensure_owned`."""
        self._run(self._context.ensure_owned())

    def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """See `JobContext.progress`."""
        self._run(self._context.progress(done, total, message))

    def _run(self, coroutine: Any) -> None:
        loop = self._context._loop
        if loop is None or _running_loop() is loop:
            coroutine.close()
            raise NotStarted("ctx.sync is for tasks that run in a thread; in an async task use `await ctx.…`")
        asyncio.run_coroutine_threadsafe(coroutine, loop).result()


current: ContextVar[JobContext | None] = ContextVar("onebeat_job", default=None)


def current_job() -> JobContext:
    """The running job's context; raises `NotStarted` outside a job.

    >>> current_job()
    Traceback (most recent call last):
    onebeat.errors.NotStarted: no job is running here; current_job() works inside a task's function
    """
    context = current.get()
    if context is None:
        raise NotStarted("no job is running here; current_job() works inside a task's function")
    return context


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
