"""Writes a running job's progress, at most twice a second."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

from onebeat.model import payload
from onebeat.model.job import Claimed
from onebeat.model.protocols import Clock
from onebeat.store.connection.database import Database
from onebeat.store.jobs import control

PROGRESS_EACH = 0.5  # seconds between two writes of one job's progress


class ProgressWriter:
    """Writes a job's progress at most once each half second, and always the last report.

    A write that fails is announced and fails no job.
    """

    def __init__(self, database: Database, job: Claimed, *, clock: Clock, trouble: Callable[[Exception], None]) -> None:
        self._database = database
        self._job = job
        self._clock = clock
        self._trouble = trouble
        self._latest: str | None = None
        self._written = -math.inf  # monotonic seconds of the last write
        self._later: asyncio.Task[None] | None = None
        self._over = asyncio.Event()

    async def __call__(self, report: dict[str, Any]) -> None:
        """Take a report; raise `InvalidArguments` where the function calls when it cannot be stored."""
        self._latest = payload.encode(report, what="progress")
        left = self._written + PROGRESS_EACH - self._clock.monotonic()
        if left <= 0:
            await self._write()
        elif self._later is None or self._later.done():
            self._later = asyncio.create_task(self._write_after(left))

    async def _write_after(self, delay: float) -> None:
        try:
            await asyncio.wait_for(self._over.wait(), delay)
        except TimeoutError:
            pass  # the half second is over
        await self._write()

    async def write_last(self) -> None:
        """Write the report that still waits for its half second, now that the function has returned."""
        self._over.set()
        if self._later is not None:
            await self._later
        await self._write()

    async def _write(self) -> None:
        if self._latest is None:
            return
        text, self._latest = self._latest, None
        self._written = self._clock.monotonic()
        try:
            await self._database.write(control.progress, self._job.id, self._job.lease_token, text)
        except Exception as error:  # noqa: BLE001 - announced; the function's own end counts
            self._trouble(error)
