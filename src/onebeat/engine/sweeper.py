"""Marks dead workers, rescues their jobs, heals lost releases, prunes history."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from random import Random

from onebeat.engine import run_file
from onebeat.engine.batch_size import BatchSize
from onebeat.engine.identity import WorkerIdentity
from onebeat.engine.wakeups import AT_ONCE, Wakeups
from onebeat.model.events import Event, JobRescued, WorkerDied, about
from onebeat.model.job import FINAL, JobState
from onebeat.model.protocols import Clock
from onebeat.store import locks, retention, workers
from onebeat.store.connection.database import Database
from onebeat.store.jobs import control, release, rescue
from onebeat.store.schedules import declare, rezone

SECOND = 1_000_000
PRUNE_EACH = 300 * SECOND
FREQUENT_WITHIN = 2 * PRUNE_EACH  # so that no fire falls between two looks
REZONE_EACH = 86_400 * SECOND  # zone data changes with packages
REZONED_AT_ONCE = 10  # transactions in one sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionAges:
    """The ages at which ended rows are deleted, in microseconds; None keeps them for ever."""

    succeeded: int | None = 7 * 86_400 * SECOND
    failed: int | None = 30 * 86_400 * SECOND
    fires: int | None = 30 * 86_400 * SECOND
    workers: int | None = 7 * 86_400 * SECOND


class Sweeper:
    """Every worker sweeps; the row locks and conditions make one of them do each thing."""

    def __init__(
        self,
        *,
        database: Database,
        identity: WorkerIdentity,
        interval: int,
        retention: RetentionAges,
        look_for_suspects: Callable[[], Awaitable[None]],
        wakeups: Wakeups,
        clock: Clock,
        random: Random,
        announce: Callable[[Event], None],
    ) -> None:
        self._database = database
        self._identity = identity
        self._interval = interval
        self._retention = retention
        self._look_for_suspects = look_for_suspects
        self._wakeups = wakeups
        self._random = random
        self._announce = announce
        self._boot_id = run_file.boot_id()
        self._batch = BatchSize(rescue.RESCUED_AT_ONCE, limit=database.call_limit, clock=clock)
        self._swept = self._pruned = self._rezoned = 0  # when each was last begun, local microseconds
        self._pause = 0  # microseconds from the last sweep to the next one
        self._pruning: AsyncIterator[int] | None = None  # what is left of a pruning that has begun
        self._outdated: list[tuple[rezone.Zone, str]] = []  # zones, and the schedule to go on after
        self._counted = ""  # the schedule whose records were counted last

    async def tick(self, now: int) -> int | None:
        """Sweep when that is due, else delete one batch of old rows while there are more.

        Returns when to sweep again, with jitter so that a fleet does not sweep in step. A sweep never waits for more
        than one batch of the pruning.
        """
        if self._swept <= now < self._swept + self._pause:  # not so after the local clock was set back
            if self._pruning is not None and await anext(self._pruning, None) is not None:
                return now
            self._pruning = None
            return self._swept + self._pause
        await self._sweep(now)
        self._swept = now
        self._pause = int(self._interval * (0.9 + 0.2 * self._random.random()))
        if _is_over(PRUNE_EACH, self._pruned, now) and self._pruning is None:
            self._pruned = now
            self._pruning = prune_in_batches(self._database, self._retention, self._perhaps_crowded())
        return now + self._pause if self._pruning is None else now

    async def _sweep(self, now: int) -> None:
        await self._bury()
        await self._rescue()
        await self._release()
        if wrong := await self._database.read(declare.disputed):
            await self._database.write(declare.arbitrate, wrong)
        await self._look_for_suspects()
        await self._rezone(now)

    async def _bury(self) -> None:
        """Mark dead whose lease ran out, and siblings on this host whose process is gone."""
        dead = await self._database.write(workers.mark_dead) if await self._database.read(workers.any_expired) else []
        if self._boot_id is not None:
            own = self._identity.claimant
            here = await self._database.read(workers.present_on, self._boot_id)
            if gone := run_file.dead_siblings([id for id in here if id != own]):
                dead += await self._database.write(workers.mark_dead_by_id, gone)
        for worker in dead:
            self._announce(WorkerDied(worker_id=worker.id, host=worker.host, pid=worker.pid))

    async def _release(self) -> None:
        """Release what waits for nothing any more; the look for it holds no lock."""
        after: str | None = ""
        while after is not None:
            lost, after = await self._database.read(release.lost_releases, after)
            released = await self._database.write(release.release, lost) if lost else 0
            if released:
                self._wakeups.jobs_queued()
                self._wakeups.jobs_delayed(AT_ONCE)

    async def _rezone(self, now: int) -> None:
        """Move next fires that other zone data gave, a part of them in each sweep, so that rescues need not wait."""
        if _is_over(REZONE_EACH, self._rezoned, now) and not self._outdated:
            self._outdated = [(zone, "") for zone in await self._database.read(rezone.outdated)]
            self._rezoned = now
        for _ in range(REZONED_AT_ONCE):
            if not self._outdated:
                return
            zone, after = self._outdated[0]
            moved, last = await self._database.write(rezone.rezone, zone, after)
            self._outdated[:1] = [] if last is None else [(zone, last)]
            if moved:
                self._wakeups.schedules_changed()

    async def _perhaps_crowded(self) -> AsyncIterator[list[str]]:
        """The schedules that fire often, which are those that can have too many records, and each time a few others."""
        age = self._retention.fires
        assert age is not None, "else no records are deleted"
        often = max(1, retention.MOST_FIRES * FREQUENT_WITHIN // age)
        ids = await self._database.read(retention.frequent, FREQUENT_WITHIN, often)
        for start in range(0, len(ids), retention.LOOKED_AT):
            yield ids[start : start + retention.LOOKED_AT]
        ids = await self._database.read(retention.following, self._counted)
        self._counted = ids[-1] if ids else ""
        yield ids

    async def _rescue(self) -> None:
        while rescued := await self._rescue_batch():
            for job in rescued:
                self._announce(
                    JobRescued(**about(job), state=job.state, reason=job.reason, from_worker=job.from_worker)
                )
                if job.state in FINAL:
                    self._wakeups.job_ended(job.id)
            self._wakeups.jobs_queued()
            if any(job.state == JobState.SCHEDULED for job in rescued):
                self._wakeups.jobs_delayed(AT_ONCE)

    async def _rescue_batch(self) -> list[rescue.Rescued]:
        limit = self._batch.rows
        with self._batch.writing(limit):
            return await self._database.write(rescue.rescue, random=self._random, limit=limit)


def _is_over(interval: int, began: int, now: int) -> bool:
    """Return whether `interval` has passed since `began`; True when the local clock was set back since."""
    return not began <= now < began + interval


async def prune(database: Database, keep: RetentionAges) -> int:
    """Delete what is older than the retention, and unused locks, in short transactions; the number of jobs deleted."""
    return sum([jobs async for jobs in prune_in_batches(database, keep, _every_schedule(database))])


async def prune_in_batches(
    database: Database, keep: RetentionAges, schedules: AsyncIterable[list[str]]
) -> AsyncIterator[int]:
    """Delete what is older than the retention, and unused locks: one short transaction for each value.

    `schedules`: those that may have too many fire records. The values are the numbers of jobs deleted, 0 where a batch
    deleted other rows, or found none to delete.
    """
    while count := await database.write(control.prune, succeeded=keep.succeeded, failed=keep.failed):
        yield count
    if keep.fires is not None:
        while await database.write(retention.prune_fires, keep.fires):
            yield 0
        async for ids in schedules:
            for schedule_id in await database.read(retention.crowded, ids, retention.MOST_FIRES):
                while await database.write(retention.prune_crowd, schedule_id, retention.MOST_FIRES):
                    yield 0
            yield 0
        while await database.write(retention.prune_finished, keep.fires):
            yield 0
    if keep.workers is not None:
        await database.write(workers.prune, keep.workers)
        yield 0
    while await database.write(locks.prune):
        yield 0
    await database.write(declare.prune)
    yield 0


async def _every_schedule(database: Database) -> AsyncIterator[list[str]]:
    after = ""
    while ids := await database.read(retention.following, after):
        yield ids
        after = ids[-1]
