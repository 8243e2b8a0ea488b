"""`scheduler.jobs`: find jobs, wait for them, change them."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from onebeat.engine.wakeups import Wakeups
from onebeat.errors import ConfigurationError, InvalidArguments, JobExists, JobNotFound
from onebeat.model.checks import Seconds, check_filters, check_limit
from onebeat.model.info import AttemptInfo, JobInfo, Page
from onebeat.model.job import FINAL, JobState
from onebeat.scheduler.watcher import Watcher
from onebeat.store import reports
from onebeat.store.connection.database import Database
from onebeat.store.jobs import control
from onebeat.tracking.ids import check_tracking_id


class Jobs:
    """The jobs in the database, whichever process enqueued them. Ids are UUIDs or their text."""

    def __init__(
        self,
        database: Callable[[], Database],
        watcher: Callable[[], Watcher],
        *,
        wakeups: Wakeups,
        prune: Callable[[], Awaitable[int]],
    ) -> None:
        self._database = database
        self._watcher = watcher
        self._wakeups = wakeups
        self._prune = prune

    async def get(self, id: UUID | str) -> JobInfo:
        """Return the job as it is now; raises `JobNotFound`."""
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
        """Return the jobs that match every given filter, newest first, at most `limit` (1,000) in a page.

        `cursor` is the one of the previous page. Where more than 1,000 jobs match and very many newer ones do not, they
        are looked through in short steps. Raises `ConfigurationError` for a filter that no job can match, such
        as a name with a blank or an unknown state, and for a cursor that no page returned.
        """
        _check(state, tracking_id, tag=tag, task=task, queue=queue, schedule_id=schedule_id)
        wanted: dict[str, Any] = {
            "state": state, "task": task, "queue": queue, "schedule_id": schedule_id, "tracking_id": tracking_id,
            "tag": tag,
        }  # fmt: skip
        missing = check_limit(limit)
        page: Page[JobInfo] = await self._database().read(reports.jobs, limit=missing, cursor=cursor, **wanted)
        items = page.items
        while page.cursor is not None and len(items) < limit:
            missing = limit - len(items)
            page = await self._database().read(reports.jobs, limit=missing, cursor=page.cursor, few=False, **wanted)
            items += page.items
        return Page(tuple(item.bound(self) for item in items), page.cursor)

    async def count(
        self,
        *,
        state: JobState | str | None = None,
        task: str | None = None,
        queue: str | None = None,
        schedule_id: str | None = None,
        tracking_id: str | None = None,
        tag: str | None = None,
        at_most: int | None = None,
    ) -> int:
        """Return how many jobs match every given filter.

        The number is exact, and finding it takes as long as counting: about half a second for a million jobs. Counting
        ends at `at_most`, so with `at_most=1000` the answer 1,000 means "1,000 or more". Raises `ConfigurationError` as
        `list` does, and for an `at_most` that is no number above 0.
        """
        _check(state, tracking_id, tag=tag, task=task, queue=queue, schedule_id=schedule_id)
        if at_most is not None and (isinstance(at_most, bool) or not isinstance(at_most, int) or at_most < 1):
            raise ConfigurationError(f"at_most={at_most!r:.40} is no limit of a count; give a number above 0, or None")
        return await self._database().read(
            reports.count_jobs,
            at_most=at_most,
            state=state,
            task=task,
            queue=queue,
            schedule_id=schedule_id,
            tracking_id=tracking_id,
            tag=tag,
        )

    async def attempts(self, id: UUID | str) -> Sequence[AttemptInfo]:
        """Return the attempts that have ended, in order. Raises `JobNotFound`."""
        found = await self._database().read(reports.attempts, _uuid(id))
        if not found:
            await self.get(id)
        return found

    async def cancel(self, id: UUID | str) -> JobInfo:
        """Cancel a job at once when it has not started; else ask its function to stop, which learns it within 2 s.

        Raises `JobNotFound`.
        """
        await self._database().write(control.cancel, [_uuid(id)])
        info = await self.get(id)
        if info.state in FINAL:
            self._wakeups.job_ended(info.id)
        else:
            self._wakeups.cancel_requested(info.id)
        return info

    async def retry(self, id: UUID | str) -> JobInfo:
        """Queue an ended job again with a new count of attempts.

        Raises `JobExists` when it has not ended, `JobNotFound`.
        """
        if await self._database().write(control.retry, _uuid(id)) is None:
            info = await self.get(id)
            raise JobExists(f"job {info.id} is {info.state}; only an ended job can be retried")
        self._wakeups.jobs_queued()
        return await self.get(id)

    async def wait(self, id: UUID | str, timeout: Seconds | None = None) -> JobInfo:
        """Wait until the job has ended and return it.

        Raises `TimeoutError` after `timeout` (seconds or a timedelta), `JobNotFound`, and `NotStarted` when this
        scheduler is stopped meanwhile.
        """
        limit, own_id = _seconds(timeout), _uuid(id)
        self._database()  # `NotStarted` here and not in the watcher
        info = await self._watcher().wait(own_id, limit)
        return info.bound(self)

    async def delete(self, id: UUID | str) -> None:
        """Delete an ended job with its history. Raises `JobExists` when it has not ended, `JobNotFound`."""
        if not await self._database().write(control.delete_ended, _uuid(id)):
            info = await self.get(id)
            raise JobExists(f"job {info.id} is {info.state}; cancel it and wait for its end before deleting it")

    async def prune(self) -> int:
        """Delete now what is older than the retention; return the number of deleted jobs."""
        return await self._prune()


def _check(state: JobState | str | None, tracking_id: str | None, **names: str | None) -> None:
    """Raise `ConfigurationError` for filters that no job can match."""
    if state is not None and state not in list(JobState):
        raise ConfigurationError(f"no job is ever {str(state)[:60]!r}; states are {', '.join(JobState)}")
    check_tracking_id(tracking_id)
    check_filters(**names)


def _seconds(timeout: Seconds | None) -> float | None:
    """Return the seconds to wait, None without limit. A caller's remaining time may be negative."""
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if seconds is None or seconds == math.inf:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or math.isnan(seconds):
        raise InvalidArguments(f"timeout={timeout!r:.40} is not a duration; give seconds, a timedelta, or None")
    return float(seconds)


def _uuid(id: UUID | str) -> UUID:
    if isinstance(id, UUID):
        return id
    try:
        return UUID(id)
    except (ValueError, AttributeError, TypeError):
        raise JobNotFound(f"{str(id)[:60]!r} is not a job id; ids are UUIDs") from None
