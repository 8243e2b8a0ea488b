"""What an uncontended acquire and release cost, counted on the wire."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import make_url

from onebeat.locks import DatabaseLocks, RedisLocks
from onebeat.locks.base import LocksOn
from onebeat.store.connection.database import Database
from onebeat.store.tables import build
from onebeat.store.tx import Tx
from tests.conftest import SERVERS
from tests.support.databases import waits_until

TIMES = 10
PORTS = {"postgresql": 5432, "mysql": 3306, "redis": 6379}


class Meter:
    """Passes bytes on between clients and a server, and counts what clients send before they wait for an answer."""

    def __init__(self, url: str) -> None:
        self.target = make_url(url)
        self.sent = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = self.target.port or PORTS[self.target.get_backend_name()]
        server_reader, server_writer = await asyncio.open_connection(self.target.host, port)
        await asyncio.gather(self.pass_on(reader, server_writer, 1), self.pass_on(server_reader, writer, 0))

    async def pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, count: int) -> None:
        try:
            while data := await source.read(65536):
                self.sent += count
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            return
        finally:
            sink.close()


@asynccontextmanager
async def metered(url: str) -> AsyncIterator[tuple[Meter, str]]:
    meter = Meter(url)
    server = await asyncio.start_server(meter.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield meter, meter.target.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
    finally:
        server.close()


async def round_trips(locks: LocksOn[Any], meter: Meter) -> float:
    """Round trips of one acquire and release, when everything is warm."""
    async with locks.lock("a", ttl=3) as lease:  # the thread that renews has connected by its first renewal
        before = lease._hold.deadline
        await waits_until(lambda: lease._hold.deadline > before)
    before = meter.sent
    for _ in range(TIMES):
        async with locks.lock("a"):
            pass
    return (meter.sent - before) / TIMES


@pytest.mark.parametrize(
    ("database_kind", "most"),
    [(kind, most) for kind, most in (("postgresql", 2), ("mariadb", 3)) if kind in SERVERS],
)
async def test_a_servers_lock_costs_one_round_trip_to_acquire_and_one_to_release(database_url: str, most: int) -> None:
    async with metered(database_url) as (meter, url), DatabaseLocks(url, migrate=False) as locks:
        assert await round_trips(locks, meter) == most  # MariaDB needs two to acquire


async def test_a_redis_lock_costs_one_round_trip_to_acquire_and_one_to_release(redis_url: str) -> None:
    prefix = f"onebeat-test-{secrets.token_hex(6)}"
    async with metered(redis_url) as (meter, url), RedisLocks(url, prefix=prefix) as locks:
        assert await round_trips(locks, meter) == 2


@pytest.mark.parametrize("database_kind", ["sqlite"])
async def test_a_sqlite_lock_costs_one_transaction_to_acquire_and_one_to_release(database_url: str) -> None:
    reached: list[str] = []

    class Count:
        def reach(self, name: str, tx: Tx) -> None:
            reached.append(name)

    database = Database(database_url, tables=build(), points=Count())
    async with DatabaseLocks(database, migrate=False) as locks, locks.lock("a"):
        pass
    assert reached.count("statement") == 2
    assert reached.count("commit") == 2
