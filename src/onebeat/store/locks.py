"""Locks: acquire, renew, release, fence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Row,
    Select,
    Update,
    and_,
    bindparam,
    case,
    delete,
    or_,
    select,
    update,
)
from sqlalchemy.sql.dml import Insert

from onebeat.store.sql import padded
from onebeat.store.tx import Tx
from onebeat.timing.clock import SECOND

UNUSED = 30 * 86_400 * SECOND  # microseconds; a name that was not locked for so long is forgotten, on Redis too


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldRow:
    """A lock that is held, as its row says; instants in UTC microseconds."""

    name: str
    fence: int
    holder: str | None
    acquired_us: int | None
    expires_us: int


def acquire(tx: Tx, name: str, owner: str, ttl: int, holder: str) -> int | None:
    """Take the lock if its lease is over, for `ttl` microseconds; its fence, or None: somebody holds it.

    One statement decides and writes. The fence is the row's last one plus one, or the database's clock if that is
    more: so it grows although the row was deleted, and although the clock was set back. An owner that finds itself
    in the row asks again after a lost answer, and is granted anew.
    """
    values = {"b_name": name, "b_owner": owner, "b_ttl": ttl, "b_holder": holder}
    if tx.dialect.update_returning:
        return tx.execute(tx.prepared(_acquire), values).scalar_one_or_none()
    tx.execute(tx.prepared(_acquire), values)
    return tx.execute(tx.prepared(_fence), {"b_name": name, "b_owner": owner}).scalar_one_or_none()


def _acquire(tx: Tx) -> Insert:
    locks, now, owner = tx.tables.locks, tx.clock, _bound(tx, "owner")
    free = or_(locks.c.expires_us <= now, locks.c.owner == owner)
    expires = now + bindparam("b_ttl", type_=locks.c.expires_us.type)
    fresh = {"owner": owner, "fence": now, "acquired_us": now, "holder": _bound(tx, "holder"), "expires_us": expires}
    change = {**fresh, "fence": tx.dialect.greatest(locks.c.fence + 1, now)}
    insert = {"name": _bound(tx, "name"), **fresh}
    if tx.dialect.update_returning:
        return tx.dialect.upsert(locks, insert, key=["name"], update=change, where=free).returning(locks.c.fence)
    # Assignments go from left to right: once `owner` is decided, it decides the rest.
    decided = {
        column: case((free if column == "owner" else locks.c.owner == owner, value), else_=locks.c[column])
        for column, value in change.items()
    }
    return tx.dialect.upsert(locks, insert, key=["name"], update=decided)


def _fence(tx: Tx) -> Select[tuple[int]]:
    return select(tx.tables.locks.c.fence).where(_mine(tx), tx.tables.locks.c.expires_us > tx.clock)


def renew(tx: Tx, name: str, owner: str, ttl: int) -> bool:
    """Let the lease end no earlier than `ttl` microseconds from now; False: it has ended or was taken, for good."""
    return bool(renew_all(tx, [(name, owner)], ttl))


def renew_all(tx: Tx, held: Sequence[tuple[str, str]], ttl: int) -> set[str]:
    """Do the same for each name and owner in one statement, and return the owners whose lease is in force.

    An owner holds one name, so names and owners need not be compared in pairs.
    """
    if not held:
        return set()
    owners = {owner for _, owner in held}
    values = {"b_names": padded([name for name, _ in held]), "b_owners": padded([owner for _, owner in held])}
    renewed = tx.execute(tx.prepared(_renew), values | {"b_ttl": ttl}).rowcount
    if renewed in (0, len(owners)):
        return owners if renewed else set()
    return {row.owner for row in tx.execute(tx.prepared(_in_force), values)}


def _renew(tx: Tx) -> Update:
    c, now = tx.tables.locks.c, tx.clock
    later = tx.dialect.greatest(c.expires_us, now + bindparam("b_ttl", type_=c.expires_us.type))
    return update(tx.tables.locks).where(_owned(tx)).values(expires_us=later)


def _in_force(tx: Tx) -> Select[tuple[str]]:
    return select(tx.tables.locks.c.owner).where(_owned(tx))


def _owned(tx: Tx) -> ColumnElement[bool]:
    c, among = tx.tables.locks.c, tx.dialect.among
    return and_(among(c.name, "b_names"), among(c.owner, "b_owners"), c.expires_us > tx.clock)


def release(tx: Tx, name: str, owner: str) -> bool:
    """Give it back; False: it was not this owner's any more. The row and its fence stay, and so does the owner's name:
    asking again after a lost answer is recognised.

    The disk is not waited for: what a crash of the server may undo of this is that the lock is free before its lease
    ends. Whoever takes it next waits for the disk, and this release comes before that in the log.
    """
    return bool(tx.execute(tx.prepared(_release), {"b_name": name, "b_owner": owner}).rowcount)


def _release(tx: Tx) -> Update:
    return tx.dialect.unflushed(update(tx.tables.locks).where(_mine(tx)).values(expires_us=0))


def holds(tx: Tx, name: str, owner: str) -> bool:
    """Whether this owner's lease is in force."""
    return tx.execute(tx.prepared(_fence), {"b_name": name, "b_owner": owner}).first() is not None


def held(tx: Tx) -> list[HeldRow]:
    """The locks in force, by name."""
    locks = tx.tables.locks
    return [_row(row) for row in tx.execute(select(locks).where(locks.c.expires_us > tx.clock).order_by(locks.c.name))]


def force_release(tx: Tx, name: str, reason: str, who: str, audit_id: UUID) -> HeldRow | None:
    """Take the lock from its holder and write an audit row in the same transaction; None: nobody held it.

    `audit_id` is made by the caller, once: running again after a lost answer finds it and answers as before.
    """
    locks, audit = tx.tables.locks, tx.tables.audit
    before = tx.execute(select(audit.c.before_json).where(audit.c.id == audit_id)).scalar_one_or_none()
    if before is not None:
        return HeldRow(**json.loads(before))
    row = tx.execute(
        tx.dialect.lock_rows(select(locks).where(locks.c.name == name, locks.c.expires_us > tx.clock))
    ).first()
    if row is None:
        return None
    found = _row(row)
    tx.execute(update(locks).where(locks.c.name == name).values(owner=None, expires_us=0))
    tx.execute(
        audit.insert().values(
            id=audit_id,
            at_us=tx.now(),
            principal=who[:255],
            action="lock.force_release",
            subject=name,
            before_json=json.dumps({field: getattr(found, field) for field in HeldRow.__slots__}),
            reason=reason[:2000],
        )
    )
    return found


def prune(tx: Tx, age: int = UNUSED, limit: int = 1000) -> int:
    """Delete up to `limit` locks that nobody holds and nobody took in the last `age` microseconds; how many it were.

    A row whose fence is older than that can go: the clock gives its successor a larger one.
    """
    locks, before = tx.tables.locks, tx.now() - age
    old = and_(locks.c.expires_us < before, locks.c.acquired_us < before, locks.c.fence < before)
    names = [row.name for row in tx.execute(select(locks.c.name).where(old).limit(limit))]
    if not names:
        return 0
    return tx.execute(delete(locks).where(locks.c.name.in_(padded(names)), old)).rowcount  # `old` still, when it locks


def guard(tx: Tx, resource: str, fence: int) -> int:
    """Raise the resource's fence to at least this one and return what it is now.

    Its row stays locked until the transaction ends, so that guarded writers follow each other.
    """
    fences = tx.tables.fences
    tx.execute(
        tx.dialect.upsert(
            fences,
            {"resource": resource, "fence": fence},
            key=["resource"],
            update={"fence": tx.dialect.greatest(fences.c.fence, fence)},
        )
    )
    locked = tx.dialect.lock_rows(select(fences.c.fence).where(fences.c.resource == resource))
    return int(tx.execute(locked).scalar_one())


def _bound(tx: Tx, column: str) -> BindParameter[str]:
    return bindparam(f"b_{column}", type_=tx.tables.locks.c[column].type)


def _mine(tx: Tx) -> ColumnElement[bool]:
    c = tx.tables.locks.c
    return and_(c.name == _bound(tx, "name"), c.owner == _bound(tx, "owner"))


def _row(row: Row[Any]) -> HeldRow:
    return HeldRow(
        name=row.name,
        fence=row.fence,
        holder=row.holder,
        acquired_us=row.acquired_us,
        expires_us=row.expires_us,
    )
