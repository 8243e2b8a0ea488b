"""JobContext: what a running function can learn about its job, and ask for it."""

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
    """Writes the progress of one job."""

    async def __call__(self, report: dict[str, Any], /) -> None:
        """Write the report, or keep it until half a second has passed since the last one."""

    async def write_last(self) -> None:
        """Write the report that was kept, if there is one."""


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
        reports: Callable[[], Reports] | None = None,
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
        self._make_reports = reports
        self._reports: Reports | None = None  # once there was something to report
        self._stop = False  # a plain flag: it is only ever set, from any thread
        self._lost = False
        self._left = False  # whether the function learnt that its claim is lost
        self._loop = _running_loop()

    @property
    def cancelled(self) -> bool:
        """Return whether this attempt should end: cancelled, timed out, drained, or its lease lost. Thread-safe."""
        return self._stop

    @property
    def remaining(self) -> float | None:
        """Return the seconds until the timeout, negative after it; None without a timeout."""
        return None if self._deadline is None else self._deadline - self._monotonic()

    def checkpoint(self) -> None:
        """Raise `LeaseLost`, `JobCancelled` or `TimeoutError` when this attempt should end. Call it in long loops."""
        if self._lost:
            raise LeaseLost(f"job {self.id} is no longer held by this worker; stop without writing")
        if self._stop:
            raise JobCancelled(f"job {self.id} was asked to stop")
        left = self.remaining
        if left is not None and left <= 0:
            raise TimeoutError(f"job {self.id} is past its timeout")

    async def ensure_owned(self) -> None:
        """Raise `LeaseLost` when the database says that this worker no longer holds the job. One round trip."""
        if self._lost or (self._owned is not None and not await self._owned()):
            self._left = True
            raise LeaseLost(
                f"job {self.id}, attempt {self.attempt}: the claim is gone; another worker may be running it"
            )

    async def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """Store how much is done. At most one report each half second is written, and always the last one."""
        if self._reports is None and self._make_reports is not None:
            self._reports = self._make_reports()
        if self._reports is not None:
            await self._reports({"done": done, "total": total, "message": message})

    @property
    def sync(self) -> SyncContext:
        """Return the same verbs for a task that runs in a thread."""
        return SyncContext(self)

    def for_child_process(self) -> dict[str, Any]:
        """Return what `in_child_process` needs, as values that pickle supports."""
        names = ("id", "attempt", "task", "tracking_id", "fence", "schedule_id", "fire_time")
        return {name: getattr(self, name) for name in names} | {"deadline": self.remaining}

    @classmethod
    def in_child_process(cls, facts: dict[str, Any]) -> JobContext:
        """Return the context of the same job for its function in a child process, which has no database.

        `ensure_owned` and `progress` raise `NotStarted` there. `cancelled` stays False: a stop ends the process.
        """
        left = facts["deadline"]
        facts = facts | {"deadline": None if left is None else _monotonic() + left}
        return cls(**facts, owned=_refuse_in_a_child, reports=_NoReports)

    def _ask_to_stop(self, *, lost: bool = False) -> None:
        self._lost = self._lost or lost
        self._stop = True


class SyncContext:
    """The awaitable verbs of `JobContext` as blocking ones, for tasks that run in a thread."""

    def __init__(self, context: JobContext) -> None:
        self._context = context

    def ensure_owned(self) -> None:
        """Do what `JobContext.ensure_owned` does."""
        self._run(self._context.ensure_owned())

    def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """Do what `JobContext.progress` does."""
        self._run(self._context.progress(done, total, message))

    def _run(self, coroutine: Any) -> None:
        loop = self._context._loop
        if self._context._make_reports is _NoReports:
            coroutine.close()
            raise _no_database()
        if loop is None or _running_loop() is loop:
            coroutine.close()
            raise NotStarted("ctx.sync is for tasks that run in a thread; in an async task use `await ctx.…`")
        asyncio.run_coroutine_threadsafe(coroutine, loop).result()


class _NoReports:
    async def __call__(self, report: dict[str, Any], /) -> None:
        raise _no_database()

    async def write_last(self) -> None:
        raise _no_database()


async def _refuse_in_a_child() -> bool:
    raise _no_database()


def _no_database() -> NotStarted:
    return NotStarted(
        "this job runs in a child process, which has no connection to onebeat's database, so it can neither report "
        "progress nor ask for its claim. Guard your own writes with current_job().fence, or leave out run_in='process'."
    )


current: ContextVar[JobContext | None] = ContextVar("onebeat_job", default=None)


def current_job() -> JobContext:
    """Return the running job's context, also in a child process that runs it; raises `NotStarted` outside a job.

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
