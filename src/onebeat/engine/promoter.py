"""Moves due scheduled jobs to the queue, timed by the earliest of them."""

from __future__ import annotations

from collections.abc import Callable

from onebeat.store.connection.database import Database
from onebeat.store.jobs import insert


class Promoter:
    """Sleeps until the earliest scheduled job is due, by the database's clock."""

    def __init__(self, *, database: Database, poll: int, woken: Callable[[], None]) -> None:
        self._database = database
        self._poll = poll
        self._woken = woken

    async def tick(self, now: int) -> int | None:
        """Queue what is due; look again when the next one is, at the latest after the poll interval."""
        earliest = await self._database.read(insert.next_run_at)
        if earliest is None:
            return now + self._poll
        if earliest > now + self._database.offset_us:
            return min(earliest - self._database.offset_us, now + self._poll)
        count, earliest = await self._database.write(insert.promote)
        if count:
            self._woken()
        if earliest is None:
            return now + self._poll
        return min(max(earliest - self._database.offset_us, now + 1_000), now + self._poll)
