"""The few answers in which databases differ, asked of each."""

from __future__ import annotations

import asyncio
import ssl
import time

import pytest
from sqlalchemy import Update, bindparam, func, literal, select, text, update
from sqlalchemy.exc import DBAPIError

from onebeat.store.connection.database import Database
from onebeat.store.dialects.base import select_clock
from onebeat.store.dialects.mysql import MySQL
from onebeat.store.dialects.postgresql import PostgreSQL
from onebeat.store.dialects.sqlite import SQLite
from onebeat.store.faults import Fault
from onebeat.store.tx import Tx
from tests.conftest import MakeDatabase
from tests.store.test_database import add, names


async def test_the_clock_expression_is_now_in_microseconds_as_a_number(database: Database) -> None:
    def ask(tx: Tx) -> object:
        return tx.execute(select_clock(tx.dialect.clock_expression())).scalar_one()

    before = time.time_ns() // 1000
    now = await database.read(ask)
    after = time.time_ns() // 1000
    assert isinstance(now, int)
    assert before - 2_000 <= now <= after + 2_000  # this machine's clock; SQLite counts milliseconds
    later = await database.read(ask)
    assert isinstance(later, int)
    assert later >= now


async def test_the_clock_can_be_compared_and_added_to_inside_a_statement(database: Database) -> None:
    def lease(tx: Tx) -> tuple[int, int]:
        locks = tx.tables.locks
        tx.execute(locks.insert().values(name="a", fence=1, expires_us=tx.clock + 60_000_000))
        expired = tx.execute(select(func.count()).select_from(locks).where(locks.c.expires_us <= tx.clock)).scalar_one()
        return expired, tx.execute(select(locks.c.expires_us - tx.clock)).scalar_one()

    expired, left = await database.write(lease)
    assert expired == 0
    assert 50_000_000 < left <= 60_000_000


async def test_the_clock_moves_within_a_transaction(database: Database) -> None:
    def twice(tx: Tx) -> tuple[int, int]:
        ask = select_clock(tx.dialect.clock_expression())
        first = tx.execute(ask).scalar_one()
        deadline = time.monotonic() + 5
        while (second := tx.execute(ask).scalar_one()) == first and time.monotonic() < deadline:
            pass
        return first, second

    first, second = await database.write(twice)
    assert second > first


async def test_locked_rows_are_skipped_by_the_second_claimer(database_url: str, make_database: MakeDatabase) -> None:
    database = await make_database(database_url)
    if database.dialect.one_writer:
        return  # whoever writes is alone: nothing to skip, see test_sqlite
    for name in ("a", "b", "c"):
        await database.write(add, name)
    locked, go = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def pick(tx: Tx, limit: int) -> list[str]:
        queues = tx.tables.queues
        return list(
            tx.execute(tx.dialect.skip_locked(select(queues.c.name).order_by(queues.c.name).limit(limit))).scalars()
        )

    def hold(tx: Tx) -> list[str]:
        from sqlalchemy.util import await_only

        found = pick(tx, 2)
        loop.call_soon(locked.set)
        await_only(go.wait())
        return found

    first = asyncio.create_task(database.write(hold))
    await locked.wait()
    assert await database.write(pick, 3) == ["c"]
    go.set()
    assert await first == ["a", "b"]


async def test_a_taken_key_is_ignored_counted_and_not_logged(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    def insert(tx: Tx, name: str) -> int:
        return tx.execute(tx.dialect.insert_ignore(tx.tables.queues).values(name=name)).rowcount

    assert await database.write(insert, "a") == 1
    assert await database.write(insert, "a") == 0
    assert await database.write(insert, "A") == 1  # names are compared byte by byte
    assert await database.read(names) == ["A", "a"]
    assert not caplog.records  # asyncmy would log each as a warning, in the application's log at each start


async def test_any_unique_key_is_ignored_not_only_the_primary_one(database: Database) -> None:
    def fires(tx: Tx) -> list[int]:
        row = {
            "schedule_id": "s",
            "fire_us": 1,
            "origin": "schedule",
            "decision": "started",
            "decided_by": "w",
            "decided_us": 1,
        }
        insert = tx.dialect.insert_ignore(tx.tables.fires)
        return [tx.execute(insert.values(fire_key=key, **row)).rowcount for key in ("k", "k", "l")]

    assert await database.write(fires) == [1, 0, 1]


async def test_an_upsert_inserts_and_then_updates(database: Database) -> None:
    def acquire(tx: Tx, owner: str) -> tuple[str, int]:
        locks = tx.tables.locks
        values = {"name": "n", "owner": owner, "fence": 10, "expires_us": 5}
        update = {"fence": tx.dialect.greatest(locks.c.fence + 1, literal(7)), "owner": literal(owner)}
        tx.execute(tx.dialect.upsert(locks, values, key=["name"], update=update))
        row = tx.execute(select(locks.c.owner, locks.c.fence)).one()
        return row.owner, row.fence

    assert await database.write(acquire, "a") == ("a", 10)
    assert await database.write(acquire, "b") == ("b", 11)
    assert await database.write(acquire, "c") == ("c", 12)


async def test_the_larger_of_two_numbers(database: Database) -> None:
    def larger(tx: Tx) -> tuple[int, ...]:
        greatest = tx.dialect.greatest
        row = tx.execute(select(greatest(literal(1), literal(2)), greatest(literal(2**53 + 1), literal(3)))).one()
        return tuple(row)

    assert await database.read(larger) == (2, 2**53 + 1)


async def test_one_statement_changes_each_given_row(database: Database) -> None:
    def build(tx: Tx) -> Update:
        c = tx.tables.locks.c
        given = tx.dialect.given_rows(g_name=c.name, g_fence=c.fence, g_owner=c.owner)
        changed = {"fence": c.fence + given.g_fence, "owner": given.g_owner, "expires_us": bindparam("b_expires")}
        return update(tx.tables.locks).where(c.name == given.g_name).values(**changed)

    def change(tx: Tx) -> list[tuple[object, ...]]:
        locks = tx.tables.locks
        tx.execute(locks.insert(), [{"name": name, "fence": 1, "expires_us": 0} for name in ("a", "A", "b'\"%s:x")])
        rows = [
            {"g_name": "a", "g_fence": 2**62, "g_owner": None},
            {"g_name": "b'\"%s:x", "g_fence": 2, "g_owner": "me"},
            {"g_name": "unknown", "g_fence": 3, "g_owner": "me"},
        ]
        tx.execute(tx.prepared(build), tx.dialect.given(rows, b_expires=7))
        found = select(locks.c.name, locks.c.fence, locks.c.owner, locks.c.expires_us).order_by(locks.c.fence)
        return [tuple(row) for row in tx.execute(found)]

    expected = [("A", 1, None, 0), ("b'\"%s:x", 3, "me", 7), ("a", 2**62 + 1, None, 7)]
    assert await database.write(change) == expected


async def test_a_plan_can_be_asked_for(database: Database) -> None:
    def plan(tx: Tx) -> str:
        jobs = tx.tables.jobs
        return tx.dialect.explain(tx.connection, select(jobs.c.id).where(jobs.c.tracking_id == "x' : %s"))

    assert "jobs" in (await database.read(plan)).lower()


async def test_real_errors_are_understood(database: Database) -> None:
    async def fault(statement: str) -> Fault:
        with pytest.raises(DBAPIError) as caught:
            await database._open_backend().run(lambda tx: tx.execute(text(statement)), write=True, single=False)
        return database.dialect.classify(caught.value)

    await database.write(add, "a")
    assert await fault("INSERT INTO onebeat_queues (name) VALUES ('a')") is Fault.DUPLICATE
    assert await fault("SELECT nonsense FROM onebeat_queues") is Fault.UNKNOWN


@pytest.mark.parametrize(
    ("state", "fault"),
    [
        ("40001", Fault.RETRY), ("40P01", Fault.RETRY), ("55P03", Fault.RETRY), ("57P01", Fault.DISCONNECT),
        ("57P03", Fault.UNREACHABLE), ("08006", Fault.DISCONNECT), ("25006", Fault.READ_ONLY), ("28P01", Fault.LOGIN),
        ("53100", Fault.FULL), ("42501", Fault.PERMISSION), ("42P01", Fault.MISSING_TABLE), ("22001", Fault.UNKNOWN),
    ],
)  # fmt: skip
def test_sqlstates_mean_what_reliability_asks(state: str, fault: Fault) -> None:
    class Said(Exception):
        sqlstate = state

    assert PostgreSQL().classify(Said()) is fault


@pytest.mark.parametrize(
    ("number", "fault"),
    [
        (1205, Fault.RETRY), (1213, Fault.RETRY), (1020, Fault.RETRY), (1290, Fault.READ_ONLY), (1836, Fault.READ_ONLY),
        (2006, Fault.DISCONNECT), (2013, Fault.DISCONNECT), (2055, Fault.DISCONNECT), (1045, Fault.LOGIN),
        (1146, Fault.MISSING_TABLE), (1062, Fault.DUPLICATE), (1064, Fault.UNKNOWN), (2003, Fault.UNREACHABLE),
        (1047, Fault.UNREACHABLE), (1226, Fault.UNREACHABLE), (3032, Fault.UNREACHABLE), (3168, Fault.UNREACHABLE),
        (1080, Fault.DISCONNECT), (3169, Fault.DISCONNECT), (4031, Fault.DISCONNECT), (3101, Fault.RETRY),
    ],
)  # fmt: skip
def test_error_numbers_mean_what_reliability_asks(number: int, fault: Fault) -> None:
    assert MySQL().classify(Exception(number, "words")) is fault


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (5, Fault.RETRY), (517, Fault.RETRY), (6, Fault.RETRY), (262, Fault.RETRY), (15, Fault.RETRY),
        (11, Fault.CORRUPT), (26, Fault.CORRUPT), (13, Fault.FULL), (8, Fault.READ_ONLY),
        (1032, Fault.READ_ONLY), (2067, Fault.DUPLICATE),
        (14, Fault.UNREACHABLE), (1, Fault.UNKNOWN),
    ],
)  # fmt: skip
def test_result_codes_mean_what_reliability_asks(code: int, fault: Fault) -> None:
    import sqlite3

    error = sqlite3.OperationalError("words")
    error.sqlite_errorcode = code
    assert SQLite().classify(error) is fault


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (ConnectionRefusedError(111, "refused"), Fault.UNREACHABLE),
        (ConnectionResetError(104, "reset"), Fault.DISCONNECT),
        (BrokenPipeError(32, "pipe"), Fault.DISCONNECT),
        (TimeoutError(), Fault.UNREACHABLE),
        (OSError(-2, "Name or service not known"), Fault.UNREACHABLE),
        (ValueError("of the caller"), Fault.UNKNOWN),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), Fault.UNKNOWN),  # waiting does not mend it
    ],
)
def test_the_networks_errors_are_understood_on_every_database(error: Exception, fault: Fault) -> None:
    assert PostgreSQL().classify(error) is fault
    assert MySQL().classify(error) is fault
