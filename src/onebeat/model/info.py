"""Snapshots that the API returns: jobs with their verbs, attempts, schedules, fires, workers, queues, pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

from onebeat.errors import JobCancelled, JobFailed
from onebeat.model.job import FINAL, JobState
from onebeat.model.protocols import Trigger

T = TypeVar("T")


class JobVerbs(Protocol):
    """What the verbs of a snapshot call: `scheduler.jobs`."""

    async def get(self, id: UUID | str) -> JobInfo:
        """Return the job as it is now."""

    async def wait(self, id: UUID | str, timeout: float | timedelta | None = None) -> JobInfo:
        """Wait until the job has ended and return it."""

    async def cancel(self, id: UUID | str) -> JobInfo:
        """Cancel the job and return it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInfo:
    """A job at one moment. `value` is what the function returned, as plain JSON data.

    Instants are aware, UTC; `fire_time`, of jobs made by a schedule, is in the zone that the schedule had then.
    """

    id: UUID
    task: str
    state: JobState
    reason: str | None
    queue: str
    priority: int
    attempt: int
    worker: str | None
    run_at: datetime
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    tracking_id: str
    schedule_id: str | None = None
    fire_time: datetime | None = None
    progress: dict[str, Any] | None = None
    tags: tuple[str, ...] = ()
    value: Any = None
    error: str | None = None
    duplicate: bool = False
    _jobs: JobVerbs | None = field(default=None, repr=False, compare=False)

    @property
    def finished(self) -> bool:
        """Return whether the job has ended: succeeded, failed or cancelled."""
        return self.state in FINAL

    def bound(self, jobs: JobVerbs) -> JobInfo:
        """Return the same snapshot with verbs that call `jobs`."""
        return replace(self, _jobs=jobs)

    async def wait(self, timeout: float | timedelta | None = None) -> JobInfo:
        """Wait until the job has ended and return it.

        Raises `TimeoutError` after `timeout`, seconds or a timedelta, and `NotStarted` when the scheduler is stopped
        meanwhile.
        """
        return await self._verbs().wait(self.id, timeout)

    async def result(self, timeout: float | timedelta | None = None) -> Any:
        """Wait until the job has ended and return its value.

        Raises `JobFailed`, `JobCancelled`, and what `wait` raises.
        """
        ended = await self.wait(timeout)
        if ended.state is JobState.FAILED:
            raise JobFailed(
                f"job {ended.id} ({ended.task}) failed, {ended.reason}: {ended.error or 'no error was kept'}"
            )
        if ended.state is JobState.CANCELLED:
            raise JobCancelled(f"job {ended.id} ({ended.task}) was cancelled: {ended.reason}")
        return ended.value

    async def refresh(self) -> JobInfo:
        """Return the job as it is now; raises `JobNotFound` when it was pruned."""
        return await self._verbs().get(self.id)

    async def cancel(self) -> JobInfo:
        """Cancel the job at once when it has not started; else ask its function to stop."""
        return await self._verbs().cancel(self.id)

    def _verbs(self) -> JobVerbs:
        assert self._jobs is not None, "a JobInfo that scheduler.jobs did not return has no verbs"
        return self._jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptInfo:
    """One attempt at a job that has ended."""

    job_id: UUID
    attempt: int
    worker: str | None
    started_at: datetime | None
    finished_at: datetime | None
    outcome: str
    error: str | None
    traceback: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleInfo:
    """A schedule at one moment. `rev` counts edits; `source` is `code` or `api`.

    `next_fire` and `last_fire` are aware, in the schedule's zone; the other instants are UTC.
    `problem` says why this version cannot read its row completely; such a schedule does not fire here.
    """

    id: str
    task: str
    trigger: Trigger
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: str
    next_fire: datetime | None
    last_fire: datetime | None
    last_status: str | None
    last_error: str | None
    rev: int
    source: str
    tags: tuple[str, ...]
    note: str | None
    paused_reason: str | None
    created_at: datetime
    updated_at: datetime
    policies: Any = None
    fires_count: int = 0
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fire:
    """The decision on one due instant; a `gap` row stands for `count` instants, up to `until`.

    `fire_time` and `until` are aware, in the schedule's zone; `decided_at` is UTC.
    """

    schedule_id: str
    fire_time: datetime
    key: str
    origin: str
    decision: str
    reason: str | None
    job_id: UUID | None
    decided_by: str
    decided_at: datetime
    until: datetime | None = None
    count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """A process that runs an engine, at one moment. It is `alive` while its lease holds by the database's clock.

    `queues` is None for every queue. `running` counts the jobs that it holds, at most `slots`.
    """

    id: str
    host: str
    pid: int
    state: str
    started_at: datetime
    heartbeat_at: datetime
    lease_until: datetime
    queues: tuple[str, ...] | None
    slots: int
    running: int
    tasks: tuple[str, ...]
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueInfo:
    """The unfinished jobs of one queue by state, and how many live workers serve it."""

    name: str
    queued: int = 0
    running: int = 0
    scheduled: int = 0
    waiting: int = 0
    workers: int = 0


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some items of a list, and the cursor of the next page, None at the end."""

    items: tuple[T, ...]
    cursor: str | None = None

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> T:
        return self.items[index]
