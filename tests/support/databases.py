"""The database servers that tests use: which answer, a database of one's own on each, and its removal."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import threading
from collections.abc import Awaitable, Callable, Coroutine
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import make_url

from onebeat.store import migrations
from onebeat.store.connection.database import Database
from onebeat.store.tables import build
from tests.support.servers import addresses

R = TypeVar("R")

SQL = ("sqlite", "postgresql", "mariadb")
KINDS = (*SQL, "redis")
ADDRESSES = addresses()  # by kind; an empty text where there is none
CONNECT_WITHIN = 5.0  # seconds
CLEARS = "clears tables between tests"  # the name of that connection, which is no session of any test
RAN: set[str] = set()  # kinds that a test really used


class Background:
    """One event loop on a thread, for tests and fixtures that are not asynchronous."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="tests-background", daemon=True)
        self.thread.start()

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)


BACKGROUND = Background()


class Admin:
    """A server's administrator: one connection, whatever the driver."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._connection: Any = None

    async def connect(self, database: str | None = None) -> Any:
        assert ADDRESSES[self.kind], f"there is no {self.kind} server: start one with `make databases`"
        url = make_url(ADDRESSES[self.kind])
        name = database or url.database
        if self.kind == "postgresql":
            import asyncpg

            return await asyncpg.connect(
                host=url.host, port=url.port or 5432, user=url.username, password=url.password, database=name,
                timeout=CONNECT_WITHIN,
            )  # fmt: skip
        import asyncmy

        return await asyncmy.connect(
            host=url.host, port=url.port or 3306, user=url.username, password=url.password or "", db=name,
            autocommit=True, connect_timeout=CONNECT_WITHIN,
        )  # fmt: skip

    async def rows(self, statement: str) -> list[tuple[Any, ...]]:
        if self._connection is None:
            self._connection = await self.connect()
        if self.kind == "postgresql":
            return [tuple(row) for row in await self._connection.fetch(statement)]
        async with self._connection.cursor() as cursor:
            await cursor.execute(statement)
            return list(await cursor.fetchall() or ())

    def run(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements, each for itself; the rows of the last."""

        async def work() -> list[tuple[Any, ...]]:
            rows: list[tuple[Any, ...]] = []
            for statement in statements:
                rows = await self.rows(statement)
            return rows

        return BACKGROUND.run(work())

    def sessions(self, database: str) -> int:
        """How many connections a database has on the server at this moment."""
        if self.kind == "postgresql":
            found = self.run(
                f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND application_name <> '{CLEARS}'"
            )
        else:
            found = self.run(f"SELECT count(*) FROM information_schema.processlist WHERE db = '{database}'")
        return int(found[0][0])

    def end_sessions(self, database: str) -> None:
        """Close whatever is connected to a database."""
        if self.kind == "postgresql":
            self.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE datname = '{database}' AND application_name <> '{CLEARS}'"
            )
            return
        for (number,) in self.run(f"SELECT id FROM information_schema.processlist WHERE db = '{database}'"):
            try:
                self.run(f"KILL {number}")
            except Exception as error:
                if "1094" not in str(error):  # it ended by itself in between
                    raise


ADMINS = {kind: Admin(kind) for kind in ("postgresql", "mariadb")}


def find_servers() -> dict[str, str]:
    """Kind → version of what answers; the rest cannot be reached from here."""
    found = {"sqlite": _sqlite_version()}
    for kind, probe in (("postgresql", _probe_sql), ("mariadb", _probe_sql), ("redis", _probe_redis)):
        if not ADDRESSES[kind]:
            continue
        try:
            found[kind] = BACKGROUND.run(asyncio.wait_for(probe(kind), CONNECT_WITHIN + 1))
        except Exception as error:
            if os.environ.get("ONEBEAT_TEST_VERBOSE"):
                print(f"{kind}: {error!r}")
    return found


def _sqlite_version() -> str:
    import sqlite3

    return sqlite3.sqlite_version


async def _probe_sql(kind: str) -> str:
    rows = await ADMINS[kind].rows("SELECT version()")
    return str(rows[0][0]).removeprefix("PostgreSQL ").split(" ")[0].split("-")[0]


async def _probe_redis(kind: str) -> str:
    from redis.asyncio import Redis

    client: Any = Redis.from_url(ADDRESSES[kind], socket_connect_timeout=CONNECT_WITHIN)
    try:
        return str((await client.info("server"))["redis_version"])
    finally:
        await client.aclose()


def create_database(kind: str, directory: Path) -> str:
    """The URL of a new, empty database with a random name."""
    RAN.add(kind)
    name = f"onebeat_test_{secrets.token_hex(6)}"
    if kind == "sqlite":
        return f"sqlite:///{directory / name}.db"
    ADMINS[kind].run(f"CREATE DATABASE {name}")
    return make_url(ADDRESSES[kind]).set(database=name).render_as_string(hide_password=False)


def drop_database(url: str) -> None:
    """Remove a server's database, whoever is still connected; a SQLite file goes with its directory."""
    kind = kind_of(url)
    if kind == "sqlite":
        return
    name = make_url(url).database
    assert name is not None
    assert name.startswith("onebeat_test_"), name
    if kind == "postgresql":
        ADMINS[kind].run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    else:
        ADMINS[kind].end_sessions(name)
        ADMINS[kind].run(f"DROP DATABASE IF EXISTS {name}")


def kind_of(url: str) -> str:
    """sqlite, postgresql or mariadb."""
    scheme = url.partition(":")[0].partition("+")[0]
    return "mariadb" if scheme == "mysql" else scheme


def migrate(url: str) -> None:
    """Make onebeat's tables."""

    async def work() -> None:
        async with Database(url, tables=build()) as database:
            await migrations.migrate(database)

    BACKGROUND.run(work())


class Shelf:
    """One migrated database a kind for the whole test session; rows are deleted between tests."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.urls: dict[str, str] = {}
        self._inside: Any = None  # a connection to PostgreSQL's database, which knows its tables after the first test

    def take(self, kind: str, directory: Path) -> str:
        """The URL of a database with onebeat's tables and no rows in them."""
        RAN.add(kind)
        if kind == "sqlite":
            target = directory / "onebeat.db"
            shutil.copyfile(self._migrated(kind).removeprefix("sqlite:///"), target)
            return f"sqlite:///{target}"
        if kind in self.urls:
            try:
                self._clear(kind)
            except Exception as error:  # a test that took the tables away, or holds locks: a new one
                print(f"a new {kind} database, because the last one could not be cleared: {error!r}")
                drop_database(self.urls.pop(kind))
        return self._migrated(kind)

    def close(self) -> None:
        for url in self.urls.values():
            drop_database(url)

    def _migrated(self, kind: str) -> str:
        if kind not in self.urls:
            self.urls[kind] = create_database(kind, self.directory)
            migrate(self.urls[kind])
        return self.urls[kind]

    def _clear(self, kind: str) -> None:
        name = make_url(self.urls[kind]).database
        assert name is not None
        ADMINS[kind].end_sessions(name)
        schema, mark = (f"{name}.", "`") if kind == "mariadb" else ("", '"')
        filled, deletes = questions(schema, mark)
        if kind == "mariadb":
            rows = ADMINS[kind].run(filled)
            ADMINS[kind].run(
                "SET autocommit = 0", *(deletes[table] for (table,) in rows), "COMMIT", "SET autocommit = 1"
            )
            return

        async def work() -> None:
            if self._inside is None:
                self._inside = await ADMINS[kind].connect(name)
                await self._inside.execute(f"SET lock_timeout = '3s'; SET application_name = '{CLEARS}'")
            rows = await self._inside.fetch(filled)
            if rows:  # asyncpg fails on an empty statement
                await self._inside.execute("; ".join(deletes[table] for (table,) in rows))

        try:
            BACKGROUND.run(work())
        except Exception:
            self._inside = None
            raise


@cache  # building the tables costs more than deleting their rows
def questions(schema: str, mark: str) -> tuple[str, dict[str, str]]:
    """Return the statement that names the tables with rows, and for each table the one that deletes these.

    The rows of `meta` that `migrate` makes do not count.
    """
    tables = build()
    rows = {table.name: f"FROM {schema}{table.name}" for table in tables.metadata.sorted_tables}
    rows[tables.meta.name] += f" WHERE {mark}key{mark} = 'app'"
    filled = " UNION ALL ".join(f"SELECT '{name}' WHERE EXISTS (SELECT 1 {which})" for name, which in rows.items())
    return filled, {name: f"DELETE {which}" for name, which in rows.items()}


async def waits_until(condition: Callable[[], bool | Awaitable[bool]], within: float = 20.0) -> None:
    """Return as soon as a condition holds; fail loudly when it does not come about."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while True:
        answer = condition()
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer:
            return
        assert loop.time() < deadline, f"did not come about within {within} s"
        await asyncio.sleep(0.01)
