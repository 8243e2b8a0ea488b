"""Moves due scheduled jobs to the queue, timed by the earliest of them."""

from __future__ import annotations

from onebeat.engine.wakeups import Wakeups
from onebeat.store.connection.database import Database
from onebeat.store.jobs import insert

SOONEST = 1_000  # microseconds: a job that is due but was held by another worker is looked at again


class Promoter:
    """Sleeps until the earliest scheduled job is due, by the database's clock."""

    def __init__(self, *, database: Database, poll: int, wakeups: Wakeups) -> None:
        self._database = database
        self._poll = poll
        self._wakeups = wakeups
        self._looks_at: int | None = None  # when the next tick is due by the local clock; None: unknown, or it runs now

    def is_awaited(self, run_at: int) -> bool:
        """Return whether the next tick comes early enough for a job that is due at `run_at` by the database's clock."""
        return self._looks_at is not None and self._looks_at + self._database.offset_us <= run_at

    async def tick(self, now: int) -> int | None:
        """Queue what is due; return when the next job is due, at the latest one poll interval from now."""
        self._looks_at = None  # a job that is stored during this tick may be missing in what it reads
        self._looks_at = await self._look(now)
        return self._looks_at

    async def _look(self, now: int) -> int:
        earliest = await self._database.read(insert.next_run_at)
        if earliest is None:
            return now + self._poll
        if earliest > now + self._database.offset_us:
            return min(earliest - self._database.offset_us, now + self._poll)
        count, earliest = await self._database.write(insert.promote)
        if count:
            self._wakeups.jobs_queued()
        else:  # another worker was first, or a clock was stepped: by the offset known so far it would ask at once
            await self._database.measure_offset()
        if earliest is None:
            return now + self._poll
        return min(max(earliest - self._database.offset_us, now + SOONEST), now + self._poll)
