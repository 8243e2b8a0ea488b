"""SQLAlchemy sessions for the transactions of jobs, on connection pools that are made on first use."""

from __future__ import annotations

import importlib.util
from typing import Any

from sqlalchemy import Engine, QueuePool, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import AsyncAdaptedQueuePool

from onebeat.errors import ConfigurationError
from onebeat.store.connection.callers_sqlite import configure_sqlite
from onebeat.store.connection.sqlite_file import file_of
from onebeat.store.connection.targets import Target

MAX_AGE = 1800  # seconds; then a connection is replaced, as in onebeat's own pool


class JobSessions:
    """Sessions on one database: READ COMMITTED on servers; on SQLite with the write lock from the first write on.

    Args:
        target: the database.
        size: connections of each pool; a job that finds none free waits up to 30 seconds for one.
        synchronous: on SQLite, as the setting `sqlite_synchronous`.
        connect_arguments: what connections to this server need besides, as behind a transaction pooler.
    """

    def __init__(
        self, target: Target, *, size: int, synchronous: str = "FULL", connect_arguments: dict[str, Any] | None = None
    ) -> None:
        self._target = target
        self._size = size
        self._synchronous = synchronous
        self._arguments = connect_arguments or {}
        self._engine: AsyncEngine | None = None
        self._sync_engine: Engine | None = None

    def new(self) -> AsyncSession:
        """Return a new session; its transaction begins with its first statement. Raises `ConfigurationError`."""
        if self._engine is None:
            self._engine = self._new_engine()
        return AsyncSession(self._engine, expire_on_commit=False)

    def new_sync(self) -> Session:
        """Return a new synchronous session; raises `ConfigurationError` on a server: onebeat has no driver for it."""
        if self._sync_engine is None:
            self._sync_engine = self._new_sync_engine()
        return Session(self._sync_engine, expire_on_commit=False)

    async def close(self) -> None:
        """Close the pools."""
        engine, self._engine = self._engine, None
        sync_engine, self._sync_engine = self._sync_engine, None
        if engine is not None:
            await engine.dispose()
        if sync_engine is not None:
            sync_engine.dispose()

    def _new_engine(self) -> AsyncEngine:
        pool = {"pool_size": self._size, "max_overflow": 0, "pool_recycle": MAX_AGE}
        if not self._target.dialect.one_writer:
            level = "READ COMMITTED"
            return self._target.engine(
                self._arguments, poolclass=AsyncAdaptedQueuePool, isolation_level=level, pool_pre_ping=True, **pool
            )
        self._refuse_memory()
        if importlib.util.find_spec("aiosqlite") is None:
            raise ConfigurationError(
                "ctx.transaction() on SQLite needs the driver aiosqlite, which is missing: pip install aiosqlite, "
                "or make the task a `def` function and use ctx.sync.transaction()"
            )
        url = self._target.url.set(drivername="sqlite+aiosqlite")
        engine = create_async_engine(url, hide_parameters=True, poolclass=AsyncAdaptedQueuePool, **pool)
        configure_sqlite(engine, synchronous=self._synchronous)
        return engine

    def _new_sync_engine(self) -> Engine:
        if not self._target.dialect.one_writer:
            raise ConfigurationError(
                f"ctx.sync.transaction() works on SQLite only, and this job is stored in {self._target.where}. Make "
                "the task an `async def` function and use ctx.transaction(), or open a session of your own and call "
                "ctx.sync.complete(session) before you commit"
            )
        self._refuse_memory()
        engine = create_engine(
            self._target.url, hide_parameters=True, poolclass=QueuePool, pool_size=self._size, max_overflow=0
        )
        configure_sqlite(engine, synchronous=self._synchronous)
        return engine

    def _refuse_memory(self) -> None:
        if file_of(self._target.url) is None:
            raise ConfigurationError(
                f"{self._target.where} is in memory, where no session but onebeat's own can see it; use a file"
            )
