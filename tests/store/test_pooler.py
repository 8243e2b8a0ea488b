"""PostgreSQL behind a pooler in transaction mode: everything that must be right is, and nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from onebeat.store import migrations
from onebeat.store.connection.database import Database
from onebeat.store.connection.server_pool import ServerPool
from onebeat.store.tx import Tx
from tests.conftest import SERVERS, MakeDatabase
from tests.store.test_database import add, names
from tests.support.databases import Shelf
from tests.support.pooler import Pooler, pooler_to

SERVED = [kind for kind in ("postgresql",) if kind in SERVERS]


@pytest.fixture(params=SERVED)
async def pooler(request: pytest.FixtureRequest, shelf: Shelf, tmp_path: Path) -> AsyncIterator[Pooler]:
    """Two real connections for everybody."""
    async with pooler_to(shelf.take(request.param, tmp_path), size=2) as pooler:
        yield pooler


def is_pooled(database: Database) -> bool:
    backend = database._backend
    assert isinstance(backend, ServerPool)
    return backend.pooled


async def test_a_pooler_is_noticed_and_a_plain_server_is_not(pooler: Pooler, make_database: MakeDatabase) -> None:
    assert is_pooled(await make_database(pooler.url))
    direct = pooler._target.render_as_string(hide_password=False)
    assert not is_pooled(await make_database(direct))
    assert pooler.refused == []


async def test_all_verbs_work_while_transactions_change_connections(
    pooler: Pooler, make_database: MakeDatabase
) -> None:
    databases = [await make_database(pooler.url) for _ in range(3)]
    before = pooler.turns
    calls = []
    for number, database in enumerate(databases):
        for count in range(40):
            verb = database.write if count % 2 else database.write_one
            calls += [verb(add, f"{number}-{count:02}"), database.read(names)]
    await asyncio.gather(*calls)
    assert len(await databases[0].read(names)) == 120
    assert pooler.turns > before + 240 - 1
    assert await migrations.migrate(databases[0]) is False


async def test_limits_and_level_hold_inside_each_transaction(pooler: Pooler, make_database: MakeDatabase) -> None:
    database = await make_database(pooler.url)

    def settings(tx: Tx) -> list[str]:
        ask = "lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout", "transaction_isolation", "jit"
        return [str(tx.execute(text(f"SHOW {name}")).scalar_one()) for name in ask]

    def named(tx: Tx) -> int:
        return int(tx.execute(text("SELECT count(*) FROM pg_prepared_statements WHERE name <> ''")).scalar_one())

    for verb in (database.write, database.write_one, database.read):
        assert await verb(settings) == ["5s", "30s", "1min", "read committed", "off"]
        assert await verb(named) == 0  # one with a name could meet its namesake on the next connection


async def test_nothing_is_left_behind_on_the_shared_connections(pooler: Pooler, make_database: MakeDatabase) -> None:
    import asyncpg

    database = await make_database(pooler.url)
    await asyncio.gather(*(database.write(add, f"q{number}") for number in range(20)))
    target = pooler._target.set(port=int(pooler.url.rpartition(":")[2].partition("/")[0]))
    others = [
        await asyncpg.connect(
            host="127.0.0.1", port=target.port, user=target.username, database=target.database, statement_cache_size=0
        )
        for _ in range(2)
    ]
    for other in others:
        await other.execute("BEGIN")  # both at once, so each has one of the two
    for other in others:
        assert await other.fetchval("SHOW lock_timeout") == "0"
        assert await other.fetchval("SHOW statement_timeout") == "0"
        assert await other.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE name <> ''") == 0
        await other.execute("ROLLBACK")
        await other.close()
