"""Workers: register, renew, leave, mark those that ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, delete, exists, select, update

from onebeat.model import payload
from onebeat.store.sql import RUNNING, padded, word
from onebeat.store.tx import Tx

ALIVE = word("alive")
LEAVING = word("leaving")  # it drained, but work that it could not stop is left: its jobs count as drained, not lost


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWorker:
    """One start of one process."""

    id: str
    host: str
    boot_id: str | None
    pid: int
    tasks: Sequence[str]
    definitions: Mapping[str, str]  # schedule id → definition hash
    queues: Sequence[str] | None
    slots: int
    version: str
    lease: int  # microseconds
    wake_address: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRow:
    """A worker's row."""

    id: str
    host: str
    pid: int
    state: str
    started_us: int
    heartbeat_us: int
    lease_until_us: int
    tasks: tuple[str, ...]
    queues: tuple[str, ...] | None
    slots: int
    version: str
    boot_id: str | None = None


def register(tx: Tx, worker: NewWorker) -> int:
    """Make the worker's row, alive under its lease; the database's now."""
    now = tx.now()
    tx.execute(
        tx.dialect.insert_ignore(tx.tables.workers).values(
            id=worker.id,
            host=worker.host[:255],
            boot_id=worker.boot_id,
            pid=worker.pid,
            started_us=now,
            heartbeat_us=now,
            lease_until_us=now + worker.lease,
            state="alive",
            tasks=payload.canonical(list(worker.tasks)),
            definitions=payload.canonical(dict(worker.definitions)),
            queues=None if worker.queues is None else payload.canonical(list(worker.queues)),
            slots=worker.slots,
            version=worker.version,
            wake_address=worker.wake_address,
        )
    )
    return now


def not_expired(tx: Tx) -> ColumnElement[bool]:
    """A lease that has run out is never renewed: dead is sticky."""
    c = tx.tables.workers.c
    return and_(c.state == ALIVE, c.lease_until_us > tx.clock)


def renew(tx: Tx, worker_id: str, lease: int) -> bool:
    """Prolong the lease by `lease` microseconds from now; False: it ran out or was taken, for good."""
    table = tx.tables.workers
    result = tx.execute(
        update(table)
        .where(table.c.id == worker_id, not_expired(tx))
        .values(lease_until_us=tx.dialect.greatest(table.c.lease_until_us, tx.clock + lease), heartbeat_us=tx.clock)
    )
    return bool(result.rowcount)


def shorten(tx: Tx, worker_id: str, lease: int) -> None:
    """Let the lease of a worker end `lease` microseconds from now; for simulations, whose workers have long leases."""
    table = tx.tables.workers
    tx.execute(
        update(table).where(table.c.id == worker_id, table.c.state == ALIVE).values(lease_until_us=tx.clock + lease)
    )


def expired(tx: Tx) -> ColumnElement[bool]:
    """Return the condition that a worker has not stopped by its row, but its lease ran out by the database's clock."""
    c = tx.tables.workers.c
    return and_(_present(tx), c.lease_until_us <= tx.clock)


def _present(tx: Tx) -> ColumnElement[bool]:
    return tx.tables.workers.c.state.in_([ALIVE, LEAVING])


def any_expired(tx: Tx) -> bool:
    """Whether a worker waits to be marked dead or stopped."""
    table = tx.tables.workers
    return tx.execute(select(table.c.id).where(expired(tx)).limit(1)).first() is not None


def mark_dead(tx: Tx) -> list[WorkerRow]:
    """Mark workers whose lease ran out: dead for good, or stopped where they were leaving. Return the dead ones."""
    table = tx.tables.workers
    rows = tx.execute(tx.dialect.skip_locked(select(table).where(expired(tx)).limit(100))).all()
    return _mark(tx, [_info(row) for row in rows])


def mark_dead_by_id(tx: Tx, ids: Sequence[str]) -> list[WorkerRow]:
    """Do the same as `mark_dead` for these workers, whose processes are known to be gone from this host."""
    if not ids:
        return []
    table = tx.tables.workers
    rows = tx.execute(tx.dialect.skip_locked(select(table).where(table.c.id.in_(padded(ids)), _present(tx))))
    return _mark(tx, [_info(row) for row in rows.all()])


def _mark(tx: Tx, found: list[WorkerRow]) -> list[WorkerRow]:
    """Write the ends of these locked workers and return the dead ones."""
    table = tx.tables.workers
    for before, after in (("alive", "dead"), ("leaving", "stopped")):
        if ids := [worker.id for worker in found if worker.state == before]:
            tx.execute(
                update(table)
                .where(table.c.id.in_(padded(ids)), table.c.state == word(before))
                .values(state=after, stopped_us=tx.clock)
            )
    return [worker for worker in found if worker.state == "alive"]


def leave(tx: Tx, worker_id: str, lease: int) -> bool:
    """Mark the worker leaving and cut its lease to `lease` microseconds from now; return False when it had ended.

    It may not claim any more. When the lease is over, or the process is gone, its jobs are rescued as drained.
    """
    table = tx.tables.workers
    result = tx.execute(
        update(table)
        .where(table.c.id == worker_id, table.c.state == ALIVE)
        .values(state="leaving", lease_until_us=tx.clock + lease)
    )
    return bool(result.rowcount)


def stop(tx: Tx, worker_id: str) -> bool:
    """Mark the worker stopped, the last thing it does."""
    table = tx.tables.workers
    result = tx.execute(
        update(table)
        .where(table.c.id == worker_id, table.c.state == ALIVE)
        .values(state="stopped", stopped_us=tx.clock)
    )
    return bool(result.rowcount)


def live(tx: Tx) -> list[WorkerRow]:
    """The workers that are alive by the database's clock."""
    table = tx.tables.workers
    return [_info(row) for row in tx.execute(select(table).where(not_expired(tx)).order_by(table.c.started_us))]


def present_on(tx: Tx, boot_id: str) -> list[str]:
    """Return the ids of the workers of this boot of a host that have not ended by their rows, leaving ones too."""
    table = tx.tables.workers
    return [row.id for row in tx.execute(select(table.c.id).where(_present(tx), table.c.boot_id == boot_id))]


def advertised(tx: Tx) -> dict[str, set[str]]:
    """Schedule id → the definition hashes that live workers advertise."""
    table = tx.tables.workers
    hashes: dict[str, set[str]] = {}
    for row in tx.execute(select(table.c.definitions).where(not_expired(tx))):
        for schedule_id, digest in payload.decode(row.definitions).items():
            hashes.setdefault(schedule_id, set()).add(digest)
    return hashes


def prune(tx: Tx, age: int, limit: int = 1000) -> int:
    """Delete dead and stopped workers that ended more than `age` microseconds ago and hold no job."""
    workers, jobs = tx.tables.workers, tx.tables.jobs
    query = (
        select(workers.c.id)
        .where(
            workers.c.state.in_([word("dead"), word("stopped")]),
            workers.c.stopped_us < tx.now() - age,
            ~exists().where(jobs.c.worker_id == workers.c.id, jobs.c.state == RUNNING),
        )
        .limit(limit)
    )
    ids = [row.id for row in tx.execute(query)]
    if ids:
        tx.execute(delete(workers).where(workers.c.id.in_(padded(ids))))
    return len(ids)


def _info(row: Row[Any]) -> WorkerRow:
    return WorkerRow(
        id=row.id,
        host=row.host,
        pid=row.pid,
        state=row.state,
        started_us=row.started_us,
        heartbeat_us=row.heartbeat_us,
        lease_until_us=row.lease_until_us,
        tasks=tuple(payload.decode(row.tasks)),
        queues=None if row.queues is None else tuple(payload.decode(row.queues)),
        slots=row.slots,
        version=row.version,
        boot_id=row.boot_id,
    )
