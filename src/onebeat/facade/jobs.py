"""`scheduler.jobs`: look at jobs, wait for them, change them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

from onebeat.errors import JobExists, JobNotFound
from onebeat.facade.watcher import Watcher
from onebeat.model.info import AttemptInfo, JobInfo, Page
from onebeat.model.job import FINAL, JobState
from onebeat.model.task import check_filters
from onebeat.store import job_edits, reports
from onebeat.store.database import Database


class Jobs:
    """The jobs in the database, of every process. Ids are UUIDs or their text."""

    def __init__(
        self,
        database: Callable[[], Database],
        watcher: Callable[[], Watcher],
        *,
        woken: Callable[[], None],
        prune: Callable[[], Awaitable[int]],
    ) -> None:
        self._database = database
        self._watcher = watcher
        self._woken = woken
        self._prune = prune

    async def get(self, id: UUID | str) -> JobInfo:
        """The job as it is now; raises `JobNotFound`."""
        info: JobInfo = await self._database().read(reports.job, _uuid(id))
        return info.bound(self)

    async def list(
        self,
        *,
        state: JobState | str | None = None,
        task: str | None = None,
        queue: str | None = None,
        schedule_id: str | None = None,
        tracking_id: str | None = None,
        tag: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[JobInfo]:
        """Jobs that fit every filter given, newest first, at most `limit` (1,000) a page.

        Raises `ConfigurationError` for a filter that no job can fit, such as a name with a blank.
        """
        check_filters(tag=tag, task=task, queue=queue, schedule_id=schedule_id)
        page: Page[JobInfo] = await self._database().read(
            reports.jobs,
            limit=max(1, min(limit, 1000)),
            cursor=cursor,
            state=state,
            task=task,
            queue=queue,
            schedule_id=schedule_id,
            tracking_id=tracking_id,
            tag=tag,
        )
        return Page(tuple(item.bound(self) for item in page), page.cursor)

    async def count(
        self,
        *,
        state: JobState | str | None = None,
        task: str | None = None,
        queue: str | None = None,
        schedule_id: str | None = None,
        tag: str | None = None,
    ) -> int:
        """How many jobs fit every filter given; refuses filters as `list` does."""
        check_filters(tag=tag, task=task, queue=queue, schedule_id=schedule_id)
        counts = await self._database().read(
            reports.count_jobs, state=state, task=task, queue=queue, schedule_id=schedule_id, tag=tag
        )
        return sum(counts.values())

    async def attempts(self, id: UUID | str) -> Sequence[AttemptInfo]:
        """The attempts worth remembering, in order: all but a success at the first try."""
        return await self._database().read(reports.attempts, _uuid(id))

    async def cancel(self, id: UUID | str) -> JobInfo:
        """Cancel: at once when not started; a running function is asked to stop and learns it within 2 s."""
        await self._database().write(job_edits.cancel, [_uuid(id)])
        return await self.get(id)

    async def retry(self, id: UUID | str) -> JobInfo:
        """Queue an ended job again, with fresh budgets. Raises `JobExists` when it has not ended, `JobNotFound`."""
        if not await self._database().write(job_edits.retry, _uuid(id)):
            info = await self.get(id)
            raise JobExists(f"job {info.id} is {info.state}; only an ended job can be retried")
        self._woken()
        return await self.get(id)

    async def wait(self, id: UUID | str, timeout: float | None = None) -> JobInfo:
        """Return the ended job; `TimeoutError` after `timeout` seconds, `JobNotFound`."""
        info = await self.get(id)
        if info.state not in FINAL:
            await self._watcher().wait(info.id, timeout)
            info = await self.get(id)
        return info

    async def delete(self, id: UUID | str) -> None:
        """Delete an ended job with its history. Raises `JobExists` when it has not ended, `JobNotFound`."""
        if not await self._database().write(job_edits.remove, [_uuid(id)]):
            info = await self.get(id)
            raise JobExists(f"job {info.id} is {info.state}; cancel it and wait for its end before deleting it")

    async def prune(self) -> int:
        """Delete what is older than the retention now; the number of jobs deleted."""
        return await self._prune()


def _uuid(id: UUID | str) -> UUID:
    if isinstance(id, UUID):
        return id
    try:
        return UUID(id)
    except (ValueError, AttributeError, TypeError):
        raise JobNotFound(f"{str(id)[:60]!r} is no job id; ids are UUIDs") from None
