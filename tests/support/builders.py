"""Short ways to arrange rows: a job, a worker, an ended attempt."""

from __future__ import annotations

import itertools
from typing import Any

from sqlalchemy import func, select

from onebeat.engine.identity import WorkerIdentity
from onebeat.model.ids import token, uuid7
from onebeat.model.job import SUCCESS, Claimed, NewJob, Outcome, settle
from onebeat.store import workers
from onebeat.store.connection.database import Database
from onebeat.store.jobs import claim
from onebeat.store.jobs.settle import Ended
from onebeat.store.tx import Tx
from onebeat.timing.backoff import Retry

SECOND = 1_000_000
_times = itertools.count(1_700_000_000_000_000, 1000)


def a_job(**changes: Any) -> NewJob:
    """A queued job of the task `work`."""
    values: dict[str, Any] = {
        "id": uuid7(next(_times)),
        "task": "work",
        "args": '{"a":[],"k":{}}',
        "tracking_id": "t" * 32,
    }
    return NewJob(**(values | changes))


def a_worker(**changes: Any) -> workers.NewWorker:
    """A worker that knows the task `work`, with a lease of a minute."""
    values: dict[str, Any] = {
        "id": token(),
        "host": "here",
        "boot_id": None,
        "pid": 1,
        "tasks": ("work",),
        "definitions": {},
        "queues": None,
        "slots": 10,
        "version": "test",
        "lease": 60 * SECOND,
    }
    return workers.NewWorker(**(values | changes))


class HeldLease:
    """A lease whose trust is what the test says."""

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        self.trusted = True


def identity_of(worker_id: str | None) -> WorkerIdentity:
    """The identity of a worker that fires and claims under this id; None: of a process without a lease."""
    identity = WorkerIdentity()
    identity.claiming = True
    if worker_id is not None:
        identity.take(HeldLease(worker_id))
    return identity


async def registered(database: Database, **changes: Any) -> str:
    """The id of a worker that is alive in the database."""
    worker = a_worker(**changes)
    await database.write(workers.register, worker)
    return worker.id


async def claimed(database: Database, worker_id: str, limit: int = 10, **changes: Any) -> list[Claimed]:
    """What this worker gets when it claims."""
    values: dict[str, Any] = {"worker_id": worker_id, "token": token(), "limit": limit, "tasks": ("work",)}
    return await database.write(claim.claim, **(values | changes))


async def claimed_suspects(database: Database, worker_id: str) -> list[Claimed]:
    """What this worker gets when it claims the first suspect of the task `work`."""
    for id in await database.read(claim.suspects, tasks=("work",)):
        return await database.write(claim.claim_suspect, worker_id=worker_id, token=token(), id=id)
    return []


def ended(job: Claimed, outcome: Outcome = SUCCESS, retry: Retry | None = None) -> Ended:
    """The end of an attempt and what settle() makes of it."""
    settlement = settle(
        errors=job.errors,
        crashes=job.crashes,
        max_attempts=job.max_attempts,
        at_most_once=job.at_most_once,
        outcome=outcome,
        retry=retry or Retry(jitter=False),
        random=0.5,
    )
    return Ended(job, outcome, settlement)


def jobs_by_state(tx: Tx) -> dict[str, int]:
    """State → how many jobs are in it."""
    c = tx.tables.jobs.c
    return {row.state: row.many for row in tx.execute(select(c.state, func.count().label("many")).group_by(c.state))}
