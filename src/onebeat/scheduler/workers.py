"""`scheduler.workers`: the processes that run jobs on this database."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onebeat.model.info import WorkerInfo
from onebeat.store import reports
from onebeat.store.connection.database import Database


class Workers:
    """The processes that run an engine on this database."""

    def __init__(self, database: Callable[[], Database]) -> None:
        self._database = database

    async def list(self, *, state: str | None = None) -> Sequence[WorkerInfo]:
        """Return the workers, newest first, at most 1,000.

        `state` keeps those that are "alive", "leaving", "dead" or "stopped" by the database's clock. A leaving one has
        drained, but work that it could not stop may go on for some seconds.
        """
        found = await self._database().read(reports.workers)
        return [worker for worker in found if state is None or worker.state == state]
