"""What waits for the disk: an acquisition does; a release need not, for a crash then only lets its lease run out."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from sqlalchemy import func, select

from onebeat.locks import DatabaseLocks
from onebeat.store import locks as rows
from onebeat.store.connection.database import Database
from onebeat.store.tables import build
from onebeat.store.tx import Tx
from tests.conftest import SERVERS, MakeDatabase
from tests.support.servers import private_server

WITHIN = 20.0  # seconds
OWNER, TTL = "a" * 32, 30_000_000
NORMAL, FULL, EXTRA = 1, 2, 3  # https://www.sqlite.org/pragma.html#pragma_synchronous


class Levels:
    """How durable each commit on SQLite was."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def reach(self, name: str, tx: Tx) -> None:
        driver: Any = tx.connection.connection.driver_connection
        if name == "commit":
            self.found.append(driver.execute("PRAGMA synchronous").fetchone()[0])


@pytest.mark.parametrize("database_kind", ["sqlite"])
@pytest.mark.parametrize(("synchronous", "level"), [("FULL", FULL), ("EXTRA", EXTRA), ("NORMAL", NORMAL)])
async def test_on_sqlite_an_acquisition_waits_for_the_disk_and_a_release_does_not(
    database_url: str, synchronous: str, level: int
) -> None:
    levels = Levels()
    database = Database(database_url, tables=build(), sqlite_synchronous=synchronous, points=levels)
    async with DatabaseLocks(database, migrate=False) as locks:
        for _ in range(2):
            async with locks.lock("a"):
                pass
        await database.write(rows.renew, "a", OWNER, TTL)
    assert levels.found == [level, NORMAL, level, NORMAL, level]


@pytest.mark.parametrize("database_kind", ["sqlite"])
async def test_what_is_committed_together_with_a_release_waits_for_the_disk(database_url: str) -> None:
    levels, reached, go_on = Levels(), asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hold(tx: Tx) -> None:
        loop.call_soon_threadsafe(reached.set)
        go_on.wait(20)

    async with Database(database_url, tables=build(), points=levels) as database:
        assert await database.write(rows.acquire, "a", OWNER, TTL, "me")
        first = asyncio.ensure_future(database.write(hold))
        await reached.wait()
        together = asyncio.gather(
            database.write_unflushed(rows.release, "a", OWNER), database.write(rows.acquire, "b", OWNER, TTL, "me")
        )
        await asyncio.sleep(0)  # both are queued
        go_on.set()
        released, fence = await together
        await first
        assert released
        assert fence
        assert levels.found == [FULL, FULL, FULL]  # the last one is of both


@pytest.mark.skipif("postgresql" not in SERVERS, reason="no PostgreSQL can be reached")
@pytest.mark.parametrize("database_kind", ["postgresql"])
async def test_on_postgresql_an_acquisition_waits_for_the_disk_and_a_release_does_not(
    database_url: str, make_database: MakeDatabase
) -> None:
    database = await make_database(database_url)

    def setting(tx: Tx) -> str:
        return str(tx.execute(select(func.current_setting("synchronous_commit"))).scalar_one())

    def acquire(tx: Tx) -> str:
        assert rows.acquire(tx, "a", OWNER, TTL, "me")
        assert rows.renew(tx, "a", OWNER, TTL)
        return setting(tx)

    def release(tx: Tx) -> str:
        assert rows.release(tx, "a", OWNER)
        return setting(tx)

    for _ in range(2):
        assert await database.write(acquire) == "on"
        assert await database.write(release) == "off"
    assert await database.read(setting) == "on", "it was for one transaction"


@pytest.mark.parametrize("kind", [kind for kind in ("postgresql", "mariadb") if kind in SERVERS])
async def test_a_server_that_is_killed_keeps_what_is_held_and_frees_the_rest_in_time(kind: str) -> None:
    with private_server(kind) as server:
        async with DatabaseLocks(server.url) as ours, DatabaseLocks(server.url) as theirs:
            lease = await ours.lock("held", ttl=60).acquire()
            async with ours.lock("free", ttl=3) as before:
                pass
            await asyncio.to_thread(server.kill)  # before anything else is written
            await asyncio.to_thread(server.start)
            assert {info.name: info.fence for info in await theirs.list()}["held"] == lease.fence
            assert await theirs.lock("held").try_acquire() is None
            await lease.check()
            async with theirs.lock("free", wait=WITHIN) as later:
                assert later.fence > before.fence
            await lease.release()
