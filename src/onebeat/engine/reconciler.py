"""Compares what the database says this worker runs with what it runs: cancels, and gives strays back."""

from __future__ import annotations

from uuid import UUID

from onebeat.engine.claimer import Claimer
from onebeat.engine.executor import Executor
from onebeat.engine.identity import WorkerIdentity
from onebeat.engine.settler import Settler
from onebeat.store.connection.database import Database
from onebeat.store.jobs import claim, rescue

SECOND = 1_000_000
WHILE_RUNNING = 1 * SECOND  # a cancel is learnt within 2 s
YOUNG = 1.0  # seconds: while every run is younger there is nobody to tell
WHILE_IDLE = 15 * SECOND  # a stray can only come from a claim whose answer was lost; no look is skipped for longer


class Reconciler:
    """A claim whose answer was lost leaves rows that nobody runs: seen twice in a row, they go back to the queue."""

    def __init__(
        self,
        *,
        database: Database,
        identity: WorkerIdentity,
        claimer: Claimer,
        executor: Executor,
        settler: Settler,
    ) -> None:
        self._database = database
        self._identity = identity
        self._claimer = claimer
        self._executor = executor
        self._settler = settler
        self._suspected: set[tuple[UUID, str]] = set()
        self._cancel_requested = False  # since the last look, of a job that runs here
        self._looked = 0  # local clock of the last look, microseconds

    def cancel_requested(self, id: UUID) -> bool:
        """Note that somebody asked to cancel the job; return whether it runs here, so that a look is worth while."""
        if id not in self._executor.running:
            return False
        self._cancel_requested = True
        return True

    async def tick(self, now: int) -> int | None:
        """Compare once: ask cancelled runs to stop, and give back what was a stray in the last comparison too."""
        worker_id = self._identity.holder
        if worker_id is None:
            return now + WHILE_RUNNING
        running = self._executor.running
        if running and self._may_skip(now):
            return now + WHILE_RUNNING
        self._looked = now
        self._cancel_requested = False
        rows = await self._database.read(claim.held_by, worker_id)
        cancelled = [row.id for row in rows if row.cancel_requested_us is not None and row.id in running]
        self._executor.stop("cancel", [id for id in cancelled if running[id].stop_reason is None])
        waiting = self._settler.unsettled_ids
        strays = {(row.id, row.lease_token) for row in rows if not self._known(row.id, row.lease_token, waiting)}
        sure = [stray for stray in strays & self._suspected if not self._known(*stray, self._settler.unsettled_ids)]
        if sure:
            await self._database.write(rescue.give_back, sure)
        self._suspected = strays
        return now + (WHILE_RUNNING if running or strays else WHILE_IDLE)

    def _may_skip(self, now: int) -> bool:
        """Return whether all runs are young and nothing else asks for a look, so that short jobs cost no reads."""
        if self._suspected or self._cancel_requested or self._executor.oldest >= YOUNG:
            return False
        return 0 <= now - self._looked < WHILE_IDLE  # negative: the local clock was set back

    def _known(self, id: UUID, token: str, waiting: set[UUID]) -> bool:
        """Return whether the claim runs here, waits to be settled, or is an answer that is still on its way."""
        run = self._executor.running.get(id)
        return (run is not None and run.job.lease_token == token) or id in waiting or token in self._claimer.in_flight
