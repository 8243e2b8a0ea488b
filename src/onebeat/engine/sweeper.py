"""Marks dead workers, rescues their jobs, heals lost releases, prunes history."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

from onebeat.engine import run_file
from onebeat.engine.identity import WorkerIdentity
from onebeat.engine.wakeups import Wakeups
from onebeat.model.events import Event, JobRescued, WorkerDied, about
from onebeat.model.job import FINAL, JobState
from onebeat.store import locks, retention, workers
from onebeat.store.connection.database import Database
from onebeat.store.jobs import control, release, rescue
from onebeat.store.schedules import declare, rezone

SECOND = 1_000_000
PRUNE_EACH = 300 * SECOND
REZONE_EACH = 86_400 * SECOND  # zone data changes with packages


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
        look_for_suspects: Callable[[int], Awaitable[None]],
        wakeups: Wakeups,
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
        self._next_prune = 0
        self._next_rezone = 0

    async def tick(self, now: int) -> int | None:
        """Sweep once; return when to sweep again, with jitter so that a fleet does not sweep in step."""
        await self._database.measure_offset()
        await self._bury()
        await self._rescue()
        await self._database.write(release.heal_releases)
        await self._database.write(declare.arbitrate)
        await self._look_for_suspects(now)
        if now >= self._next_rezone:
            self._next_rezone = now + REZONE_EACH
            await self._rezone()
        if now >= self._next_prune:
            self._next_prune = now + PRUNE_EACH
            await prune(self._database, self._retention)
        return now + int(self._interval * (0.9 + 0.2 * self._random.random()))

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

    async def _rezone(self) -> None:
        moved = await self._database.write(rezone.rezone)
        if moved:
            self._wakeups.schedules_changed()

    async def _rescue(self) -> None:
        while rescued := await self._database.write(rescue.rescue, random=self._random):
            for job in rescued:
                self._announce(
                    JobRescued(**about(job), state=job.state, reason=job.reason, from_worker=job.from_worker)
                )
                if job.state in FINAL:
                    self._wakeups.job_ended(job.id)
            self._wakeups.jobs_queued()
            if any(job.state == JobState.SCHEDULED for job in rescued):
                self._wakeups.jobs_delayed()


async def prune(database: Database, keep: RetentionAges) -> int:
    """Delete what is older than the retention, and unused locks, in short transactions; the number of jobs deleted."""
    deleted = 0
    while count := await database.write(control.prune, succeeded=keep.succeeded, failed=keep.failed):
        deleted += count
    if keep.fires is not None:
        await _prune_fires(database, keep.fires)
    if keep.workers is not None:
        await database.write(workers.prune, keep.workers)
    while await database.write(locks.prune):
        pass
    return deleted


async def _prune_fires(database: Database, age: int) -> None:
    while await database.write(retention.prune_fires, age):
        pass
    for schedule_id in await database.read(retention.crowded, retention.MOST_FIRES):
        while await database.write(retention.prune_crowd, schedule_id, retention.MOST_FIRES):
            pass
    while await database.write(retention.prune_finished, age):
        pass
