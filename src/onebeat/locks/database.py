"""DatabaseLocks: a row a lock, on SQLite, PostgreSQL, MySQL and MariaDB."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from onebeat.errors import NotStarted
from onebeat.locks.backend import LockInfo
from onebeat.locks.base import Beat, LocksOn
from onebeat.locks.hold import Hold
from onebeat.model.protocols import Clock
from onebeat.store import locks as rows, migrations, tables
from onebeat.store.connection.database import Database
from onebeat.timing.clock import from_us

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

CONNECTIONS = 2  # for locks on their own; the heartbeat has one more


class DatabaseBackend:
    """Locks as rows, by the database's clock."""

    leased = True

    def __init__(self, database: Callable[[], Database], *, migrate: bool = False) -> None:
        self._ask = database  # a scheduler has none before it is started
        self._to_do = ["migrate"] if migrate else []  # once for all twins, by the first that is opened

    @property
    def database(self) -> Database:
        """The database, or `NotStarted`."""
        return self._ask()

    @property
    def where(self) -> str:
        """For messages, without the password."""
        try:
            return self.database.where
        except NotStarted:
            return "of a scheduler that is not running"

    def twin(self) -> Self:
        """A connection of its own, for another thread's event loop."""
        sibling = self.database.heartbeat_database()
        twin = type(self)(lambda: sibling)
        twin._to_do = self._to_do
        return twin

    async def open(self, timeout: float) -> None:
        """Connect, and make the tables where that was asked for."""
        await self.database.open(timeout)
        if self._to_do:
            await migrations.prepare(self.database)
            self._to_do.clear()

    async def close(self) -> None:
        """Close the connections."""
        await self.database.close()

    async def acquire(self, name: str, owner: str, ttl: int, holder: str) -> int | None:
        """One statement on SQLite and PostgreSQL, two on MySQL and MariaDB."""
        return await self.database.write_one(rows.acquire, name, owner, ttl, holder)

    async def renew(self, name: str, owner: str, ttl: int) -> bool:
        """One statement."""
        return await self.database.write_one(rows.renew, name, owner, ttl)

    async def renew_all(self, held: Sequence[tuple[str, str]], ttl: int) -> Collection[str]:
        """One statement for all, and on a loss one more."""
        return await self.database.write_one(rows.renew_all, held, ttl)

    async def release(self, name: str, owner: str) -> bool:
        """One statement."""
        return await self.database.write_unflushed(rows.release, name, owner)

    async def holds(self, name: str, owner: str) -> bool:
        """One SELECT."""
        return await self.database.read(rows.holds, name, owner)

    async def held(self) -> list[LockInfo]:
        """One SELECT."""
        return [_info(row) for row in await self.database.read(rows.held)]

    async def prune(self) -> int:
        """Delete the rows of unused names, a thousand a transaction."""
        deleted = 0
        while count := await self.database.write(rows.prune):
            deleted += count
        return deleted

    async def force_release(self, name: str, reason: str, who: str) -> LockInfo | None:
        """In one transaction with its row in the audit table."""
        row = await self.database.write(rows.force_release, name, reason, who, uuid4())
        return None if row is None else _info(row)


def _info(row: rows.HeldRow) -> LockInfo:
    return LockInfo(
        name=row.name,
        fence=row.fence,
        holder=row.holder,
        acquired_at=None if row.acquired_us is None else from_us(row.acquired_us),
        expires_at=from_us(row.expires_us),
    )


class DatabaseLocks(LocksOn[DatabaseBackend]):
    """Locks on a database, with or without a scheduler; the database's clock decides when a lease is over.

    `database`: a URL, a SQLAlchemy `AsyncEngine`, or a function that returns one, as for `Scheduler`. The tables are
    made on opening unless `migrate=False`. A `Scheduler` has these locks as `scheduler.lock` and `scheduler.locks`.

    >>> import asyncio
    >>> async def rebuild():
    ...     async with DatabaseLocks("sqlite:///app.db") as locks:
    ...         async with locks.lock("rebuild-index", ttl=30) as lease:
    ...             await lease.check()
    ...             return [lock.name for lock in await locks.list()], lease.fence > 0
    >>> asyncio.run(rebuild())
    (['rebuild-index'], True)
    """

    def __init__(
        self,
        database: str | AsyncEngine | Callable[[], AsyncEngine] | Database,
        *,
        table_prefix: str = "onebeat_",
        schema: str | None = None,
        migrate: bool = True,
        clock: Clock | None = None,
    ) -> None:
        if not isinstance(database, Database):
            database = Database(database, tables=tables.build(table_prefix, schema), pool_size=CONNECTIONS)
        opened = database
        super().__init__(DatabaseBackend(lambda: opened, migrate=migrate), clock=clock)

    async def prune(self) -> int:
        """Forget the names that nobody has locked for thirty days; how many.

        The workers of a scheduler do it each five minutes. For programs without one, whose names are made up as they
        go (``lock(f"user-{id}")``): a row a name stays else.
        """
        return await self._usable().prune()

    def _renew(self, tx: Any, holds: Sequence[Hold]) -> Collection[Hold]:
        ours = [hold for hold in holds if hold.may_be_renewed()]
        kept = rows.renew_all(tx, [(hold.name, hold.owner) for hold in ours], holds[0].ttl)
        return [hold for hold in ours if hold.owner in kept]

    @classmethod
    def for_scheduler(
        cls,
        database: Callable[[], Database],
        heartbeat: Callable[[], Beat],
        loop: Callable[[], asyncio.AbstractEventLoop | None],
        *,
        clock: Clock | None = None,
    ) -> DatabaseLocks:
        """The locks of a scheduler: its database, heartbeat thread and event loop, asked for when they are needed.

        The first two raise `NotStarted` before start. The scheduler awaits `close()` before it closes either.
        """
        return _SchedulersLocks(database, heartbeat, loop, clock)


class _SchedulersLocks(DatabaseLocks):
    def __init__(
        self,
        database: Callable[[], Database],
        heartbeat: Callable[[], Beat],
        loop: Callable[[], asyncio.AbstractEventLoop | None],
        clock: Clock | None,
    ) -> None:
        LocksOn.__init__(self, DatabaseBackend(database), clock=clock)
        self._heartbeat = heartbeat
        self._schedulers_loop = loop

    def _ready(self) -> None:
        """Started or not is the scheduler's word."""
        _ = self._backend.database
        if asyncio.get_running_loop() is not self._schedulers_loop():
            raise NotStarted(
                "the scheduler was started in another event loop; use its locks there, or `with` on a lock in a thread"
            )

    def _ready_sync(self) -> None:
        _ = self._backend.database

    def _make_beat(self) -> Beat:
        return self._heartbeat()

    def _end_beat(self, beat: Beat) -> None:
        """The thread is the scheduler's."""
