"""Which kinds of jobs are queued: each queue and task is found by one search of an index, however many jobs it has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import (
    CTE,
    BindParameter,
    ColumnElement,
    CompoundSelect,
    Row,
    Select,
    and_,
    bindparam,
    func,
    or_,
    select,
    true,
    tuple_,
    union_all,
)

from onebeat.model.job import SUSPECT_CRASHES
from onebeat.store.sql import QUEUED, number, use_index
from onebeat.store.tx import Tx

FEW = 250  # queued jobs: so many are read in one search and sorted here, which is faster than a search for each kind
FEW_AGAIN = 30  # claims: so often it is looked whether few are queued again
PROBE_AGAIN = 4  # claims: so often new kinds are looked for while the known ones fill each claim
FORGET_BEYOND = 100  # kinds remembered beyond twice those that were queued at the last complete search


class Kind(NamedTuple):
    """The jobs of one task in one queue. A claim takes the first jobs of each kind, so it passes no other job."""

    queue: str
    task: str


Gap = tuple[Kind | None, Kind | None]  # the kinds between two known ones; None has no end on that side


@dataclass(slots=True)
class KnownKinds:
    """The kinds that earlier searches found; they save searches, and some may have no jobs any more."""

    kinds: set[Kind] = field(default_factory=set)
    most: int = FORGET_BEYOND
    many: int = 0  # claims for which it is taken for granted that more than a few jobs are queued
    probed: int = 0  # claims for which no search looks for kinds that are not known


def ordinary(columns: Any) -> ColumnElement[bool]:
    """Return the condition that a job is queued and no suspect."""
    return and_(columns.state == QUEUED, columns.crashes < number(SUSPECT_CRASHES))


def is_suspect(columns: Any) -> ColumnElement[bool]:
    """Return the condition that a queued job was running when a worker died, twice: it is claimed alone."""
    return and_(columns.state == QUEUED, columns.crashes >= number(SUSPECT_CRASHES))


def queued_kinds(tx: Tx) -> CTE:
    """Describe the first ordinary job of each kind as a recursive query: `queue`, `task`, `rank`, `run_at_us`, `id`.

    Each step searches for the next larger kind, so the jobs between are not read. Only where the database searches an
    index with a value of the step before: `Dialect.searches_steps`.
    """
    jobs = tx.tables.jobs
    first = select(*_head(jobs.c)).where(ordinary(jobs.c)).order_by(*_head(jobs.c)).limit(number(1)).subquery()
    kinds = select(first).cte("kinds", recursive=True)
    following = _following_lateral if tx.dialect.lateral else _following
    return kinds.union_all(following(tx, kinds))


def _head(columns: Any) -> list[ColumnElement[Any]]:
    return [columns.queue, columns.task, columns.rank, columns.run_at_us, columns.id]


def _following_lateral(tx: Tx, kinds: CTE) -> Select[Any]:
    jobs = tx.tables.jobs.alias("following")
    larger = tuple_(jobs.c.queue, jobs.c.task) > tuple_(kinds.c.queue, kinds.c.task)
    found = (
        select(*_head(jobs.c))
        .where(ordinary(jobs.c), larger)
        .order_by(*_head(jobs.c))
        .limit(number(1))
        .lateral("found")
    )
    return select(found).select_from(kinds.join(found, true()))


def _following(tx: Tx, kinds: CTE) -> Select[Any]:
    jobs, following = tx.tables.jobs.alias("searched"), tx.tables.jobs.alias("following")

    def first(*conditions: ColumnElement[bool]) -> ColumnElement[Any]:
        found = select(jobs.c.id).where(ordinary(jobs.c), *conditions).order_by(*_head(jobs.c)).limit(number(1))
        return found.correlate(kinds).scalar_subquery()

    same_queue = first(jobs.c.queue == kinds.c.queue, jobs.c.task > kinds.c.task)
    next_queue = first(jobs.c.queue > kinds.c.queue)
    return select(*_head(following.c)).select_from(
        kinds.join(following, following.c.id == func.coalesce(same_queue, next_queue))
    )


# ── where a recursive query reads every job ───────────────────────────────────────────────────────────────────────────
def few_queued(tx: Tx, known: KnownKinds) -> Sequence[Row[Any]] | None:
    """Return all queued ordinary jobs as in `queued_kinds`; None when there are more than a few of them."""
    if known.many > 0:
        known.many -= 1
        return None
    rows = tx.execute(tx.prepared(_few)).all()
    if len(rows) <= FEW:
        return rows
    known.many = FEW_AGAIN
    known.probed = 0
    return None


def _few(tx: Tx) -> Select[Any]:
    jobs = tx.tables.jobs
    return use_index(select(*_head(jobs.c)).where(ordinary(jobs.c)).limit(number(FEW + 1)), jobs, "queued")


def search_kinds(tx: Tx, known: KnownKinds) -> set[Kind]:
    """Add to `known` the kinds that are queued now, and return them with those that were known before.

    One query asks in each gap between two known kinds for the first kind there, so it is one query when nothing is new.
    While `known.probed` is above 0 no new kind is looked for: the known ones may fill the claim.
    """
    if complete := len(known.kinds) > known.most:
        known.kinds.clear()
    if known.probed > 0:
        known.probed -= 1
        return known.kinds
    gaps = gaps_between(sorted(known.kinds))
    known.probed = PROBE_AGAIN - 1
    while gaps:
        found = sorted({Kind(row.queue, row.task) for row in tx.execute(*_probe(tx, gaps))})
        known.kinds.update(found)
        gaps = [(kind, after) for kind in found for _, after in [gap_of(kind, gaps)]]
    if complete:
        known.most = 2 * len(known.kinds) + FORGET_BEYOND
    return known.kinds


def gaps_between(kinds: Sequence[Kind]) -> list[Gap]:
    """Return the gaps before, between and after sorted kinds.

    >>> gaps_between([Kind("mail", "send")])
    [(None, Kind(queue='mail', task='send')), (Kind(queue='mail', task='send'), None)]
    """
    return list(zip([None, *kinds], [*kinds, None], strict=True))


def gap_of(kind: Kind, gaps: Iterable[Gap]) -> Gap:
    """Return the gap in which the kind lies."""
    return next((low, high) for low, high in gaps if (low is None or low < kind) and (high is None or kind < high))


def _probe(tx: Tx, gaps: Sequence[Gap]) -> tuple[CompoundSelect[Any], dict[str, str]]:
    values = {
        f"b_{side}_{part}_{index}": value
        for index, gap in enumerate(gaps)
        for side, kind in zip(("low", "high"), gap, strict=True)
        if kind is not None
        for part, value in zip(("queue", "task"), kind, strict=True)
    }
    shape = tuple((low is not None, high is not None) for low, high in gaps)
    return tx.prepared(_first_in_each, shape), values


def _first_in_each(tx: Tx, shape: Sequence[tuple[bool, bool]]) -> CompoundSelect[Any]:
    c = tx.tables.jobs.c

    def beyond(side: str, index: int) -> ColumnElement[bool]:
        queue: BindParameter[str] = bindparam(f"b_{side}_queue_{index}")
        task: BindParameter[str] = bindparam(f"b_{side}_task_{index}")
        if side == "low":
            return or_(c.queue > queue, and_(c.queue == queue, c.task > task))
        return or_(c.queue < queue, and_(c.queue == queue, c.task < task))

    searches = []
    for index, sides in enumerate(shape):
        within = [beyond(side, index) for side, given in zip(("low", "high"), sides, strict=True) if given]
        search = select(c.queue, c.task).where(c.state == QUEUED, *within).order_by(c.queue, c.task).limit(number(1))
        searches.append(use_index(search, tx.tables.jobs, "queued"))
    return union_all(*searches)
