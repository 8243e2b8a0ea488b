"""Find and count jobs by their filters: by an index where few match, else newest first in steps of bounded length.

No index serves lists alone. One on queue, task and id was tried: SQLite took it for claims, which made a drain four
times as long, and on MariaDB a drain took 15 % more. The indexes that claims, pruning and fires need tell which jobs
match while these are few. Where many match, most lists are filled by the newest jobs. Only where all of them are older
than very many others is the way long; then it is gone in steps, each a short statement of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import CTE, ColumnElement, Row, Select, and_, func, or_, select, true, union_all

from onebeat.model.job import FINAL, JobState
from onebeat.store.sql import QUEUED, number, padded, unindexed, use_index, word
from onebeat.store.tx import Tx

FEW = 1_000  # jobs that match: so many are read by an index and sorted here
NEWEST = 1_000  # jobs looked through before any search: most lists are filled by them
STEP = 10_000  # jobs looked through in one statement where more than a few match
KINDS_AT_ONCE = 50  # searches in one statement
LIVE = (JobState.RUNNING, JobState.SCHEDULED, JobState.WAITING)  # on PostgreSQL and SQLite each has an index of its own

Wanted = dict[str, Any]  # filter → value, none of them None
Condition = ColumnElement[bool]


class StoredKind(NamedTuple):
    """The jobs of one state, queue and task; None: of each queue or task."""

    state: str
    queue: str | None
    task: str | None

    def fits(self, wanted: Wanted) -> bool:
        """Return whether the filters on state, queue and task let these jobs through."""
        return all(wanted.get(name, value) == value for name, value in self._asdict().items())

    def condition(self, tx: Tx) -> Condition:
        """Return the condition on a job, in words that partial indexes understand."""
        c = tx.tables.jobs.c
        own = [c[name] == value for name, value in (("queue", self.queue), ("task", self.task)) if value is not None]
        ended = [c.finished_us.is_not(None)] if tx.dialect.searches_steps and self.state in FINAL else []
        return and_(c.state == word(self.state), *ended, *own)


def page(
    tx: Tx, wanted: Wanted, *, limit: int, before: UUID | None, few: bool
) -> tuple[Sequence[Row[Any]], UUID | None]:
    """Return up to `limit` jobs, newest first, and the id before which to go on, None at the end.

    Fewer than `limit` with an id to go on from: some jobs were looked through. Without `few` it is taken for granted
    that many jobs match, so that the steps that follow need no search.
    """
    if not few:
        return _step(tx, wanted, limit, before, STEP)
    rows, end = _step(tx, wanted, limit, before, NEWEST)
    ids = matching(tx, wanted) if end is not None and len(rows) < limit else None
    return (
        (rows, end) if ids is None else _among(tx, wanted, limit, [id for id in ids if before is None or id < before])
    )


def _among(tx: Tx, wanted: Wanted, limit: int, ids: Sequence[UUID]) -> tuple[Sequence[Row[Any]], UUID | None]:
    """Return the newest of these few jobs that match."""
    table = tx.tables.jobs
    rows: list[Row[Any]] = []
    ids = sorted(ids, reverse=True)
    while ids and len(rows) <= limit:
        part, ids = ids[: limit + 1], ids[limit + 1 :]
        query = select(table).where(table.c.id.in_(padded(part)), *_filters(tx, wanted)).order_by(table.c.id.desc())
        rows += tx.execute(query).all()
    return rows[:limit], rows[limit - 1].id if len(rows) > limit else None


def _step(tx: Tx, wanted: Wanted, limit: int, before: UUID | None, size: int) -> tuple[Sequence[Row[Any]], UUID | None]:
    """Look through `size` jobs; return those that match, and the last one looked through, None at the end."""
    table, tags = tx.tables.jobs, tx.tables.job_tags
    id, own = (tags.c.job_id, [tags.c.tag == wanted["tag"]]) if "tag" in wanted else (table.c.id, [])
    within = own + ([] if before is None else [id < before])
    last = select(id).where(*within).order_by(id.desc()).offset(size - 1).limit(1)
    end: UUID | None = tx.execute(last if own else use_index(last, table, None)).scalar()
    if end is not None:
        within.append(id >= end)
    if own:
        query = select(table).where(table.c.id.in_(select(id).where(*within)))
        query = query.where(*_filters(tx, {name: value for name, value in wanted.items() if name != "tag"}))
    else:
        query = use_index(select(table).where(*within, *_filters(tx, wanted)), table, None)
    rows = tx.execute(query.order_by(table.c.id.desc()).limit(limit + 1)).all()
    if len(rows) > limit:
        return rows[:limit], rows[limit - 1].id
    return rows, end


def _filters(tx: Tx, wanted: Wanted) -> list[Condition]:
    """The filters as conditions for which no index is used: the jobs are found by their ids."""
    c, tags = tx.tables.jobs.c, tx.tables.job_tags.c
    conditions = [unindexed(c[name]) == value for name, value in wanted.items() if name != "tag"]
    if "tag" in wanted:
        conditions.append(select(tags.job_id).where(tags.job_id == c.id, tags.tag == wanted["tag"]).exists())
    return conditions


# ── few ───────────────────────────────────────────────────────────────────────────────────────────────────────────────
def matching(tx: Tx, wanted: Wanted) -> list[UUID] | None:
    """Return the ids of jobs among which all that match are; None when there are more than a few, or no filter."""
    searches: dict[str, Callable[[], list[UUID] | None]] = {
        "tag": lambda: _few(tx, _tagged(tx, wanted["tag"])),
        "tracking_id": lambda: _few(tx, _having(tx, "tracking_id", wanted["tracking_id"])),
        "schedule_id": lambda: _few(tx, _having(tx, "schedule_id", wanted["schedule_id"])),
    }
    for name, search in searches.items():
        if name in wanted and (ids := search()) is not None:
            return ids
    return _few_of_kinds(tx, wanted) if wanted.keys() & {"state", "queue", "task"} else None


def _tagged(tx: Tx, tag: str) -> Select[Any]:
    tags = tx.tables.job_tags.c
    return select(tags.job_id.label("id")).where(tags.tag == tag)


def _having(tx: Tx, name: str, value: str) -> Select[Any]:
    c = tx.tables.jobs.c
    return select(c.id).where(c[name] == value)


def _few(tx: Tx, query: Select[Any]) -> list[UUID] | None:
    ids = [row.id for row in tx.execute(query.limit(FEW + 1))]
    return ids if len(ids) <= FEW else None


def _few_of_kinds(tx: Tx, wanted: Wanted) -> list[UUID] | None:
    c = tx.tables.jobs.c
    ids: list[UUID] = []
    if tx.dialect.searches_steps:
        for state in LIVE:
            if wanted.get("state", state) == state:
                query = select(c.id, c.state, c.queue, c.task).where(c.state == word(state)).limit(FEW + 1)
                rows = tx.execute(query).all()
                if len(rows) > FEW:
                    return None
                ids += [row.id for row in rows if StoredKind(row.state, row.queue, row.task).fits(wanted)]
    for part in _parts(stored_kinds(tx, wanted)):
        each = [_of_kind(tx, kind, c.id).limit(FEW + 1).subquery() for kind in part]
        found = _few(tx, select(union_all(*(select(one.c.id) for one in each)).subquery()))
        if found is None or len(ids) + len(found) > FEW:
            return None
        ids += found
    return ids


def _of_kind(tx: Tx, kind: StoredKind, *columns: Any) -> Select[Any]:
    table = tx.tables.jobs
    return use_index(select(*columns).select_from(table).where(kind.condition(tx)), table, "queued")


def _parts(kinds: Sequence[StoredKind]) -> Iterable[Sequence[StoredKind]]:
    return [kinds[start : start + KINDS_AT_ONCE] for start in range(0, len(kinds), KINDS_AT_ONCE)]


# ── kinds ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
def stored_kinds(tx: Tx, wanted: Wanted) -> list[StoredKind]:
    """Return the kinds that fit the filters; on PostgreSQL and SQLite of jobs that are queued or have ended.

    Each kind is found by one search of an index, so its jobs are not read.
    """
    state = wanted.get("state")
    rows: list[Row[Any]] = []
    if not tx.dialect.searches_steps:
        rows += tx.execute(_distinct_kinds(tx, state))
    else:
        if state in (None, JobState.QUEUED):
            rows += tx.execute(tx.prepared(_queued_kinds))
        if state is None or state in FINAL:
            rows += tx.execute(tx.prepared(_ended_kinds))
    kinds = sorted(StoredKind(row.state, row.queue, row.task) for row in rows)
    return [kind for kind in kinds if kind.fits(wanted)]


def _distinct_kinds(tx: Tx, state: str | None) -> Select[Any]:
    """MySQL and MariaDB skip from one kind to the next by themselves."""
    table = tx.tables.jobs
    query = use_index(select(table.c.state, table.c.queue, table.c.task).distinct(), table, "queued")
    return query if state is None else query.where(table.c.state == word(state))


def _queued_kinds(tx: Tx) -> Select[Any]:
    kinds = _skipping(tx, ("queue", "task"), lambda c: c.state == QUEUED)
    return select(QUEUED.label("state"), kinds.c.queue, kinds.c.task)


def _ended_kinds(tx: Tx) -> Select[Any]:
    return select(_skipping(tx, ("state", "queue", "task"), lambda c: c.finished_us.is_not(None)))


def _skipping(tx: Tx, names: tuple[str, ...], among: Callable[[Any], Condition]) -> CTE:
    """Describe the different values of the leading columns of an index: each step searches for the next larger ones."""
    jobs = tx.tables.jobs
    columns = [jobs.c[name] for name in names]
    first = select(select(*columns).where(among(jobs.c)).order_by(*columns).limit(number(1)).subquery())
    kinds = first.cte("kinds", recursive=True)
    searched, following = jobs.alias("searched"), jobs.alias("following")

    def next_by(last: int) -> Select[Any]:
        """The first job beyond the kind in the column `last`, equal to it in those before."""
        same = [searched.c[name] == kinds.c[name] for name in names[:last]]
        larger = searched.c[names[last]] > kinds.c[names[last]]
        order = [searched.c[name] for name in names]
        return select(searched.c.id).where(among(searched.c), *same, larger).order_by(*order).limit(number(1))

    found = [next_by(last).correlate(kinds).scalar_subquery() for last in reversed(range(len(names)))]
    is_next = following.c.id == func.coalesce(*found)
    columns = [following.c[name] for name in names]
    if tx.dialect.lateral:  # so it is looked up by its key, whatever the statistics say: a join may read every job
        one = select(*columns).where(is_next).limit(number(1)).correlate(kinds).lateral("next")
        return kinds.union_all(select(*one.c).select_from(kinds.join(one, true())))
    step = select(*columns).select_from(kinds.join(following, is_next))
    for name in ("mysql", "mariadb"):
        step = step.prefix_with("STRAIGHT_JOIN", dialect=name)
        step = step.with_hint(following, "FORCE INDEX (PRIMARY)", name)
    return kinds.union_all(step)


# ── counts ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def count(tx: Tx, wanted: Wanted, at_most: int | None) -> int:
    """Return how many jobs match, or `at_most` when there are more; exact, by an index, without it.

    It reads one entry of an index for each job that it counts, and besides the rows where filters are combined.
    """
    ids = matching(tx, wanted)
    c = tx.tables.jobs.c
    if ids is not None:
        parts = [ids[start : start + FEW] for start in range(0, len(ids), FEW)]
        counts = [_count(tx, select(c.id).where(c.id.in_(padded(part)), *_filters(tx, wanted)), None) for part in parts]
        return min(sum(counts), sum(counts) if at_most is None else at_most)
    if wanted.keys() <= {"state", "queue", "task"} and wanted:
        return _count_kinds(tx, wanted, at_most)
    return _count(tx, _by_narrowest(tx, wanted), at_most)


def _count(tx: Tx, query: Select[Any], at_most: int | None) -> int:
    limited = query if at_most is None else query.limit(at_most)
    return int(tx.execute(select(func.count()).select_from(limited.subquery())).scalar_one())


def _by_narrowest(tx: Tx, wanted: Wanted) -> Select[Any]:
    """The jobs by the one filter that an index finds; the other filters look at the rows."""
    first = next((name for name in ("tag", "tracking_id", "schedule_id") if name in wanted), None)
    rest = {name: value for name, value in wanted.items() if name != first}
    if first == "tag":
        tagged = _tagged(tx, wanted["tag"])
        c = tx.tables.jobs.c
        return select(c.id).where(c.id.in_(tagged), *_filters(tx, rest)) if rest else tagged
    query = select(tx.tables.jobs.c.id) if first is None else _having(tx, first, wanted[first])
    return query.where(*_filters(tx, rest))


def _count_kinds(tx: Tx, wanted: Wanted, at_most: int | None) -> int:
    total = 0
    if tx.dialect.searches_steps:
        c = tx.tables.jobs.c
        rest = _filters(tx, {name: value for name, value in wanted.items() if name != "state"})
        for state in LIVE:
            if wanted.get("state", state) == state:
                total += _count(tx, select(c.id).where(c.state == word(state), *rest), at_most)
    for _, many in _counted(tx, _together(stored_kinds(tx, wanted), wanted), at_most):
        total += many
    return total if at_most is None else min(total, at_most)


def _together(kinds: Iterable[StoredKind], wanted: Wanted) -> list[StoredKind]:
    """Put kinds together that one search of the index counts, because no filter tells them apart."""
    if "task" in wanted:
        return list(kinds)
    return list({StoredKind(kind.state, kind.queue if "queue" in wanted else None, None): None for kind in kinds})


def _counted(tx: Tx, kinds: Sequence[StoredKind], at_most: int | None = None) -> Iterable[tuple[StoredKind, int]]:
    """How many jobs are of each kind, counted in an index alone."""
    for part in _parts(kinds):
        each = [_of_kind(tx, kind, tx.tables.jobs.c.queue).limit(at_most).subquery() for kind in part]
        row = tx.execute(select(*[select(func.count()).select_from(one).scalar_subquery() for one in each])).one()
        yield from zip(part, map(int, row), strict=True)


def unfinished_by_queue(tx: Tx) -> dict[str, dict[str, int]]:
    """Return queue → state → how many jobs; exact, by an index. Jobs that have ended are not read."""
    c = tx.tables.jobs.c
    counts: dict[str, dict[str, int]] = {}
    kinds: list[StoredKind] = []
    for state in LIVE:
        if tx.dialect.searches_steps:
            query = select(c.queue, func.count().label("many")).where(c.state == word(state)).group_by(c.queue)
            for row in tx.execute(query):
                counts.setdefault(row.queue, {})[state] = int(row.many)
        else:
            kinds += stored_kinds(tx, {"state": state})
    kinds = _together(kinds + stored_kinds(tx, {"state": JobState.QUEUED}), {"queue": ""})
    for kind, many in _counted(tx, kinds):
        counts.setdefault(str(kind.queue), {})[kind.state] = many
    return counts


# ── ended jobs by age ─────────────────────────────────────────────────────────────────────────────────────────────────
def ended_before(tx: Tx, state: JobState, moment: int, limit: int) -> list[UUID]:
    """Return up to `limit` jobs in this final state that ended before the moment (UTC microseconds).

    One that still keeps a unique key after its end is left out: a deleted row keeps none.
    """
    c = tx.tables.jobs.c
    if not tx.dialect.searches_steps:
        old = c.state == word(state), c.finished_us < moment, _keeps_no_key(tx)
        return list(tx.execute(select(c.id).where(*old).order_by(c.finished_us).limit(limit)).scalars())
    ids: list[UUID] = []
    for part in _parts(stored_kinds(tx, {"state": state})):
        oldest = [_oldest(tx, kind, moment, limit).subquery() for kind in part]
        query = select(union_all(*(select(one.c.id) for one in oldest)).subquery()).limit(limit - len(ids))
        ids += tx.execute(query).scalars()
        if len(ids) >= limit:
            break
    return ids


def _keeps_no_key(tx: Tx) -> ColumnElement[bool]:
    c = tx.tables.jobs.c
    return or_(c.unique_until_us.is_(None), c.unique_until_us <= tx.now())


def _oldest(tx: Tx, kind: StoredKind, moment: int, limit: int) -> Select[Any]:
    c = tx.tables.jobs.c
    old = c.finished_us < moment, _keeps_no_key(tx)
    return _of_kind(tx, kind, c.id).where(*old).order_by(c.finished_us).limit(limit)
