"""What the store costs beside the raw driver, on each database: single inserts, and claiming and settling in batches.

`python -m bench.store` prints one table per database; `--jobs`, `--rounds`, `--only sqlite,postgresql` change its size.
Raw and onebeat take turns in one run, and what is printed is the median of the rounds. Raw is the driver alone with
the same tables, the same durability and hand-written SQL: one caller, no retries, no checks of who holds what.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import statistics
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sqlalchemy import make_url, text
from tests.support.databases import create_database, drop_database, find_servers

from onebeat.model.ids import token, uuid7
from onebeat.model.job import SUCCESS, JobState, NewJob, Settlement
from onebeat.store import migrations, workers
from onebeat.store.connection.database import Database
from onebeat.store.jobs import insert, settle
from onebeat.store.tables import build
from onebeat.store.tx import Tx

BATCH = 100
CALLERS = 100
Measure = Callable[[], Awaitable[float]]  # jobs a second

COLUMNS = "id, task, args, queue, rank, state, run_at_us, max_attempts, tracking_id, created_us"


def job() -> NewJob:
    return NewJob(id=uuid7(time.time_ns() // 1000), task="bench", args='{"a":[],"k":{}}', tracking_id="t")


class Raw:
    """The driver alone, one connection, one caller."""

    mark = "?"

    async def open(self, url: str) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    async def run(self, statement: str, *values: Any) -> list[Any]:
        """One statement with `?` for values; its rows."""
        raise NotImplementedError

    def key(self, value: uuid.UUID) -> Any:
        return value.hex

    async def insert(self, count: int) -> float:
        statement = f"INSERT INTO onebeat_jobs ({quoted(self, COLUMNS)}) VALUES ({', '.join('?' * 10)})"
        began = time.perf_counter()
        for _ in range(count):
            now = time.time_ns() // 1000
            await self.run(
                statement, self.key(uuid7(now)), "bench", '{"a":[],"k":{}}', "default", 0, "queued", now, 3, "t", now
            )
        return count / (time.perf_counter() - began)

    async def drain(self, count: int) -> float:
        began, done = time.perf_counter(), 0
        while done < count:
            ids = await self.claim(token())
            assert ids
            await self.settle(ids)
            done += len(ids)
        return count / (time.perf_counter() - began)

    async def claim(self, lease: str) -> list[Any]:
        lock = "" if isinstance(self, RawSQLite) else " FOR UPDATE SKIP LOCKED"
        rows = await self.run(
            quoted(
                self,
                "WITH c AS MATERIALIZED (SELECT id FROM onebeat_jobs WHERE state = 'queued' "
                f"ORDER BY rank, run_at_us, id LIMIT {BATCH}{lock}) "
                "UPDATE onebeat_jobs SET state = 'running', attempt = attempt + 1, worker_id = 'w', "
                "lease_token = ? WHERE id IN (SELECT id FROM c) RETURNING *",
            ),
            lease,
        )
        return [row[0] for row in rows]

    async def settle(self, ids: list[Any]) -> None:
        marks = ", ".join("?" * len(ids))
        await self.run(
            f"UPDATE onebeat_jobs SET state = 'succeeded', finished_us = ? WHERE id IN ({marks}) AND state = 'running'",
            time.time_ns() // 1000,
            *ids,
        )


def quoted(raw: Raw, statement: str) -> str:
    return statement.replace("rank", "`rank`") if isinstance(raw, RawMariaDB) else statement


class RawSQLite(Raw):
    """`sqlite3` in the calling thread, WAL and synchronous=FULL as onebeat has it."""

    async def open(self, url: str) -> None:
        self.connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, timeout=5)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")

    async def close(self) -> None:
        self.connection.close()

    async def run(self, statement: str, *values: Any) -> list[Any]:
        return self.connection.execute(statement, values).fetchall()


class RawPostgreSQL(Raw):
    """asyncpg, each statement committed by itself."""

    async def open(self, url: str) -> None:
        import asyncpg

        at = make_url(url)
        self.connection = await asyncpg.connect(
            host=at.host, port=at.port or 5432, user=at.username, password=at.password, database=at.database
        )

    async def close(self) -> None:
        await self.connection.close()

    def key(self, value: uuid.UUID) -> Any:
        return value

    async def run(self, statement: str, *values: Any) -> list[Any]:
        for number in range(1, len(values) + 1):
            statement = statement.replace("?", f"${number}", 1)
        return list(await self.connection.fetch(statement, *values))

    async def settle(self, ids: list[Any]) -> None:
        await self.run(
            "UPDATE onebeat_jobs SET state = 'succeeded', finished_us = ? "
            "WHERE id = ANY(?::uuid[]) AND state = 'running'",
            time.time_ns() // 1000,
            ids,
        )


class RawMariaDB(Raw):
    """asyncmy; the claim is a transaction of two statements and a read, as there is no UPDATE … RETURNING."""

    async def open(self, url: str) -> None:
        import asyncmy

        at = make_url(url)
        self.connection = await asyncmy.connect(
            host=at.host,
            port=at.port or 3306,
            user=at.username,
            password=at.password or "",
            db=at.database,
            autocommit=True,
        )
        await self.run("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")

    async def close(self) -> None:
        self.connection.close()

    async def run(self, statement: str, *values: Any) -> list[Any]:
        async with self.connection.cursor() as cursor:
            await cursor.execute(statement.replace("?", "%s"), values)
            return list(await cursor.fetchall() or ())

    async def claim(self, lease: str) -> list[Any]:
        await self.run("START TRANSACTION")
        rows = await self.run(
            "SELECT id FROM onebeat_jobs WHERE state = 'queued' ORDER BY `rank`, run_at_us, id "
            f"LIMIT {BATCH} FOR UPDATE SKIP LOCKED"
        )
        ids = [row[0] for row in rows]
        marks = ", ".join("?" * len(ids))
        await self.run(
            "UPDATE onebeat_jobs SET state = 'running', attempt = attempt + 1, worker_id = 'w', lease_token = ? "
            f"WHERE id IN ({marks})",
            lease,
            *ids,
        )
        await self.run(f"SELECT * FROM onebeat_jobs WHERE id IN ({marks})", *ids)
        await self.run("COMMIT")
        return ids


RAW: dict[str, type[Raw]] = {"sqlite": RawSQLite, "postgresql": RawPostgreSQL, "mariadb": RawMariaDB}


class Onebeat:
    """The same through `Database` and the store's functions."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.worker = token()

    async def register(self) -> None:
        worker = workers.NewWorker(
            id=self.worker, host="bench", boot_id=None, pid=1, tasks=["bench"], definitions={}, queues=None,
            slots=BATCH, version="bench", lease=3_600_000_000,
        )  # fmt: skip
        await self.database.write(workers.register, worker)

    async def insert(self, count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            await self.database.write_one(insert.add, [job()])
        return count / (time.perf_counter() - began)

    async def insert_together(self, count: int) -> float:
        async def caller() -> None:
            for _ in range(count // CALLERS):
                await self.database.write_one(insert.add, [job()])

        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        return count // CALLERS * CALLERS / (time.perf_counter() - began)

    async def drain(self, count: int) -> float:
        claim = self.database.write_one if self.database.dialect.update_returning else self.database.write
        began, done = time.perf_counter(), 0
        while done < count:
            lease = token()
            held = await claim(claim.claim, worker_id=self.worker, token=lease, limit=BATCH, tasks=["bench"])
            assert held
            success = Settlement(state=JobState.SUCCEEDED)
            ended = [settle.Ended(job=each, outcome=SUCCESS, settlement=success) for each in held]
            kept = await self.database.write(settle.settle, ended, worker_id=self.worker)
            assert len(kept) == len(held)
            done += len(held)
        return count / (time.perf_counter() - began)


async def fresh(kind: str, database: Database, queued: int) -> None:
    """Empty tables, `queued` jobs in them, and the server's own housekeeping done, so that rounds do not differ."""

    def clear(tx: Tx) -> None:
        tx.execute(tx.tables.job_tags.delete())
        tx.execute(tx.tables.attempts.delete())
        tx.execute(text("TRUNCATE onebeat_jobs") if kind != "sqlite" else tx.tables.jobs.delete())

    await database.exclusive(clear, patience=30)
    for first in range(0, queued, 1000):
        await database.write(insert.add, [job() for _ in range(min(1000, queued - first))])
    if kind == "postgresql":
        await database.write_one(lambda tx: tx.execute(text("VACUUM ANALYZE onebeat_jobs")))
    elif kind == "mariadb":
        await database.write_one(lambda tx: tx.execute(text("ANALYZE TABLE onebeat_jobs")).all())
    else:
        await database.write_one(lambda tx: tx.connection.exec_driver_sql("PRAGMA optimize").close())


async def measure(kind: str, version: str, inserts: int, drained: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = create_database(kind, Path(folder))
        try:
            async with Database(url, tables=build()) as database:
                await migrations.migrate(database)
                raw, ours = RAW[kind](), Onebeat(database)
                await raw.open(url)
                await ours.register()
                ways: dict[str, tuple[int, Measure]] = {
                    "one insert, raw": (0, lambda: raw.insert(inserts)),
                    "one insert": (0, lambda: ours.insert(inserts)),
                    f"inserts of {CALLERS} callers": (0, lambda: ours.insert_together(inserts * 5)),
                    f"claim and settle {BATCH}, raw": (drained, lambda: raw.drain(drained)),
                    f"claim and settle {BATCH}": (drained, lambda: ours.drain(drained)),
                }
                figures: dict[str, list[float]] = {name: [] for name in ways}
                for _ in range(rounds):
                    for name, (queued, way) in ways.items():
                        await fresh(kind, database, queued)
                        figures[name].append(await way())
                await raw.close()
        finally:
            drop_database(url)
    print(f"\n{kind} {version}: jobs/s, median of {rounds} (least to most)")
    medians = {name: statistics.median(values) for name, values in figures.items()}
    for name, values in figures.items():
        base = medians.get(f"{name}, raw")
        beside = f"  {medians[name] / base:5.2f} of raw" if base else ""
        print(f"  {name:28} {medians[name]:9,.0f}  ({min(values):,.0f} to {max(values):,.0f}){beside}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=10_000, help="drained in a round")
    parser.add_argument("--inserts", type=int, default=500, help="single inserts in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="sqlite,postgresql,mariadb")
    options = parser.parse_args()
    servers = find_servers()
    for kind in options.only.split(","):
        if kind not in servers:
            print(f"\n{kind}: not reached, not measured")
            continue
        asyncio.run(measure(kind, servers[kind], options.inserts, options.jobs, options.rounds))


if __name__ == "__main__":
    main()
