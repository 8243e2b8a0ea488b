"""`scheduler.workers` and `scheduler.queues`: who works on this database, and what waits in each lane."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onebeat.model.info import QueueInfo, WorkerInfo
from onebeat.store import reports
from onebeat.store.connection.database import Database


class Workers:
    """The processes that run an engine on this database."""

    def __init__(self, database: Callable[[], Database]) -> None:
        self._database = database

    async def list(self, *, state: str | None = None) -> Sequence[WorkerInfo]:
        """Workers, newest first, at most 1,000; `state`: "alive", "dead" or "stopped", by the database's clock."""
        found = await self._database().read(reports.workers)
        return [worker for worker in found if state is None or worker.state == state]


class Queues:
    """The lanes that jobs wait in."""

    def __init__(self, database: Callable[[], Database]) -> None:
        self._database = database

    async def list(self) -> Sequence[QueueInfo]:
        """Queues by name: those with unfinished jobs, and those that a live worker serves by name."""
        return await self._database().read(reports.queues)
