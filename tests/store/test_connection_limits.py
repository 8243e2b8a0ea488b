"""Limits of each connection and of their number."""

from __future__ import annotations

import asyncio

from sqlalchemy import func, select, text

from tests.conftest import MakeDatabase
from tests.store.test_database import add, names
from tests.support.databases import ADMINS, kind_of


async def test_an_abandoned_transaction_is_ended_by_the_server(served: str, make_database: MakeDatabase) -> None:
    """The backstop for a process that stops in mid-transaction: limits are set on each connection."""
    database = await make_database(served)
    if database.dialect.name == "postgresql":
        ask = text(
            "SELECT current_setting('idle_in_transaction_session_timeout') || ' ' || current_setting('lock_timeout')"
        )
        expected = "1min 5s"
    else:
        ask = text("SELECT concat(@@idle_transaction_timeout, ' ', @@innodb_lock_wait_timeout)")
        expected = "60 5"
    assert await database.write(lambda tx: tx.execute(ask).scalar_one()) == expected


async def test_no_more_connections_than_asked_for(served: str, make_database: MakeDatabase) -> None:
    database = await make_database(served, pool_size=2)
    await asyncio.gather(*(database.write(add, f"q{number}") for number in range(60)))
    await asyncio.gather(
        *(database.read(names) for _ in range(60)), *(database.write_one(add, f"o{n}") for n in range(60))
    )
    assert ADMINS[kind_of(served)].sessions(str(database.url.database)) <= 2
    assert (
        await database.read(lambda tx: tx.execute(select(func.count()).select_from(tx.tables.queues)).scalar_one())
        == 120
    )
