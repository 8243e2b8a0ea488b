"""Connections that are cut, servers that are killed or stand still, and commits whose answer is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import text

from onebeat.errors import DatabaseUnavailable
from onebeat.store import migrations
from onebeat.store.retries import CommitUnknown
from onebeat.store.tx import Tx
from tests.conftest import SERVERS, MakeDatabase
from tests.store.conftest import Private
from tests.store.test_database import add, names
from tests.support.databases import ADMINS, Shelf, kind_of, waits_until
from tests.support.proxy import Proxy

COMMIT = {"postgresql": b"COMMIT\0", "mariadb": b"COMMIT"}  # and no other statement that speaks of READ COMMITTED


def add_known(tx: Tx, name: str) -> str:
    """As store functions are written: running again after a success is recognised by the id made before."""
    inserted = tx.execute(tx.dialect.insert_ignore(tx.tables.queues).values(name=name)).rowcount
    return "inserted" if inserted else "was there"


@pytest.mark.parametrize("before", [False, True], ids=["after the server got it", "before the server got it"])
async def test_a_commit_whose_answer_is_lost_is_settled_by_running_again(
    proxy: Proxy, make_database: MakeDatabase, before: bool
) -> None:
    database = await make_database(proxy.url)
    proxy.cut_on, proxy.before = COMMIT[kind_of(proxy.url)], before
    assert await database.write(add_known, "a") == ("inserted" if before else "was there")
    assert proxy.cuts == 1
    assert await database.read(names) == ["a"]


async def test_a_commit_that_stays_unknown_is_told_as_unknown(proxy: Proxy, make_database: MakeDatabase) -> None:
    database = await make_database(proxy.url)
    proxy.cut_on, proxy.refuse_after_cut = COMMIT[kind_of(proxy.url)], True
    with pytest.raises(CommitUnknown, match="whether it happened is unknown"):
        await database.write(add_known, "a")
    proxy.refuse = False
    assert await database.write(add_known, "a") == "was there"


async def test_a_single_statement_whose_answer_is_lost_is_run_again(proxy: Proxy, make_database: MakeDatabase) -> None:
    database = await make_database(proxy.url)
    await database.write_one(add_known, "first")  # so that the statement is prepared
    proxy.cut_on = b"cut-here"
    assert await database.write_one(add_known, "cut-here") == "was there"
    assert proxy.cuts == 1
    assert await database.read(names) == ["cut-here", "first"]


async def test_connections_that_died_while_idle_cost_the_caller_nothing(
    proxy: Proxy, make_database: MakeDatabase
) -> None:
    database = await make_database(proxy.url)
    await asyncio.gather(*(database.write(add, f"q{number}") for number in range(9)))
    for number in range(5):
        proxy.cut()
        assert await database.write(add_known, f"after{number}") in ("inserted", "was there")
        proxy.cut()
        assert len(await database.read(names)) == 10 + number


async def test_a_killed_session_is_replaced(served: str, make_database: MakeDatabase) -> None:
    database = await make_database(served)
    await database.write(add, "a")
    ADMINS[kind_of(served)].end_sessions(str(database.url.database))
    assert await database.read(names) == ["a"]
    ADMINS[kind_of(served)].end_sessions(str(database.url.database))
    assert await database.write(add, "b") == "b"


@pytest.mark.skipif("mariadb" not in SERVERS, reason="MariaDB cannot be reached")
@pytest.mark.parametrize("number", [4031, 1047, 3169], ids=["idle for too long", "node left Galera", "killed"])
async def test_a_passing_fault_of_mysql_costs_the_caller_a_new_connection_and_nothing_else(
    number: int, shelf: Shelf, tmp_path: Path, make_database: MakeDatabase
) -> None:
    database = await make_database(shelf.take("mariadb", tmp_path))
    tries = 0

    def add_after_the_fault(tx: Tx) -> str:
        nonlocal tries
        tries += 1
        if tries == 1:
            tx.execute(text(f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = 'passing'"))
        return add_known(tx, "a")

    assert await database.write(add_after_the_fault) == "inserted"
    assert tries == 2
    assert await database.read(names) == ["a"]


async def test_a_server_killed_in_mid_load_loses_nothing_it_had_told(
    running: Private, make_database: MakeDatabase
) -> None:
    database = await make_database(running.url)
    told: set[str] = set()
    unknown: set[str] = set()
    stop = False

    async def enqueue(lane: int) -> None:
        number = 0
        while not stop:
            name = f"{lane}-{number}"
            number += 1
            try:
                await database.write(add_known, name)
                told.add(name)
            except DatabaseUnavailable:
                unknown.add(name)
                await asyncio.sleep(0.02)

    lanes = [asyncio.create_task(enqueue(lane)) for lane in range(5)]
    await waits_until(lambda: len(told) > 50)
    running.kill()
    await waits_until(lambda: len(unknown) > 5)
    before = len(told)
    await asyncio.to_thread(running.start)
    loop = asyncio.get_running_loop()
    back = loop.time()
    await waits_until(lambda: len(told) > before + 50, within=30)
    assert loop.time() - back < 20  # ten seconds are promised; this machine is shared
    stop = True
    await asyncio.gather(*lanes)
    kept = set(await database.read(names))
    lost = told - kept
    assert not lost
    assert kept <= told | unknown


async def test_a_server_that_stands_still_is_given_up_within_the_limit(
    running: Private, make_database: MakeDatabase
) -> None:
    database = await make_database(running.url, call_limit=1.0)
    await database.write(add, "before")
    running.pause()
    loop = asyncio.get_running_loop()
    started = loop.time()
    try:
        with pytest.raises(CommitUnknown):
            await database.write(add_known, "meanwhile")
        with pytest.raises(DatabaseUnavailable):
            await database.read(names)
        assert loop.time() - started < 60
    finally:
        running.proceed()
    assert await database.write(add_known, "after") == "inserted"
    assert {"before", "after"} <= set(await database.read(names))


async def test_a_table_changed_by_a_deploy_does_not_fail_what_was_prepared_before(
    fresh_database_url: str, make_database: MakeDatabase
) -> None:
    database = await make_database(fresh_database_url, pool_size=1)
    await migrations.migrate(database)
    everything = text("SELECT * FROM onebeat_limits")

    def look(tx: Tx) -> int:
        return len(tx.execute(everything).keys())

    before = await database.write(look), await database.read(look)
    deploying = await make_database(fresh_database_url)
    await deploying.exclusive(
        lambda tx: tx.execute(text("ALTER TABLE onebeat_limits ADD COLUMN more INTEGER")), patience=5
    )
    assert (await database.write(look), await database.read(look)) == (before[0] + 1, before[1] + 1)


async def test_a_connection_that_cannot_be_rolled_back_serves_nobody_else(
    database_url: str, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = await make_database(database_url, pool_size=1)
    undo = type(database.dialect).rollback

    def broken(self: object, connection: object) -> None:
        raise RuntimeError("the rollback itself fails")

    def half(tx: Tx) -> None:
        add(tx, "half")
        monkeypatch.setattr(type(database.dialect), "rollback", broken)
        raise LookupError("in the middle")

    with pytest.raises((LookupError, RuntimeError)):
        await database.write(half)
    monkeypatch.setattr(type(database.dialect), "rollback", undo)
    assert await database.write(add, "whole") == "whole"
    assert await database.read(names) == ["whole"]
