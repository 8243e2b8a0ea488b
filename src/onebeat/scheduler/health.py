"""Whether this process can do its work."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Literal

from onebeat.engine.worker import Worker
from onebeat.store.connection.database import Database
from onebeat.store.tx import Tx

PATIENCE = 2.0  # seconds a health check may take


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """`ok` is what a readiness probe wants; the rest says why not."""

    ok: bool
    database: Literal["reachable", "unreachable", "closed"]
    worker: Literal["working", "draining", "client", "stopped"]
    worker_id: str | None = None
    running: int = 0
    round_trip: float | None = None  # seconds
    clock_offset: float | None = None  # seconds the database's clock is ahead of this process's
    problem: str | None = None


async def check(database: Database | None, worker: Worker | None, *, role: str) -> Health:
    """Ask the database once, for at most 2 s."""
    if database is None:
        return Health(ok=False, database="closed", worker="stopped", problem="the scheduler is not running")
    state: Literal["working", "draining", "client", "stopped"] = "client"
    if worker is not None:
        state = "working" if worker.working else "draining"
    began = time.monotonic()
    try:
        async with asyncio.timeout(PATIENCE):
            await database.read(_ask)
    except Exception as error:  # noqa: BLE001 - said in the answer
        words = str(error) or f"no answer within {PATIENCE:g} s"
        return Health(ok=False, database="unreachable", worker=state, problem=words)
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
