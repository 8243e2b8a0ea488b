"""One task of a process looks for the end of every job that `job.wait()` waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from onebeat.concurrency.alarm import Alarm
from onebeat.errors import DatabaseUnavailable, JobNotFound, NotStarted
from onebeat.model.events import Event, trouble
from onebeat.model.info import JobInfo
from onebeat.model.job import FINAL
from onebeat.store import reports
from onebeat.store.connection.database import Database

SOONEST = 0.02  # seconds until a job is looked at again at first
LATEST = 1.0  # seconds between two looks at a job in the end
EARLY = 0.25  # of that time: how much sooner a job is looked at when others are looked at anyway
AT_ONCE = 500  # jobs read in one statement

Futures = set[asyncio.Future[JobInfo]]


@dataclass(slots=True)
class _Awaited:
    """A job that is waited for: by whom, and when its state is read next (`loop.time()`)."""

    at: float
    delay: float = SOONEST
    futures: Futures = field(default_factory=set)


class Watcher:
    """Reads the jobs that are waited for, many in one statement; an end in this process is noticed at once."""

    def __init__(self, database: Database, announce: Callable[[Event], None] = lambda _: None) -> None:
        self._database = database
        self._announce = announce
        self._asked: dict[UUID, Futures] = {}  # the jobs that `_answer` reads next
        self._answering: dict[UUID, Futures] = {}  # those that it reads now
        self._waiting: dict[UUID, _Awaited] = {}
        self._ended: set[UUID] = set()  # their attempts ended in this process
        self._next = 0.0  # `loop.time()` of the next look
        self._task: asyncio.Task[None] | None = None
        self._alarm = Alarm()
        self._closed = False

    async def wait(self, id: UUID, timeout: float | None) -> JobInfo:
        """Return the job when it has ended.

        Raises `TimeoutError` after `timeout` seconds (not before the job was read once), `JobNotFound` for an unknown
        id, `DatabaseUnavailable` when the job cannot be read at first, `NotStarted` once this watcher is closed.
        """
        if self._closed:
            raise _stopped(id)
        loop = asyncio.get_running_loop()
        end: asyncio.Future[JobInfo] = loop.create_future()
        awaited = self._waiting.setdefault(id, _Awaited(at=loop.time() + SOONEST))
        awaited.futures.add(end)
        self._next = min(self._next, awaited.at)
        try:
            info = await self._get(id)
            if info.finished:
                return info
            try:
                async with asyncio.timeout(timeout):
                    return await end
            except TimeoutError:
                raise TimeoutError(f"job {id} ({info.task}) has not ended within {timeout:g} s") from None
        finally:
            if not end.cancel() and not end.cancelled():
                end.exception()  # retrieved: the caller has its answer, or was cancelled
            awaited.futures.discard(end)
            if not awaited.futures and self._waiting.get(id) is awaited:
                del self._waiting[id]

    async def _get(self, id: UUID) -> JobInfo:
        """Return the job as it is now, read together with others that are asked for at the same time."""
        future: asyncio.Future[JobInfo] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(id, set()).add(future)
        self._alarm.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch(), name="onebeat-watcher")
        return await future

    def ended(self, id: UUID) -> None:
        """Read this job at once, because its attempt ended in this process."""
        if id in self._waiting:
            self._ended.add(id)
            self._alarm.set()

    async def close(self) -> None:
        """Stop reading and end every wait with `NotStarted`."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        waiting = {id: awaited.futures for id, awaited in self._waiting.items()}
        for waits in (self._asked, self._answering, waiting):
            for id, futures in waits.items():
                for future in futures:
                    if not future.done():
                        future.set_exception(_stopped(id))

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting or self._asked:
            self._alarm.clear()
            try:
                await self._answer()
                await self._look(self._due(loop.time()))
            except DatabaseUnavailable:  # those who wait have timeouts of their own; look again when it may be back
                self._next = loop.time() + LATEST
            except Exception as error:  # noqa: BLE001 - announced; those who wait must not wait for ever
                self._next = loop.time() + LATEST
                self._announce(trouble("watcher", error, LATEST))
            await self._alarm.wait(max(0.0, self._next - loop.time()))

    async def _answer(self) -> None:
        """Read what was asked for; an error is for those who asked."""
        self._asked, self._answering = {}, self._asked
        asked = self._answering
        for ids in _parts(asked):
            try:
                found = await self._database.read(reports.jobs_by_id, ids)
            except Exception as error:  # noqa: BLE001 - raised in those who asked
                for future in [future for id in ids for future in asked[id] if not future.done()]:
                    future.set_exception(error)
            else:
                for id in ids:
                    _tell(id, asked[id], found.get(id))

    def _due(self, now: float) -> list[UUID]:
        """Return the jobs to look at, and note when to look at them again."""
        due, self._ended = self._ended & self._waiting.keys(), set()
        if self._next <= now:
            for id, awaited in self._waiting.items():
                if awaited.at - EARLY * awaited.delay <= now:
                    due.add(id)
                    awaited.at = now + awaited.delay
                    awaited.delay = min(1.5 * awaited.delay, LATEST)
            self._next = min((awaited.at for awaited in self._waiting.values()), default=now + LATEST)
        return list(due)

    async def _look(self, due: Sequence[UUID]) -> None:
        """Tell those who wait for these jobs which of them have ended, or do not exist any more."""
        for ids in _parts(due):
            states = await self._database.read(reports.states, ids)
            over = [id for id in ids if states.get(id) in FINAL]
            found = await self._database.read(reports.jobs_by_id, over) if over else {}
            for id in ids:
                if (id in found or id not in states) and id in self._waiting:
                    _tell(id, self._waiting[id].futures, found.get(id))


def _parts(ids: Iterable[UUID]) -> Iterator[list[UUID]]:
    every = list(ids)
    for first in range(0, len(every), AT_ONCE):
        yield every[first : first + AT_ONCE]


def _tell(id: UUID, futures: Futures, info: JobInfo | None) -> None:
    for future in futures:
        if not future.done():
            if info is None:
                future.set_exception(JobNotFound(f"no job {id}; it may have been pruned (see `retention`)"))
            else:
                future.set_result(info)


def _stopped(id: UUID) -> NotStarted:
    return NotStarted(
        f"the scheduler was stopped before job {id} had ended; the job goes on, so wait for it again in a scheduler "
        "that is running"
    )
