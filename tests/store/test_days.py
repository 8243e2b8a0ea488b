"""Bad days of a server: gone, back, cut in a COMMIT, standing still, misconfigured, and callers that give up."""

from __future__ import annotations

import asyncio
import random
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from onebeat.errors import DatabaseUnavailable, NotStarted
from onebeat.store import migrations
from onebeat.store.connection.database import Database
from onebeat.store.tables import Tables, build
from onebeat.store.tx import CommitUnknown, Tx
from tests.conftest import SERVERS, MakeDatabase
from tests.store.test_database import add, names
from tests.support.databases import ADMINS, Shelf, kind_of, waits_until
from tests.support.proxy import Proxy, proxy_to
from tests.support.servers import PRIVATE, MariaDBServer, PostgreSQLServer, free_port

SERVED = [kind for kind in ("postgresql", "mariadb") if kind in SERVERS]
Private = PostgreSQLServer | MariaDBServer


@pytest.fixture(scope="module", params=SERVED)
def private(request: pytest.FixtureRequest) -> Iterator[Private]:
    """A server of one's own, to be killed and stopped; its default isolation is the strictest there is."""
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
    """The URL of a migrated database on a server; a file has none, its bad days are in test_sqlite."""
    return shelf.take(request.param, tmp_path)


@pytest.fixture
async def proxy(served: str) -> AsyncIterator[Proxy]:
    """A proxy before that server."""
    async with proxy_to(served) as proxy:
        yield proxy


# ── at start ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
async def test_an_unreachable_server_is_tried_until_the_timeout_and_then_named(scheme: str, tables: Tables) -> None:
    database = Database(f"{scheme}://user:s3cret@127.0.0.1:{free_port()}/app", tables=tables)
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(DatabaseUnavailable, match=r"cannot be reached; is it running") as caught:
        await database.open(timeout=1.0)
    assert 0.5 < loop.time() - started < 10
    assert caught.value.reason == "unreachable"
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(NotStarted):
        await database.read(names)


async def test_a_host_that_does_not_exist_is_said(tables: Tables) -> None:
    database = Database("postgresql://user@no-such-host.invalid/app", tables=tables)
    with pytest.raises(DatabaseUnavailable, match=r"no-such-host\.invalid.*cannot be reached"):
        await database.open(timeout=0.5)


async def test_a_server_that_comes_up_in_time_is_waited_for(running: Private, tables: Tables) -> None:
    running.kill()
    database = Database(running.url, tables=tables)
    opening = asyncio.create_task(database.open(timeout=60))
    await asyncio.sleep(0.3)
    assert not opening.done()
    await asyncio.to_thread(running.start)
    await opening
    assert await database.write(add, "a") == "a"
    await database.close()


async def test_a_wrong_password_is_refused_at_once_and_never_shown(
    running: Private, tables: Tables, caplog: pytest.LogCaptureFixture
) -> None:
    if isinstance(running, PostgreSQLServer):
        running.sql("DROP ROLE IF EXISTS shop; CREATE ROLE shop LOGIN PASSWORD 'right'")
        url = f"postgresql://shop:s3cret-wrong@127.0.0.1:{running.port}/postgres"
    else:
        running.sql("CREATE OR REPLACE USER 'shop'@'%' IDENTIFIED BY 'right'")
        url = f"mysql://shop:s3cret-wrong@127.0.0.1:{running.port}/app"
    database = Database(url, tables=tables)
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(DatabaseUnavailable, match="refused the login; check user and password") as caught:
        await database.open(timeout=30)
    assert loop.time() - started < 15
    assert caught.value.reason == "login"
    assert "s3cret-wrong" not in "".join(traceback.format_exception(caught.value)) + caplog.text


async def test_a_missing_database_is_refused_at_once(served: str, tables: Tables) -> None:
    database = Database(served + "_none", tables=tables)
    with pytest.raises(DatabaseUnavailable, match="create the database first") as caught:
        await database.open(timeout=30)
    assert caught.value.reason == "missing-database"


# ── isolation ─────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_the_level_is_read_committed_whatever_the_servers_default(
    running: Private, make_database: MakeDatabase
) -> None:
    database = await make_database(running.url)
    if isinstance(running, PostgreSQLServer):
        assert running.sql("SHOW default_transaction_isolation") == "serializable"
        ask, durable, expected = text("SHOW transaction_isolation"), text("SHOW synchronous_commit"), "read committed"
    else:
        assert running.sql("SELECT @@GLOBAL.tx_isolation") == "SERIALIZABLE"
        ask, durable, expected = text("SELECT @@SESSION.tx_isolation"), text("SELECT 'on'"), "READ-COMMITTED"
        assert "innodb_flush_log_at_trx_commit is 2" in database.cautions[0]

    def level(tx: Tx) -> tuple[str, str]:
        return tx.execute(ask).scalar_one(), tx.execute(durable).scalar_one()

    assert await database.write(level) == (expected, "on")
    assert await database.write_one(level) == (expected, "on")
    assert await database.read(level) == (expected, "on")


async def test_a_compare_and_set_that_waited_sees_the_winners_row(
    running: Private, make_database: MakeDatabase
) -> None:
    """In the server's own SERIALIZABLE the second one would raise; in READ COMMITTED it loses with a row count of 0."""
    database = await make_database(running.url)
    await database.write(lambda tx: tx.execute(tx.tables.limits.insert().values(name="n", kind="task")))
    loop, held, go = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def move(tx: Tx, wait: bool) -> int:
        from sqlalchemy.util import await_only

        limits = tx.tables.limits
        moved = tx.execute(limits.update().where(limits.c.name == "n", limits.c.tokens == 0).values(tokens=1)).rowcount
        if wait:
            loop.call_soon(held.set)
            await_only(go.wait())
        return moved

    first = asyncio.create_task(database.write(move, True))
    await held.wait()
    second = asyncio.create_task(database.write(move, False))
    await asyncio.sleep(0.2)
    assert not second.done()
    go.set()
    assert (await first, await second) == (1, 0)


async def test_a_deadlock_is_tried_again_and_both_succeed(served: str, make_database: MakeDatabase) -> None:
    database = await make_database(served)
    await database.write(lambda tx: tx.execute(tx.tables.limits.insert(), [{"name": n, "kind": "task"} for n in "ab"]))
    both, arrived, runs = asyncio.Event(), 0, 0
    loop = asyncio.get_running_loop()

    def cross(tx: Tx, order: tuple[str, str]) -> None:
        from sqlalchemy.util import await_only

        nonlocal arrived, runs
        runs += 1
        limits = tx.tables.limits
        for position, name in enumerate(order):
            tx.execute(limits.update().where(limits.c.name == name).values(tokens=limits.c.tokens + 1))
            if position == 0 and arrived < 2:
                arrived += 1
                if arrived == 2:
                    loop.call_soon(both.set)
                await_only(both.wait())

    await asyncio.gather(database.write(cross, ("a", "b")), database.write(cross, ("b", "a")))
    used = await database.read(lambda tx: list(tx.execute(select(tx.tables.limits.c.tokens)).scalars()))
    assert used == [2, 2]
    assert runs == 3  # one of them was the victim and ran again


# ── lost connections ──────────────────────────────────────────────────────────────────────────────────────────────────
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


# ── callers that give up ──────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_thousand_cancels_leave_no_connection_and_no_lock(
    database_kind: str, database_url: str, make_database: MakeDatabase
) -> None:
    database = await make_database(database_url, pool_size=3)
    await database.write(lambda tx: tx.execute(tx.tables.limits.insert().values(name="n", kind="task")))
    dice = random.Random(7)

    def up(tx: Tx) -> None:
        limits = tx.tables.limits
        tx.execute(tx.dialect.lock_rows(select(limits.c.tokens).where(limits.c.name == "n"))).scalar_one()
        tx.execute(limits.update().where(limits.c.name == "n").values(tokens=limits.c.tokens + 1))

    finished = 0
    for _ in range(100):
        tasks = [asyncio.create_task(database.write(up)) for _ in range(10)]
        for _ in range(dice.randrange(12)):
            await asyncio.sleep(0)
        await asyncio.sleep(dice.random() * 0.003)
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        finished += sum(outcome is None for outcome in outcomes)
        assert all(outcome is None or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)

    await asyncio.wait_for(database.write(up), 10)  # the row is not locked by anybody
    used = await database.read(lambda tx: tx.execute(select(tx.tables.limits.c.tokens)).scalar_one())
    assert finished + 1 <= used <= 1001
    if database_kind != "sqlite":
        sessions = ADMINS[database_kind].sessions(str(database.url.database))
        assert 1 <= sessions <= 3
    await database.close()
    if database_kind != "sqlite":
        name = str(database.url.database)
        await waits_until(lambda: ADMINS[database_kind].sessions(name) == 0)


async def test_a_cancel_in_mid_transaction_lets_it_end_by_itself(served: str, make_database: MakeDatabase) -> None:
    database = await make_database(served)
    loop, held, go = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def slow(tx: Tx) -> None:
        from sqlalchemy.util import await_only

        add(tx, "a")
        loop.call_soon(held.set)
        await_only(go.wait())

    task = asyncio.create_task(database.write(slow))
    await held.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()
    await database.close()  # waits for it
    reopened = await make_database(served)
    assert await reopened.read(names) == ["a"]


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


async def test_the_offset_to_the_servers_clock_is_measured(database: Database) -> None:
    assert abs(await database.measure_offset()) < 1_000_000  # this machine's own clock
    assert database.offset_us == await database.measure_offset() or not database.dialect.one_writer


async def test_a_virtual_clocks_offset_is_measured_too(database_url: str, make_database: MakeDatabase) -> None:
    import time

    database = await make_database(database_url, clock=lambda: time.time_ns() // 1000 + 3_600_000_000)
    assert abs(await database.measure_offset() - 3_600_000_000) < 1_000_000
