"""Writes outcomes back in batches, patiently, also during shutdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

from onebeat.engine.batch_size import BatchSize
from onebeat.engine.identity import WorkerIdentity
from onebeat.engine.wakeups import Wakeups
from onebeat.errors import DatabaseUnavailable
from onebeat.model.events import Event, FailedAfterComplete, JobSettled, SettlementLost, about, is_heard
from onebeat.model.job import SUCCESS, JobState
from onebeat.model.protocols import Clock
from onebeat.store.connection.database import Database
from onebeat.store.jobs import settle
from onebeat.store.jobs.settle import Ended

SECOND = 1_000_000
LOCKED_PAUSE = SECOND // 5  # until the next look at ends whose unique key another transaction has locked
BATCH = 500  # attempts in one transaction


class Settler:
    """Collects the ends of attempts and writes what has gathered while the last batch was being written."""

    def __init__(
        self,
        *,
        database: Database,
        identity: WorkerIdentity,
        wakeups: Wakeups,
        clock: Clock,
        announce: Callable[[Event], None],
        hears: Callable[[type[Event]], bool] = is_heard,
    ) -> None:
        self._batch = BatchSize(BATCH, limit=database.call_limit, clock=clock)
        self._database = database
        self._identity = identity
        self._wakeups = wakeups
        self._announce = announce
        self._hears = hears
        self._waiting: list[tuple[Ended, float]] = []

    @property
    def unsettled(self) -> int:
        """How many ends are not in the database yet."""
        return len(self._waiting)

    @property
    def unsettled_ids(self) -> set[UUID]:
        """The jobs whose ends are not in the database yet."""
        return {ended.job.id for ended, _ in self._waiting}

    @property
    def returning(self) -> int:
        """How many of the waiting ends give their job back for others to run."""
        return sum(ended.settlement.state is JobState.QUEUED for ended, _ in self._waiting)

    def put(self, ended: Ended, seconds: float) -> None:
        """Take the end of an attempt that ran for `seconds`."""
        first = not self._waiting  # the others are written with it, or by the tick that follows it
        self._waiting.append((ended, seconds))
        if first:
            self._wakeups.run_ended()

    async def tick(self, now: int) -> int | None:
        """Write one batch; what could not be written stays for the next tick."""
        batch = self._waiting[: self._batch.rows]
        if not batch:
            return None
        refused: dict[UUID, Exception] = {}
        with self._batch.writing(len(batch)):
            kept = await self._write([ended for ended, _ in batch], refused)
        self._waiting[: len(batch)] = []
        locked = {id for id, state in kept.items() if state is JobState.RUNNING}
        again = refused.keys() | locked
        self._waiting += [item for item in batch if item[0].job.id in again]  # the others do not wait for it
        delayed: list[int] = []
        silent = not self._hears(JobSettled)
        for ended, seconds in batch:
            if ended.job.id in again:
                continue
            if silent and ended.is_plain_success and ended.job.id in kept:
                self._wakeups.job_ended(ended.job.id)
            elif self._tell(ended, seconds, kept.get(ended.job.id)):
                delayed.append(ended.settlement.delay or 0)
        self._wakeups.slots_freed()
        if delayed:
            self._wakeups.jobs_delayed(now + self._database.offset_us + min(delayed))
        for error in refused.values():
            raise error
        if not self._waiting:
            return None
        return now + LOCKED_PAUSE if len(self._waiting) == len(locked) else now

    async def _write(self, batch: list[Ended], refused: dict[UUID, Exception]) -> dict[UUID, JobState]:
        """Write the ends and return the states of the jobs that were written.

        An end that the database refuses is written without its texts, and says so. One that is refused even so goes
        into `refused`.
        """
        worker_id = self._identity.last_id
        try:
            if settle.one_statement(self._database.dialect, batch):
                return await self._database.write_one(settle.succeed, batch)
            return await self._database.write(settle.settle, batch, worker_id=worker_id)
        except DatabaseUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - kept in `refused`, and raised when the others are written
            if len(batch) > 1:
                middle = len(batch) // 2
                return await self._write(batch[:middle], refused) | await self._write(batch[middle:], refused)
            if batch[0] == (bare := _without_texts(batch[0], error)):
                refused[batch[0].job.id] = error
                return {}
            return await self._write([bare], refused)

    def _tell(self, ended: Ended, seconds: float, state: JobState | None) -> bool:
        """Announce what became of the job; return whether it waits for a later time now. None: the claim was lost."""
        job, outcome, settlement = ended.job, ended.outcome, ended.settlement
        if state is None:
            self._announce(SettlementLost(**about(job), ending=str(outcome.ending)))
            return False
        if settle.was_completed(ended, state):
            self._announce(
                FailedAfterComplete(
                    **about(job), ending=str(outcome.ending), error=outcome.error, exception=outcome.exception
                )
            )
            outcome, settlement = SUCCESS, replace(settlement, state=state, reason=None, delay=None)
        if state is JobState.CANCELLED and not settlement.final:  # a cancel was requested before it could run again
            settlement = replace(settlement, state=state, reason="requested", delay=None)
        self._announce(
            JobSettled(
                **about(job),
                ending=str(outcome.ending),
                state=str(settlement.state),
                reason=settlement.reason,
                seconds=seconds,
                error=outcome.error,
                retry_in=None if settlement.delay is None else settlement.delay / SECOND,
                exception=outcome.exception,
            )
        )
        self._wakeups.job_ended(job.id)
        return settlement.state is JobState.SCHEDULED


def _without_texts(ended: Ended, error: Exception) -> Ended:
    """The same end with nothing in it that a database could refuse."""
    problem = f"its texts could not be stored: {type(error).__name__}"
    outcome = replace(ended.outcome, value=None, traceback=None, error=problem)
    return Ended(ended.job, outcome, ended.settlement)
