"""Keeps the free slots filled with claimed jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from onebeat.engine.identity import WorkerIdentity
from onebeat.model.ids import token
from onebeat.model.job import SUSPECT_CRASHES, Claimed
from onebeat.model.protocols import Clock
from onebeat.store.connection.database import Database
from onebeat.store.jobs import claim, rescue
from onebeat.store.jobs.kinds import KnownKinds

SECOND = 1_000_000
TURN = 2  # sweeps: for so long one worker of the fleet may make way for a suspect, so that it looks once at least
LONGEST_WAY = 5 * SECOND  # how long it claims nothing else before the suspect starts beside the jobs that still run
CONTENDED = 10_000  # microseconds: something is queued, but another worker looked at it under a lock; look again soon


class Slots(Protocol):
    """Where claimed jobs go: the executor."""

    @property
    def free(self) -> int:
        """How many jobs could start now."""

    def free_in(self, queue: str) -> int:
        """How many of a queue with slots of its own could start now."""

    @property
    def few(self) -> bool:
        """Whether less than half of the slots are free, and ends of runs are being written."""

    @property
    def idle(self) -> bool:
        """Whether nothing is running."""

    @property
    def accepts_suspect(self) -> bool:
        """Whether nothing is running that a suspect could harm for good, and no other suspect."""

    def startable(self, limit: int) -> Sequence[tuple[Sequence[str], int]]:
        """The task names that could start now, and how many of them: there may be fewer free processes than slots."""

    def start(self, job: Claimed) -> None:
        """Run it."""


class Claimer:
    """Takes as many jobs as can start at once, in one statement under one lease token; nothing is prefetched.

    `poll` and `sweep` are microseconds: between two looks for jobs, and between two calls of `look_for_suspects`.
    """

    def __init__(
        self,
        *,
        database: Database,
        slots: Slots,
        identity: WorkerIdentity,
        queues: Sequence[str] | None,
        own_slots: Mapping[str, int],
        poll: int,
        sweep: int,
        clock: Clock,
    ) -> None:
        self._database = database
        self._slots = slots
        self._identity = identity
        self._queues = queues
        self._own = list(own_slots)
        self._poll = poll
        self._suspect_turn = TURN * sweep
        self._dry_limit = min(LONGEST_WAY, sweep // 3)  # so that it has started before the next worker's turn
        self._clock = clock
        self.in_flight: set[str] = set()  # tokens of claims whose answers have not been started yet
        self._known = KnownKinds()
        self._turn = 0
        self._misses = 0  # looks in a row after which a job was left that this worker could have taken
        self._dry_since: int | None = None  # on the clock that never steps, as is the next one
        self._not_dry_before: int | None = None
        self.behind = False  # the last claims took all that could start, so more jobs are probably queued
        self._settled = False  # since the last look

    async def tick(self, now: int) -> int | None:
        """Claim once for each group of queues; look again at once when a claim came back full."""
        worker_id = self._identity.claimant
        if worker_id is None:
            return now + self._poll
        if self._dry_since is not None:
            if self._clock.boot() - self._dry_since < self._dry_limit and not self._slots.idle:
                return now + SECOND // 20
            self._dry_since = None
            if self._slots.accepts_suspect:
                await self._claim_suspect(worker_id)
        if self.behind and self._slots.few and not self._settled:
            return now + self._poll  # `settled` comes next
        self._settled = False
        again = False
        self._turn += 1
        for queues, excluded, limit in self._groups():
            again |= await self._claim(worker_id, limit, queues, excluded)
        if not again and self._slots.idle:
            await self._claim_suspect(worker_id)
        self.behind = again
        if again and self._slots.free > 0:
            return now
        self._misses = 0 if again or not await self._missed() else self._misses + 1
        return now + min(self._misses * CONTENDED or self._poll, self._poll)

    def settled(self) -> None:
        """Ends of runs were written: the next look claims, however few slots are free."""
        self._settled = True

    def _groups(self) -> list[tuple[Sequence[str] | None, Sequence[str], int]]:
        """What to claim in this tick: queues with slots of their own apart, the first one rotating."""
        free = self._slots.free
        groups: list[tuple[Sequence[str] | None, Sequence[str], int]] = []
        if self._own:
            first = self._turn % len(self._own)
            for name in self._own[first:] + self._own[:first]:
                groups.append(([name], (), min(free, self._slots.free_in(name))))
        if self._queues is None or not self._own:
            groups.append((self._queues, self._own, free))
        return [group for group in groups if group[2] > 0]

    async def _claim(self, worker_id: str, limit: int, queues: Sequence[str] | None, excluded: Sequence[str]) -> bool:
        """Claim and start at most `limit` jobs; True when there may be more of them."""
        more = False
        for tasks, most in self._slots.startable(limit):
            wanted = min(limit, most, self._slots.free, claim.CLAIMED_AT_ONCE)
            if wanted <= 0:
                continue
            taken = await self._take(
                worker_id,
                claim.claim,
                limit=wanted,
                tasks=tasks,
                queues=queues,
                excluded=excluded,
                known=self._known,
            )
            more |= taken == wanted
            limit -= taken
            if taken:
                await asyncio.sleep(0)  # each reaches its thread or process: the next look finds that place taken
        return more

    async def _take(self, worker_id: str, claiming: Callable[..., list[Claimed]], **what: Any) -> int:
        """Claim under a new token and start what was claimed; return how many jobs that were."""
        write = self._database.write_one if self._database.dialect.update_returning else self._database.write
        lease_token = token()
        self.in_flight.add(lease_token)
        try:
            claimed = await write(claiming, worker_id=worker_id, token=lease_token, **what)
            if self._identity.claimant == worker_id:
                for job in claimed:
                    self._slots.start(job)
            elif claimed:  # a drain began or the lease was lost meanwhile, so none starts here
                await self._database.write(rescue.give_back, [(job.id, job.lease_token) for job in claimed])
        finally:
            self.in_flight.discard(lease_token)
        return len(claimed)

    async def _claim_suspect(self, worker_id: str) -> None:
        for tasks, _ in self._slots.startable(1):
            for id in await self._database.read(claim.suspects, tasks=tasks, queues=self._queues):
                if await self._take(worker_id, claim.claim_suspect, id=id):
                    return

    async def _missed(self) -> bool:
        """Whether a job may be left because another's search held its row at the moment of ours."""
        if not self._database.dialect.locks_in_passing:
            return False
        for queues, excluded, limit in self._groups():
            for tasks, _ in self._slots.startable(limit):
                if await self._database.read(
                    claim.any_claimable, tasks=tasks, queues=queues, excluded=excluded, known=self._known
                ):
                    return True
        return False

    async def look_for_suspects(self) -> None:
        """Claim nothing else for at most `LONGEST_WAY` when a suspect waits and it is this worker's turn to run it."""
        worker_id = self._identity.claimant
        boot = self._clock.boot()
        is_early = self._not_dry_before is not None and boot < self._not_dry_before
        if worker_id is None or is_early or not self._slots.accepts_suspect:
            return
        for tasks, _ in self._slots.startable(1):
            look = claim.suspect_turn
            if await self._database.read(
                look, worker_id=worker_id, tasks=tasks, queues=self._queues, each=self._suspect_turn
            ):
                self._dry_since = boot
                self._not_dry_before = boot + self._suspect_turn
                return


def is_suspect(job: Claimed) -> bool:
    """Whether the job was running when a worker died, twice: it may be what kills them."""
    return job.crashes >= SUSPECT_CRASHES
