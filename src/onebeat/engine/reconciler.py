"""Compares what the database says this worker runs with what it runs: cancels, and gives strays back."""

from __future__ import annotations

from collections.abc import Callable, Collection
from uuid import UUID

from onebeat.engine.executor import Executor
from onebeat.store.connection.database import Database
from onebeat.store.jobs import claim, rescue

SECOND = 1_000_000
WHILE_RUNNING = 1 * SECOND  # a cancel is learnt within 2 s
YOUNG = 1.0  # seconds: while every run is younger there is nobody to tell and nothing astray
WHILE_IDLE = 15 * SECOND  # a stray can only come from a claim whose answer was lost


class Reconciler:
    """A claim whose answer was lost leaves rows that nobody runs: seen twice in a row, they go back to the queue."""

    def __init__(
        self,
        *,
        database: Database,
        executor: Executor,
        worker_id: Callable[[], str | None],
        unsettled_ids: Callable[[], set[UUID]],
        in_flight: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._database = database
        self._executor = executor
        self._worker_id = worker_id
        self._unsettled_ids = unsettled_ids
        self._in_flight = in_flight  # tokens of claims whose answers are on their way: late is not lost
        self._suspected: set[tuple[UUID, str]] = set()

    async def tick(self, now: int) -> int | None:
        """Look once."""
        worker_id = self._worker_id()
        if worker_id is None:
            return now + WHILE_RUNNING
        running = self._executor.running
        if running and not self._suspected and self._executor.oldest < YOUNG:
            return now + WHILE_RUNNING
        rows = await self._database.read(claim.held_by, worker_id)
        cancelled = [row.id for row in rows if row.cancel_requested_us is not None and row.id in running]
        self._executor.stop("cancel", [id for id in cancelled if running[id].stop_reason is None])
        waiting = self._unsettled_ids()
        strays = {(row.id, row.lease_token) for row in rows if not self._known(row.id, row.lease_token, waiting)}
        sure = [stray for stray in strays & self._suspected if not self._known(*stray, self._unsettled_ids())]
        if sure:
            await self._database.write(rescue.give_back, sure)
        self._suspected = strays
        return now + (WHILE_RUNNING if running or strays else WHILE_IDLE)

    def _known(self, id: UUID, token: str, waiting: set[UUID]) -> bool:
        run = self._executor.running.get(id)
        return (run is not None and run.job.lease_token == token) or id in waiting or token in self._in_flight()
