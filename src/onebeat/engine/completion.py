"""Completes one running job in a session of its function, or in one opened for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from onebeat.engine.attempt import stored_value
from onebeat.model.job import Claimed
from onebeat.store.connection.callers_session import AsyncCaller, SyncCaller, run_in, run_in_sync
from onebeat.store.connection.database import Database
from onebeat.store.jobs.complete import complete


class JobCompletion:
    """What `JobContext` asks: the end of its job in a transaction, and sessions for one.

    `dropped` hears why a value cannot be stored; the job succeeds without it.
    """

    def __init__(self, database: Database, job: Claimed, *, worker_id: str, dropped: Callable[[str], None]) -> None:
        self._database = database
        self._job = job
        self._worker_id = worker_id
        self._dropped = dropped

    async def complete(self, session: AsyncCaller, value: Any) -> bool:
        """End the job in the session's transaction, and return whether its claim held."""
        text = stored_value(value, self._dropped)
        return await run_in(session, self._database, self._complete, text)

    def complete_sync(self, session: SyncCaller, value: Any) -> bool:
        """Do the same on the thread of the function."""
        return run_in_sync(session, self._database, self._complete, stored_value(value, self._dropped))

    def _complete(self, tx: Any, value: str | None) -> bool:
        return complete(tx, self._job, value, worker_id=self._worker_id)

    def new_session(self) -> AsyncSession:
        """Return a session on this database."""
        return self._database.job_sessions.new()

    def new_session_sync(self) -> Session:
        """Return a synchronous session on this database."""
        return self._database.job_sessions.new_sync()
