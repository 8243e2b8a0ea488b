"""Claim queued jobs for a worker, and find out which ones it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import starmap
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    CompoundSelect,
    Integer,
    Row,
    Select,
    Table,
    Update,
    and_,
    bindparam,
    exists,
    func,
    not_,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from onebeat.model.job import Claimed, JobState
from onebeat.store.jobs.kinds import Kind, KnownKinds, few_queued, is_suspect, ordinary, queued_kinds, search_kinds
from onebeat.store.sql import QUEUED, number, padded, use_index, word
from onebeat.store.tx import Tx
from onebeat.store.workers import live

CLAIMED_AT_ONCE = 400  # SQLite merges at most 500 searches in one statement
SUSPECTS_READ = 1_000  # of those that have died least: a look stays short when whole workers died again and again

Shape = tuple[bool, bool]  # of a claim's statement: only these queues, all but these


def alive(tx: Tx, worker_id: ColumnElement[str] | str) -> ColumnElement[bool]:
    """The worker's row says that it may claim: alive, and its lease has not run out by the database's clock."""
    workers = tx.tables.workers
    return exists().where(
        workers.c.id == worker_id, workers.c.state == word("alive"), workers.c.lease_until_us > tx.clock
    )


def claim(
    tx: Tx,
    *,
    worker_id: str,
    token: str,
    limit: int,
    tasks: Sequence[str],
    queues: Sequence[str] | None = None,
    excluded: Sequence[str] = (),
    known: KnownKinds | None = None,
) -> list[Claimed]:
    """Claim up to `limit` queued jobs for this worker under one lease token; two workers never receive the same job.

    `queues` None: every queue but the `excluded`. A worker that is not alive in the database receives nothing, and
    nobody receives a suspect: see `claim_suspect`. `known` saves searches when the worker's next claims receive it too.

    It reads as many jobs as it takes, and one more for each queue and task that is queued, however many others wait.
    """
    shape, values = _wanted(tasks, queues, excluded)
    values |= {"b_worker": worker_id, "b_token": token, "b_limit": min(limit, CLAIMED_AT_ONCE)}
    if tx.dialect.lateral:
        return _claimed(tx, tx.prepared(_claim_first, shape), values)
    if tx.dialect.searches_steps:
        kinds = [Kind(row.queue, row.task) for row in tx.execute(tx.prepared(_best_kinds, shape), values)]
        return _claimed(tx, tx.prepared(_claim_merged, len(kinds)), values | _names(kinds)) if kinds else []
    known = known or KnownKinds()
    if (few := few_queued(tx, known)) is not None:
        wanted = _chosen({Kind(row.queue, row.task) for row in few}, tasks, queues, excluded)
        return _claim_few(tx, [row for row in few if Kind(row.queue, row.task) in wanted], values)
    incomplete = known.probed > 0
    claimed = _claim_shares(tx, _chosen(search_kinds(tx, known), tasks, queues, excluded), values)
    if incomplete and (left := values["b_limit"] - len(claimed)) > 0:
        known.probed = 0
        kinds = _chosen(search_kinds(tx, known), tasks, queues, excluded)
        claimed += _claim_shares(tx, kinds, values | {"b_limit": left})
    return claimed


def any_claimable(
    tx: Tx,
    *,
    tasks: Sequence[str],
    queues: Sequence[str] | None = None,
    excluded: Sequence[str] = (),
    known: KnownKinds | None = None,
) -> bool:
    """Whether a job is queued that `claim` would take; it locks nothing, so it hides no job from another's claim."""
    shape, values = _wanted(tasks, queues, excluded)
    values |= {"b_limit": 1}
    if tx.dialect.searches_steps:
        return tx.execute(tx.prepared(_some_kind, shape), values).first() is not None
    known = known or KnownKinds()
    known.probed = 0
    few = few_queued(tx, known)
    found = search_kinds(tx, known) if few is None else {Kind(row.queue, row.task) for row in few}
    kinds = _chosen(found, tasks, queues, excluded)
    if few is not None:
        return bool(kinds)
    return bool(kinds) and tx.execute(tx.prepared(_first_of, len(kinds)), values | _names(kinds)).first() is not None


def claim_suspect(tx: Tx, *, worker_id: str, token: str, id: UUID) -> list[Claimed]:
    """Claim this job, one that was running when a worker died, twice; nothing when another worker has taken it."""
    values = {"b_worker": worker_id, "b_token": token, "b_id": id}
    if tx.dialect.update_returning:
        return _claimed(tx, tx.prepared(_claim_by_id), values)
    return _claim_locked(tx, tx.prepared(_lock_by_id), values)


def suspects(
    tx: Tx, *, tasks: Sequence[str], queues: Sequence[str] | None = None, excluded: Sequence[str] = ()
) -> list[UUID]:
    """Return queued jobs that were running when a worker died, twice, in the order of claims; nothing is locked."""
    rows = tx.execute(tx.prepared(_suspects)).all()
    if not rows:
        return []
    wanted = set(_chosen({Kind(row.queue, row.task) for row in rows}, tasks, queues, excluded))
    return [row.id for row in sorted(rows, key=_order) if Kind(row.queue, row.task) in wanted]


def _suspects(tx: Tx) -> Select[Any]:
    table = tx.tables.jobs
    columns = table.c.id, table.c.queue, table.c.task, table.c.rank, table.c.run_at_us
    query = select(*columns).where(is_suspect(table.c)).order_by(table.c.crashes).limit(number(SUSPECTS_READ))
    return use_index(query, table, "suspects")


def _wanted(
    tasks: Sequence[str], queues: Sequence[str] | None, excluded: Sequence[str]
) -> tuple[Shape, dict[str, Any]]:
    values: dict[str, Any] = {"b_tasks": padded(tasks or [""])}
    if queues is not None:
        values["b_queues"] = padded(queues)
    elif excluded:
        values["b_excluded"] = padded(excluded)
    return (queues is not None, bool(excluded) and queues is None), values


def _is_wanted(tx: Tx, shape: Shape, columns: Any) -> ColumnElement[bool]:
    only, excluding = shape
    condition = tx.dialect.among(columns.task, "b_tasks")
    if only:
        condition = and_(condition, tx.dialect.among(columns.queue, "b_queues"))
    if excluding:
        condition = and_(condition, not_(tx.dialect.among(columns.queue, "b_excluded")))
    return condition


def _order(columns: Any) -> tuple[Any, Any, Any]:
    return columns.rank, columns.run_at_us, columns.id


def _limit() -> BindParameter[int]:
    return bindparam("b_limit", type_=Integer)


def _claimed(tx: Tx, statement: ReturningUpdate[Any], values: dict[str, Any]) -> list[Claimed]:
    return sorted(starmap(Claimed, tx.execute(statement, values).all()), key=_order)


def _take_returning(tx: Tx, ids: Select[Any]) -> ReturningUpdate[Any]:
    table = tx.tables.jobs
    return update(table).where(table.c.id.in_(ids)).values(_taken(tx, tx.clock)).returning(*_columns(tx))


# ── PostgreSQL: everything in one statement ───────────────────────────────────────────────────────────────────────────
def _claim_first(tx: Tx, shape: Shape) -> ReturningUpdate[Any]:
    """How many jobs of each kind are among the first ones is counted without a lock; then so many of each are locked.

    So no more rows are locked than are taken, and a row that another claim holds is replaced by the next of its kind.
    """
    jobs = tx.tables.jobs
    best = _best_kinds(tx, shape).subquery("best")
    each = select(*_order(jobs.c)).where(_of(jobs, best.c)).order_by(*_order(jobs.c)).limit(_limit()).lateral("each")
    first = (
        select(best).select_from(best.join(each, true())).order_by(*_order(each.c)).limit(_limit()).subquery("first")
    )
    shares = select(first, func.count().label("share")).group_by(*first.c).cte("shares").prefix_with("MATERIALIZED")
    locking = select(jobs.c.id).where(_of(jobs, shares.c)).order_by(*_order(jobs.c)).limit(shares.c.share)
    locked = tx.dialect.skip_locked(locking).lateral("locked")
    chosen = (
        select(locked.c.id).select_from(shares.join(locked, true())).cte("chosen").prefix_with("MATERIALIZED")
    )  # a sub-query may be run again for each row, and lock more than the limit
    return _take_returning(tx, select(chosen.c.id))


def _of(jobs: Table, kind: Any) -> ColumnElement[bool]:
    """Return the condition that a job is an ordinary one of this kind."""
    return and_(ordinary(jobs.c), jobs.c.queue == kind.queue, jobs.c.task == kind.task)


# ── PostgreSQL and SQLite ─────────────────────────────────────────────────────────────────────────────────────────────
def _best_kinds(tx: Tx, shape: Shape) -> Select[Any]:
    """The kinds whose first jobs are the first of all: no other kind can be among the first `b_limit` jobs."""
    kinds = queued_kinds(tx)
    wanted = _is_wanted(tx, shape, kinds.c), alive(tx, bindparam("b_worker"))
    return select(kinds.c.queue, kinds.c.task).where(*wanted).order_by(*_order(kinds.c)).limit(_limit())


def _some_kind(tx: Tx, shape: Shape) -> Select[Any]:
    kinds = queued_kinds(tx)
    return select(kinds.c.id).where(_is_wanted(tx, shape, kinds.c)).limit(_limit())


# ── SQLite: the kinds, then their first jobs merged, while nobody else writes ─────────────────────────────────────────
def _claim_merged(tx: Tx, kinds: int) -> ReturningUpdate[Any]:
    jobs = tx.tables.jobs
    each = [select(*_order(jobs.c)).where(_of_number(jobs, number)) for number in range(kinds)]
    merged = union_all(*each) if kinds > 1 else each[0]
    first = merged.order_by("rank", "run_at_us", "id").limit(_limit()).subquery("first")
    return _take_returning(tx, select(first.c.id))


def _of_number(jobs: Table, number: int) -> ColumnElement[bool]:
    """Return the condition that a job is an ordinary one of the kind bound under this number."""
    queue: BindParameter[str] = bindparam(f"b_queue_{number}")
    task: BindParameter[str] = bindparam(f"b_task_{number}")
    return and_(ordinary(jobs.c), jobs.c.queue == queue, jobs.c.task == task)


def _names(kinds: Sequence[Kind]) -> dict[str, Any]:
    return _numbered("queue", [kind.queue for kind in kinds]) | _numbered("task", [kind.task for kind in kinds])


def _numbered(name: str, values: Sequence[Any]) -> dict[str, Any]:
    return {f"b_{name}_{number}": value for number, value in enumerate(values)}


# ── one suspect ───────────────────────────────────────────────────────────────────────────────────────────────────────
def _claim_by_id(tx: Tx) -> ReturningUpdate[Any]:
    chosen = _by_id(tx, select(tx.tables.jobs.c.id)).cte("chosen").prefix_with("MATERIALIZED")
    return _take_returning(tx, select(chosen.c.id))


def _lock_by_id(tx: Tx) -> Select[Any]:
    return _by_id(tx, _with_times(tx))


def _by_id(tx: Tx, query: Select[Any]) -> Select[Any]:
    c = tx.tables.jobs.c
    mine = c.id == bindparam("b_id"), is_suspect(c), alive(tx, bindparam("b_worker"))
    return tx.dialect.skip_locked(query.where(*mine))


# ── MySQL and MariaDB: what is wanted is chosen without a lock, then locked, then written ─────────────────────────────
def _chosen(
    kinds: Iterable[Kind], tasks: Sequence[str], queues: Sequence[str] | None, excluded: Sequence[str]
) -> list[Kind]:
    names = set(tasks)
    return sorted(
        kind
        for kind in kinds
        if kind.task in names and (kind.queue not in excluded if queues is None else kind.queue in queues)
    )


def _claim_few(tx: Tx, rows: Sequence[Row[Any]], values: dict[str, Any]) -> list[Claimed]:
    """Claim the first of these rows; those that another claim holds are replaced by the next ones."""
    ids = [row.id for row in sorted(rows, key=_order)]
    claimed: list[Claimed] = []
    while ids and (left := values["b_limit"] - len(claimed)) > 0:
        first, ids = ids[:left], ids[left:]
        claimed += _claim_locked(tx, tx.prepared(_lock_by_ids), values | {"b_ids": padded(first)})
    return claimed


def _lock_by_ids(tx: Tx) -> Select[Any]:
    table = tx.tables.jobs
    mine = tx.dialect.among(table.c.id, "b_ids"), ordinary(table.c), alive(tx, bindparam("b_worker"))
    return tx.dialect.skip_locked(use_index(_with_times(tx).where(*mine), table, None))


def _claim_shares(tx: Tx, kinds: Sequence[Kind], values: dict[str, Any]) -> list[Claimed]:
    shares = _shares(tx, kinds, values)
    if not shares:
        return []
    locking = tx.prepared(_lock_shares, len(shares))
    return _claim_locked(tx, locking, values | _names(list(shares)) | _numbered("share", list(shares.values())))


def _shares(tx: Tx, kinds: Sequence[Kind], values: dict[str, Any]) -> dict[Kind, int]:
    """How many jobs of each kind are among the first `b_limit`; nothing is locked."""
    if len(kinds) < 2:
        return dict.fromkeys(kinds, int(values["b_limit"]))
    rows = tx.execute(tx.prepared(_first_of, len(kinds)), values | _names(kinds))
    return Counter(Kind(row.queue, row.task) for row in rows)


def _first_of(tx: Tx, kinds: int) -> Select[Any] | CompoundSelect[Any]:
    jobs = tx.tables.jobs
    columns = (jobs.c.queue, jobs.c.task, *_order(jobs.c))
    each = [_in_order(jobs, select(*columns), number, _limit()) for number in range(kinds)]
    return union_all(*each).order_by("rank", "run_at_us", "id").limit(_limit()) if kinds > 1 else each[0]


def _in_order(jobs: Table, query: Select[Any], number: int, limit: ColumnElement[int]) -> Select[Any]:
    query = query.where(_of_number(jobs, number)).order_by(*_order(jobs.c)).limit(limit)
    return use_index(query, jobs, "queued")


def _lock_shares(tx: Tx, kinds: int) -> Select[Any] | CompoundSelect[Any]:
    living = _with_times(tx).where(alive(tx, bindparam("b_worker")))
    each = [
        tx.dialect.skip_locked(_in_order(tx.tables.jobs, living, number, bindparam(f"b_share_{number}", type_=Integer)))
        for number in range(kinds)
    ]
    return union_all(*each) if kinds > 1 else each[0]


def _with_times(tx: Tx) -> Select[Any]:
    """What is read of each job, with the time and its next fence."""
    return select(*_columns(tx), tx.clock.label("now_us"), next_fence(tx, tx.clock).label("new_fence"))


def _claim_locked(tx: Tx, locking: Select[Any] | CompoundSelect[Any], values: dict[str, Any]) -> list[Claimed]:
    """Where an update cannot return rows: lock and read them, then write what follows from that and the time."""
    rows = tx.execute(locking, values).all()
    if not rows:
        return []
    now = rows[0].now_us
    token, worker = values["b_token"], values["b_worker"]
    taken = {"b_ids": padded([row.id for row in rows]), "b_now": now, "b_worker": worker, "b_token": token}
    tx.execute(tx.prepared(_take), taken)
    claimed = [
        Claimed._make(row[:-2])._replace(
            attempt=row.attempt + 1, lease_token=token, fence=row.new_fence, claimed_us=now
        )
        for row in rows
    ]
    return sorted(claimed, key=_order)


def _take(tx: Tx) -> Update:
    table = tx.tables.jobs
    return (
        update(table)
        .where(tx.dialect.among(table.c.id, "b_ids"), table.c.state == QUEUED)
        .values(_taken(tx, bindparam("b_now", type_=table.c.fence.type)))
    )


def _taken(tx: Tx, now: ColumnElement[int]) -> dict[str, Any]:
    """What a claim writes."""
    return {
        "state": str(JobState.RUNNING),
        "attempt": tx.tables.jobs.c.attempt + 1,
        "worker_id": bindparam("b_worker"),
        "lease_token": bindparam("b_token"),
        "fence": next_fence(tx, now),
        "claimed_us": now,
        "started_us": now,
    }


def next_fence(tx: Tx, now: ColumnElement[int]) -> ColumnElement[int]:
    """Grows with every claim and never falls behind the clock, so that it survives deletion and restored back-ups."""
    return tx.dialect.greatest(tx.tables.jobs.c.fence + 1, now)


def _columns(tx: Tx) -> list[ColumnElement[Any]]:
    """In the order of `Claimed`'s fields."""
    return [tx.tables.jobs.c[name] for name in Claimed._fields]


def held_by(tx: Tx, worker_id: str) -> list[Row[Any]]:
    """What the database says this worker is running: id, lease_token, cancel_requested_us."""
    return list(tx.execute(tx.prepared(_held_by), {"b_worker": worker_id}).all())


def _held_by(tx: Tx) -> Select[Any]:
    c = tx.tables.jobs.c
    return select(c.id, c.lease_token, c.cancel_requested_us).where(
        c.worker_id == bindparam("b_worker"), c.state == word(JobState.RUNNING)
    )


def suspect_turn(tx: Tx, *, worker_id: str, tasks: Sequence[str], queues: Sequence[str] | None, each: int) -> bool:
    """Whether a suspect waits and it is this worker's turn to make way for it.

    The live workers that know one of the tasks take turns of `each` microseconds, by the database's clock.
    """
    if not suspects(tx, tasks=tasks, queues=queues):
        return False
    able = sorted(worker.id for worker in live(tx) if not set(tasks).isdisjoint(worker.tasks))
    return worker_id in able and able[tx.now() // each % len(able)] == worker_id
