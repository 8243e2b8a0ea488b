"""A claim takes the first jobs in order, and reads no more than it takes, whatever else waits."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text, update

from onebeat.model.ids import token
from onebeat.model.job import Claimed
from onebeat.store.connection.database import Database
from onebeat.store.jobs import claim, insert
from onebeat.store.jobs.kinds import Kind, KnownKinds, gap_of, gaps_between
from onebeat.store.tx import Tx
from tests.support.builders import a_job, claimed, registered

WAITING = 3_000
BOTH = ("work", "other")


def rows_read(tx: Tx) -> int:
    """How many rows this transaction has read so far; on SQLite, how many steps of its virtual machine, by ten."""
    if tx.dialect.one_writer:
        return counted(tx)[0]
    if tx.dialect.update_returning:
        query = "SELECT sum(idx_tup_fetch + seq_tup_read) FROM pg_stat_xact_user_tables"
        return int(tx.connection.execute(text(query)).scalar_one())
    found = tx.connection.execute(text("SHOW SESSION STATUS LIKE 'Handler_read%'"))
    return sum(int(row[1]) for row in found)


def counted(tx: Tx) -> list[int]:
    driver = tx.connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    if "steps" not in tx.connection.info:
        steps = tx.connection.info["steps"] = [0]

        def step() -> int:
            steps[0] += 1
            return 0

        driver.set_progress_handler(step, 10)
    steps_so_far: list[int] = tx.connection.info["steps"]
    return steps_so_far


async def reads(database: Database, call: Callable[[Tx], Any]) -> tuple[Any, int]:
    """What the call returns, and how many rows it reads."""

    def measure(tx: Tx) -> tuple[Any, int]:
        before = rows_read(tx)
        result = call(tx)
        return result, rows_read(tx) - before

    return await database.write(measure)


@pytest.fixture
async def backlog(database: Database) -> Database:
    """Many jobs of the task `work` in the queue `bulk`, and behind them three of `other` in `mail`."""
    await database.write(insert.add, [a_job(queue="bulk") for _ in range(WAITING)])
    await database.write(insert.add, [a_job(queue="mail", task="other") for _ in range(3)])
    return database


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param({"tasks": BOTH, "queues": ("mail",)}, id="a queue"),
        pytest.param({"tasks": BOTH, "excluded": ("bulk",)}, id="all queues but one"),
        pytest.param({"tasks": ("other",)}, id="a task"),
        pytest.param({"tasks": ("unknown",)}, id="a task that has no jobs"),
        pytest.param({"tasks": BOTH, "limit": 10}, id="everything"),
    ],
)
async def test_a_claim_does_not_read_the_jobs_of_others(backlog: Database, wanted: dict[str, Any]) -> None:
    values: dict[str, Any] = {"worker_id": await registered(backlog), "token": token(), "limit": 3} | wanted
    got, many = await reads(backlog, lambda tx: claim.claim(tx, **values))
    expected = {"unknown": 0}.get(values["tasks"][0], values["limit"])
    assert len(got) == expected
    assert many < WAITING / 5


@pytest.mark.parametrize("tasks", [BOTH, ("unknown",)])
async def test_looks_do_not_read_the_jobs_of_others(backlog: Database, tasks: tuple[str, ...]) -> None:
    found, many = await reads(backlog, lambda tx: claim.any_claimable(tx, tasks=tasks, queues=("mail",)))
    assert found is ("other" in tasks)
    assert many < WAITING / 5


async def test_the_looks_for_suspects_read_suspects_alone(backlog: Database) -> None:
    def make_suspect(tx: Tx) -> None:
        c = tx.tables.jobs.c
        tx.execute(update(tx.tables.jobs).where(c.queue == "mail").values(crashes=2))

    await backlog.write(make_suspect)
    found, many = await reads(backlog, lambda tx: claim.suspects(tx, tasks=BOTH, queues=("mail", "bulk")))
    assert len(found) == 3
    assert many < WAITING / 5


@pytest.mark.parametrize("many", [0, 3])
async def test_jobs_of_several_queues_and_tasks_are_claimed_in_one_order(database: Database, many: int) -> None:
    jobs = [
        a_job(queue=queue, task=task, priority=priority)
        for priority in (0, 5)
        for _ in range(3)
        for queue, task in (("mail", "work"), ("bulk", "work"), ("mail", "other"))
    ]
    await database.write(insert.add, jobs)
    worker, known = await registered(database), KnownKinds()
    order: list[Claimed] = []
    known.many = many  # 3: as if many were queued, so each kind is searched for, and its jobs merged by the database
    for limit in (1, 2, 5, 4, 10):
        order += await claimed(database, worker, limit, tasks=BOTH, known=known)
    keys = [(job.rank, job.run_at_us, job.id) for job in order]
    assert len(keys) == len(jobs)
    assert keys == sorted(keys)


async def test_new_kinds_are_found_beside_known_ones(database: Database) -> None:
    worker, known = await registered(database), KnownKinds()
    for queue, task in (("m", "other"), ("m", "work"), ("a", "work"), ("z", "other"), ("m", "other"), ("n", "other")):
        job = a_job(queue=queue, task=task)
        await database.write(insert.add, [job])
        (got,) = await claimed(database, worker, tasks=BOTH, known=known)
        assert got.id == job.id


async def test_a_new_kind_is_found_at_once_beside_many_jobs_of_others(backlog: Database) -> None:
    worker, known = await registered(backlog), KnownKinds()
    for number in range(12):
        job = a_job(queue=f"new-{number}", task="other")
        await backlog.write(insert.add, [job])
        await claimed(backlog, worker, 2, tasks=("work",), known=known)
        got = await claimed(backlog, worker, 10, tasks=("other",), excluded=("mail",), known=known)
        assert [each.id for each in got] == [job.id]


async def test_kinds_that_are_gone_are_forgotten(backlog: Database) -> None:
    if backlog.dialect.searches_steps:
        return  # it remembers none
    database = backlog
    gone = {Kind(f"queue-{number}", "work") for number in range(150)}
    known = KnownKinds(kinds=gone)
    assert await claimed(database, await registered(database), known=known)
    assert known.kinds == {Kind("bulk", "work"), Kind("mail", "other")}


async def test_a_suspect_hides_no_job_behind_it(database: Database) -> None:
    suspect, job = a_job(priority=9), a_job()
    await database.write(insert.add, [suspect, job])
    table = database.tables.jobs
    await database.write(
        lambda tx: tx.execute(update(table).where(table.c.id == suspect.id).values(crashes=2)) and None
    )
    assert [got.id for got in await claimed(database, await registered(database), 1)] == [job.id]


def test_each_kind_lies_in_one_gap() -> None:
    gaps = gaps_between([Kind("mail", "send"), Kind("mail", "sort")])
    assert gap_of(Kind("bulk", "work"), gaps) == gaps[0]
    assert gap_of(Kind("mail", "sew"), gaps) == gaps[1]
    assert gap_of(Kind("mail", "work"), gaps) == gaps[2]
