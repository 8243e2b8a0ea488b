"""What schedules leave behind: old fire records, and finished schedules without any, deleted in short transactions."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, exists, func, select

from onebeat.store.sql import padded, unindexed, word
from onebeat.store.tx import Tx

DELETED_AT_ONCE = 1_000  # rows of one transaction
MOST_FIRES = 50_000  # records kept of one schedule: fourteen hours of one that fires each second
LOOKED_AT = 100  # schedules whose records are counted in one statement: five million at most
FINISHED, API = word("finished"), word("api")


def prune_fires(tx: Tx, age: int, limit: int = DELETED_AT_ONCE) -> int:
    """Delete up to `limit` fire records decided more than `age` microseconds ago; how many."""
    c = tx.tables.fires.c
    old = select(c.schedule_id, c.fire_key).where(c.decided_us < tx.now() - age).order_by(c.decided_us).limit(limit)
    keys = [(row.schedule_id, row.fire_key) for row in tx.execute(old)]
    for schedule_id in sorted({key[0] for key in keys}):
        mine = [key for id, key in keys if id == schedule_id]
        tx.execute(delete(tx.tables.fires).where(c.schedule_id == schedule_id, c.fire_key.in_(padded(mine))))
    return len(keys)


def following(tx: Tx, after: str, limit: int = LOOKED_AT) -> list[str]:
    """The next `limit` schedules by id, from the one after `after`."""
    c = tx.tables.schedules.c
    return list(tx.execute(select(c.id).where(c.id > after).order_by(c.id).limit(limit)).scalars())


def frequent(tx: Tx, window: int, count: int) -> list[str]:
    """The schedules with at least `count` records decided in the last `window` microseconds."""
    c = tx.tables.fires.c
    id = unindexed(c.schedule_id)  # else SQLite groups all records there are, in the order of an index
    query = select(id).where(c.decided_us > tx.now() - window).group_by(id)
    return list(tx.execute(query.having(func.count() >= count)).scalars())


def crowded(tx: Tx, ids: Sequence[str], most: int) -> list[str]:
    """Return which of the schedules `ids` have more than `most` fire records."""
    if not ids:
        return []
    c, fires = tx.tables.schedules.c, tx.tables.fires.c
    beyond = select(fires.fire_us).where(fires.schedule_id == c.id).order_by(fires.fire_us.desc())
    first = beyond.offset(most).limit(1).correlate(tx.tables.schedules).scalar_subquery()
    return list(tx.execute(select(c.id).where(c.id.in_(padded(ids)), first.is_not(None))).scalars())


def prune_crowd(tx: Tx, schedule_id: str, most: int, limit: int = DELETED_AT_ONCE) -> int:
    """Delete up to `limit` of a schedule's fire records beyond its newest `most`; how many."""
    c = tx.tables.fires.c
    mine = c.schedule_id == schedule_id
    beyond = select(c.fire_key).where(mine).order_by(c.fire_us.desc(), c.fire_key.desc()).offset(most).limit(limit)
    keys = [row.fire_key for row in tx.execute(beyond)]
    if keys:
        tx.execute(delete(tx.tables.fires).where(mine, c.fire_key.in_(padded(keys))))
    return len(keys)


def prune_finished(tx: Tx, age: int, limit: int = DELETED_AT_ONCE) -> int:
    """Delete up to `limit` finished schedules that nobody touched for `age` microseconds and that have no fire records.

    Those that code declares stay: they would come back at its next start. How many were deleted.
    """
    table, fires = tx.tables.schedules, tx.tables.fires
    old = tx.now() - age
    over = (
        table.c.state == FINISHED,
        table.c.source == API,
        table.c.updated_us < old,
        ~exists().where(fires.c.schedule_id == table.c.id),
    )
    query = select(table.c.id).where(*over).limit(limit)
    ids = [row.id for row in tx.execute(tx.dialect.skip_locked(query))]
    if ids:
        tx.execute(delete(table).where(table.c.id.in_(padded(ids)), *over))
    return len(ids)
