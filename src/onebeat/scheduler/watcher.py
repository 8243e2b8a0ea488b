"""One task of a process looks for the end of every job that `job.wait()` waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

from onebeat.concurrency.alarm import Alarm
from onebeat.errors import DatabaseUnavailable, JobNotFound, NotStarted
from onebeat.model.events import Event, trouble
from onebeat.model.job import FINAL
from onebeat.store import reports
from onebeat.store.connection.database import Database

SOONEST = 0.02  # seconds between two reads at first
LATEST = 1.0  # seconds between two reads in the end
AT_ONCE = 500  # jobs read in one statement


class Watcher:
    """Reads the states of all jobs that are waited for in one statement; an end in this process is noticed at once."""

    def __init__(self, database: Database, announce: Callable[[Event], None] = lambda _: None) -> None:
        self._database = database
        self._announce = announce
        self._waiting: dict[UUID, set[asyncio.Future[None]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._alarm = Alarm()
        self._closed = False

    async def wait(self, id: UUID, timeout: float | None) -> None:
        """Return when the job has ended.

        Raises `TimeoutError` after `timeout` seconds, `JobNotFound` for an unknown id, `NotStarted` once it is closed.
        """
        if self._closed:
            raise _stopped(id)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(id, set()).add(future)
        self._alarm.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch(), name="onebeat-watcher")
        try:
            async with asyncio.timeout(timeout):
                await future
        finally:
            futures = self._waiting.get(id, set())
            futures.discard(future)
            if not futures:
                self._waiting.pop(id, None)

    def ended(self, id: UUID) -> None:
        """Read at once, because this job ended in this process."""
        if id in self._waiting:
            self._alarm.set()

    async def close(self) -> None:
        """Stop reading and end every wait with `NotStarted`."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        for id, futures in self._waiting.items():
            for future in futures:
                if not future.done():
                    future.set_exception(_stopped(id))

    async def _watch(self) -> None:
        delay = SOONEST
        while self._waiting:
            self._alarm.clear()
            try:
                await self._look()
            except DatabaseUnavailable:  # those who wait have timeouts of their own; look again when it may be back
                delay = LATEST
            except Exception as error:  # noqa: BLE001 - announced; those who wait must not wait for ever
                delay = LATEST
                self._announce(trouble("watcher", error, delay))
            woken = await self._alarm.wait(delay)
            delay = SOONEST if woken else min(delay * 1.5, LATEST)

    async def _look(self) -> None:
        waiting = list(self._waiting)
        for first in range(0, len(waiting), AT_ONCE):
            ids = waiting[first : first + AT_ONCE]
            self._tell(ids, await self._database.read(reports.states, ids))

    def _tell(self, ids: Sequence[UUID], states: Mapping[UUID, str]) -> None:
        for id in ids:
            if id in states and states[id] not in FINAL:
                continue
            for future in self._waiting.get(id, ()):
                if not future.done():
                    if id in states:
                        future.set_result(None)
                    else:
                        future.set_exception(JobNotFound(f"no job {id}; it may have been pruned"))


def _stopped(id: UUID) -> NotStarted:
    return NotStarted(
        f"the scheduler was stopped before job {id} had ended; the job goes on, so wait for it again in a scheduler "
        "that is running"
    )
