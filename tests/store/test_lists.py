"""Lists and counts of jobs: exact, in whatever way they find them, and short where few jobs match."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from sqlalchemy import update

from onebeat.model.info import JobInfo
from onebeat.model.job import NewJob
from onebeat.store import reports
from onebeat.store.connection.database import Database
from onebeat.store.jobs import find, insert
from onebeat.store.tx import Tx
from tests.store.test_claims import reads
from tests.support.builders import a_job

OTHERS = 3_000
STATES = ("queued", "running", "succeeded", "failed", "scheduled", "waiting")


def mixture() -> list[NewJob]:
    kinds = itertools.product(("mail", "bulk"), ("send", "read"), (None, "s"), ((), ("red",), ("red", "blue")))
    return [
        a_job(queue=queue, task=task, schedule_id=schedule, tags=tags, tracking_id=f"t{number % 5}")
        for number, (queue, task, schedule, tags) in enumerate(kinds)
    ]


def moved(tx: Tx, jobs: list[NewJob]) -> None:
    """Put the jobs into all states in turn."""
    c = tx.tables.jobs.c
    for number, job in enumerate(jobs):
        state = STATES[number % len(STATES)]
        ended = number if state in ("succeeded", "failed") else None
        tx.execute(update(tx.tables.jobs).where(c.id == job.id).values(state=state, finished_us=ended))


async def pages(database: Database, limit: int, **wanted: Any) -> list[JobInfo]:
    found: list[JobInfo] = []
    cursor, few = None, True
    while True:
        page = await database.read(reports.jobs, limit=limit, cursor=cursor, few=few, **wanted)
        found += page
        if page.cursor is None:
            return found
        few = len(page) == limit
        cursor = page.cursor


@pytest.mark.parametrize(("newest", "few"), [(1_000, 1_000), (5, 1_000), (5, 2)], ids=["at once", "by index", "steps"])
async def test_lists_and_counts_are_exact_in_each_way(
    newest: int, few: int, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "NEWEST", newest)
    monkeypatch.setattr(find, "STEP", 7)
    monkeypatch.setattr(find, "FEW", few)
    jobs = mixture()
    await database.write(insert.add, jobs)
    await database.write(moved, jobs)
    every = await pages(database, 100)
    assert [job.id for job in every] == sorted((job.id for job in jobs), reverse=True)
    filters: dict[str, list[Any]] = {
        "state": [None, *STATES, "cancelled"],
        "task": [None, "send", "none"],
        "queue": [None, "mail"],
        "schedule_id": [None, "s"],
        "tracking_id": [None, "t1"],
        "tag": [None, "blue"],
    }
    for values in itertools.product(*filters.values()):
        wanted = {name: value for name, value in zip(filters, values, strict=True) if value is not None}
        if len(wanted) > 2:
            continue
        expected = [
            job.id
            for job in every
            if all(
                value in job.tags if name == "tag" else getattr(job, name) == value for name, value in wanted.items()
            )
        ]
        assert [job.id for job in await pages(database, 3, **wanted)] == expected, wanted
        assert await database.read(reports.count_jobs, **wanted) == len(expected), wanted
        assert await database.read(reports.count_jobs, at_most=2, **wanted) == min(2, len(expected)), wanted


@pytest.fixture
async def history(database: Database) -> Database:
    """Many ended jobs of one kind, and many queued ones of another."""
    ended = [a_job(queue="work", task="other") for _ in range(OTHERS)]
    await database.write(insert.add, ended)

    def end(tx: Tx) -> None:
        tx.execute(update(tx.tables.jobs).values(state="succeeded", finished_us=1))

    await database.write(end)
    await database.write(insert.add, [a_job(queue="bulk", task="bulk") for _ in range(OTHERS)])
    return database


@pytest.mark.parametrize(
    "wanted",
    [
        {"task": "none"},
        {"queue": "none"},
        {"state": "failed"},
        {"state": "scheduled"},
        {"state": "failed", "task": "bulk"},
        {"schedule_id": "none"},
        {"tracking_id": "none"},
        {"tag": "none"},
    ],
    ids=str,
)
async def test_what_matches_no_job_is_found_out_without_reading_them(
    wanted: dict[str, Any], history: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "NEWEST", 50)
    page, many = await reads(history, lambda tx: reports.jobs(tx, limit=10, cursor=None, **wanted))
    assert (list(page), page.cursor) == ([], None)
    assert many < OTHERS / 5
    count, many = await reads(history, lambda tx: reports.count_jobs(tx, **wanted))
    assert count == 0
    assert many < OTHERS / 5


async def test_a_count_ends_at_its_limit(history: Database) -> None:
    count, many = await reads(history, lambda tx: reports.count_jobs(tx, at_most=1, queue="bulk", state="queued"))
    assert count == 1
    assert many < OTHERS
