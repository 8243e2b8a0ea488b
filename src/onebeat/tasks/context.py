"""JobContext: what a running function can learn about its job, and ask for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from onebeat.errors import JobCancelled, LeaseLost, NotStarted
from onebeat.timing.clock import SystemClock

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from onebeat.store.connection.callers_session import AsyncCaller, SyncCaller

_monotonic = SystemClock().monotonic


class Reports(Protocol):
    """Writes the progress of one job."""

    async def __call__(self, report: dict[str, Any], /) -> None:
        """Write the report, or keep it until half a second has passed since the last one."""

    async def write_last(self) -> None:
        """Write the report that was kept, if there is one."""


class Completes(Protocol):
    """Ends one job in a transaction of its function, and opens sessions for one."""

    async def complete(self, session: AsyncCaller, value: Any, /) -> bool:
        """End the job as succeeded in the session's transaction; return whether its claim held."""

    def complete_sync(self, session: SyncCaller, value: Any, /) -> bool:
        """Do the same on the calling thread."""

    def new_session(self) -> AsyncSession:
        """Return a session on the database of the job."""

    def new_session_sync(self) -> Session:
        """Return a synchronous session on the database of the job."""


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
        completion: Callable[[], Completes] | None = None,
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
        self._make_completion = completion
        self._completed_in: object = None  # the session of the last `complete`
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

    async def complete(self, session: AsyncCaller, value: Any = None) -> None:
        """End this job as succeeded with `value` in the transaction of `session`, which you commit.

        `session` is an `AsyncSession` or `AsyncConnection` on the scheduler's database. Your writes in it happen
        exactly once: with the commit the job has succeeded, whatever this function or its worker does afterwards. After
        a rollback the job goes on as any other. A `value` that cannot be stored becomes None, as a returned one does.
        What the function returns after the commit is not stored, and what it raises then is only logged.

        Raises `LeaseLost` when this worker no longer holds the job, or when it was completed before: roll back then.
        `ConfigurationError` says that the session is of another kind or database.
        """
        completed = await self._completes().complete(session, value)
        self._note_completion(session, completed)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """Open a session on the scheduler's database; at the end of the block complete the job in it, and commit.

        An exception in the block rolls back, and the job ends with it as any other. For a value call
        ``await ctx.complete(session, value)`` as the last line of the block. The block is the last thing that a
        function does: what follows it is not protected. The transaction begins with the first statement; on SQLite it
        holds the file's only write lock from its first write to its end. Raises what `complete` raises.
        """
        async with self._completes().new_session() as session:
            yield session
            if self._completed_in is not session:
                await self.complete(session)
            await _commit(session)

    def _completes(self) -> Completes:
        if self._make_completion is None:
            raise _no_database()
        return self._make_completion()

    def _note_completion(self, session: object, completed: bool) -> None:
        if not completed:
            self._left = True
            raise LeaseLost(
                f"job {self.id}, attempt {self.attempt}: this worker no longer holds it, or it was completed before; "
                "nothing was written, so roll back"
            )
        self._completed_in = session

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

        `ensure_owned`, `progress`, `complete` and `transaction` raise `NotStarted` there. `cancelled` stays False: a
        stop ends the process.
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

    def complete(self, session: SyncCaller, value: Any = None) -> None:
        """Do what `JobContext.complete` does, with a `Session` or `Connection` of this thread."""
        completed = self._context._completes().complete_sync(session, value)
        self._context._note_completion(session, completed)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Do what `JobContext.transaction` does, on SQLite; on a server it raises `ConfigurationError`.

        There open a session of your own, and call `complete` before you commit.
        """
        with self._context._completes().new_session_sync() as session:
            yield session
            if self._context._completed_in is not session:
                self.complete(session)
            session.commit()

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


async def _commit(session: AsyncSession) -> None:
    """Commit. A cancel meanwhile waits for the answer, and is raised then: a commit is never cancelled."""
    commit = asyncio.ensure_future(session.commit())
    cancelled = False
    while not commit.done():
        try:
            await asyncio.wait({commit})
        except asyncio.CancelledError:
            cancelled = True
    commit.result()
    if cancelled:
        raise asyncio.CancelledError


async def _refuse_in_a_child() -> bool:
    raise _no_database()


def _no_database() -> NotStarted:
    return NotStarted(
        "this job runs in a child process, which has no connection to onebeat's database, so it can neither report "
        "progress nor ask for its claim nor complete. Guard your own writes with current_job().fence, or leave out "
        "run_in='process'."
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
