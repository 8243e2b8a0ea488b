"""The rows a scenario left behind, read with plain SQL beside the package's own store."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, create_engine, func, make_url, select, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from onebeat.store.tables import Tables, build
from tests.support.checker import AttemptRow, FireRow, JobRow

T = TypeVar("T")
DRIVERS = {"postgresql": "postgresql+asyncpg", "mysql": "mysql+asyncmy", "mariadb": "mysql+asyncmy"}
TABLES = build()
UNFINISHED = ("scheduled", "waiting", "queued", "running")


async def ask(url: str, question: Callable[[Connection], T]) -> T:
    """Run the question on a connection of its own; nothing is held afterwards."""
    parsed = make_url(url)
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return await asyncio.to_thread(_ask_sqlite, f"sqlite:///{parsed.database}", question)
    engine = create_async_engine(parsed.set(drivername=DRIVERS[backend]), poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(question)
    finally:
        await engine.dispose()


def _ask_sqlite(url: str, question: Callable[[Connection], T]) -> T:
    engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": 30})
    try:
        with engine.connect() as connection:
            return question(connection)
    finally:
        engine.dispose()


async def writable(url: str, within: float) -> bool:
    """Whether SQLite's write lock can be had in so many seconds."""
    return await asyncio.to_thread(_writable, str(make_url(url).database), within)


def _writable(path: str, within: float) -> bool:
    connection = sqlite3.connect(path, timeout=within, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
            raise
        return False
    finally:
        connection.close()
    return True


@asynccontextmanager
async def write_lock(url: str) -> AsyncIterator[None]:
    """Hold SQLite's write lock, as a process does that stopped in the middle of a transaction."""
    connection = sqlite3.connect(str(make_url(url).database), isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


@dataclass(frozen=True, slots=True)
class Rows:
    """What is in the tables, as the checker wants it."""

    jobs: list[JobRow]
    fires: list[FireRow]
    attempts: list[AttemptRow]
    pids: dict[str, int]  # worker id → pid
    schedules: dict[str, tuple[int, int | None]]  # schedule id → created_us, next_fire_us


async def read(url: str) -> Rows:
    """Everything."""
    return await ask(url, lambda connection: _rows(connection, TABLES))


def _rows(connection: Connection, tables: Tables) -> Rows:
    def everything(table: Any) -> Any:
        return connection.execute(select(table)).mappings()

    return Rows(
        jobs=[
            JobRow(
                id=row["id"],
                task=row["task"],
                state=row["state"],
                reason=row["reason"],
                attempt=row["attempt"],
                errors=row["errors"],
                crashes=row["crashes"],
                max_attempts=row["max_attempts"],
                at_most_once=bool(row["at_most_once"]),
                fence=row["fence"],
                worker_id=row["worker_id"],
                schedule_id=row["schedule_id"],
                fire_us=row["fire_us"],
                run_at_us=row["run_at_us"],
                created_us=row["created_us"],
                finished_us=row["finished_us"],
                value=None if row["value"] is None else json.loads(row["value"]),
            )
            for row in everything(tables.jobs)
        ],
        fires=[
            FireRow(
                schedule_id=row["schedule_id"],
                fire_key=row["fire_key"],
                fire_us=row["fire_us"],
                decision=row["decision"],
                origin=row["origin"],
                until_us=row["until_us"],
                instants=row["instants"],
                job_id=row["job_id"],
                decided_us=row["decided_us"],
            )
            for row in everything(tables.fires)
        ],
        attempts=[
            AttemptRow(
                job_id=row["job_id"],
                attempt=row["attempt"],
                outcome=row["outcome"],
                worker_id=row["worker_id"],
                started_us=row["started_us"] or 0,
                finished_us=row["finished_us"] or 0,
            )
            for row in everything(tables.attempts)
        ],
        pids={row["id"]: row["pid"] for row in everything(tables.workers)},
        schedules={row["id"]: (row["created_us"], row["next_fire_us"]) for row in everything(tables.schedules)},
    )


async def unfinished(url: str) -> int:
    """How many jobs have not ended."""
    table = TABLES.jobs
    query = select(func.count()).select_from(table).where(table.c.state.in_(UNFINISHED))
    return await ask(url, lambda connection: connection.execute(query).scalar_one())


async def leftovers(url: str) -> list[str]:
    """Sessions with an open transaction on this database, other than the one that asks; none on SQLite."""
    backend = make_url(url).get_backend_name()
    if backend == "sqlite":
        return []
    query = {
        "postgresql": (
            "SELECT concat('pid ', pid, ' ', state, ': ', left(query, 80)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL"
        ),
        "mysql": (
            "SELECT concat('session ', t.trx_mysql_thread_id, ' ', t.trx_state) FROM information_schema.innodb_trx t"
            " JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id"
            " WHERE p.db = database() AND p.id <> connection_id()"
        ),
    }["postgresql" if backend == "postgresql" else "mysql"]
    return await ask(url, lambda connection: [str(row[0]) for row in connection.execute(text(query))])
