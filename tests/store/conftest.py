"""Fixtures of the store's tests: servers that a test may kill, and a proxy that cuts connections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from onebeat.store import migrations
from onebeat.store.connection.database import Database
from onebeat.store.tables import build
from tests.conftest import SERVERS
from tests.support.databases import Shelf
from tests.support.proxy import Proxy, proxy_to
from tests.support.servers import PRIVATE, MariaDBServer, PostgreSQLServer

SERVED = [kind for kind in ("postgresql", "mariadb") if kind in SERVERS]
Private = PostgreSQLServer | MariaDBServer


@pytest.fixture(scope="session", params=SERVED)
def private(request: pytest.FixtureRequest) -> Iterator[Private]:
    """A server that a test may kill or stop; its default isolation level is the strictest."""
    strict = {
        "postgresql": ["-cdefault_transaction_isolation=serializable", "-csynchronous_commit=off"],
        "mariadb": ["--transaction-isolation=SERIALIZABLE", "--innodb-flush-log-at-trx-commit=2"],
    }
    server = PRIVATE[request.param](*strict[request.param])
    server.start()
    yield server
    server.close()


@pytest.fixture
async def running(private: Private) -> Private:
    """The private server, running and with empty tables."""
    if private.process is None:
        private.start()
    async with Database(private.url, tables=build()) as database:
        await migrations.migrate(database)
        await database.write(lambda tx: tx.execute(tx.tables.queues.delete()))
    return private


@pytest.fixture(params=SERVED)
def served(request: pytest.FixtureRequest, shelf: Shelf, tmp_path: Path) -> str:
    """The URL of a migrated database on a server; test_sqlite.py has what can happen to a file."""
    return shelf.take(request.param, tmp_path)


@pytest.fixture
async def proxy(served: str) -> AsyncIterator[Proxy]:
    """A proxy before that server."""
    async with proxy_to(served) as proxy:
        yield proxy
