"""`scheduler.queues`: how many unfinished jobs each queue has, and how many workers serve it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onebeat.model.info import QueueInfo
from onebeat.store import reports
from onebeat.store.connection.database import Database


class Queues:
    """The queues in which jobs wait."""

    def __init__(self, database: Callable[[], Database]) -> None:
        self._database = database

    async def list(self) -> Sequence[QueueInfo]:
        """Return the queues that hold unfinished jobs or that a live worker names, sorted by name."""
        return await self._database().read(reports.queues)
