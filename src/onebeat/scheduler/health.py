"""Health: whether this process reaches the database and runs jobs."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Literal

from onebeat.engine.worker import Worker
from onebeat.store.connection.database import Database
from onebeat.store.tx import Tx

LIMIT = 2.0  # seconds a health check may take


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """`ok` answers a readiness probe; the other fields give the reasons."""

    ok: bool
    database: Literal["reachable", "unreachable", "closed"]
    worker: Literal["working", "draining", "client", "stopped"]
    worker_id: str | None = None
    running: int = 0
    round_trip: float | None = None  # seconds
    clock_offset: float | None = None  # seconds the database's clock is ahead of this process's
    problem: str | None = None


async def check(database: Database | None, worker: Worker | None) -> Health:
    """Ask the database once, for at most 2 s; None stands for a scheduler that is not started. Never raises."""
    if database is None:
        return Health(ok=False, database="closed", worker="stopped", problem="the scheduler is not running")
    state: Literal["working", "draining", "client", "stopped"] = "client"
    if worker is not None:
        state = "working" if worker.working else "draining"
    began = time.monotonic()
    try:
        async with asyncio.timeout(LIMIT):
            await database.read(_ask)
    except Exception as error:  # noqa: BLE001 - the answer holds it
        problem = str(error) or f"no answer within {LIMIT:g} s"
        return Health(ok=False, database="unreachable", worker=state, problem=problem)
    return Health(
        ok=state in ("working", "client"),
        database="reachable",
        worker=state,
        worker_id=None if worker is None else worker.id,
        running=0 if worker is None else len(worker.executor.running),
        round_trip=time.monotonic() - began,
        clock_offset=database.offset_us / 1_000_000,
    )


def _ask(tx: Tx) -> int:
    return tx.now()
