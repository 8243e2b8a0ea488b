"""How each database plans the statements of schedules, with statistics that are fresh, stale or absent."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select, text

from onebeat.model.ids import token, uuid7
from onebeat.model.job import SUCCEEDED, SUCCESS, JobState
from onebeat.model.schedule import waits_for
from onebeat.store.connection.database import Database
from onebeat.store.jobs import claim, release, settle
from onebeat.store.jobs.insert import _row
from onebeat.store.jobs.settle import Ended
from onebeat.store.schedules import fire, read
from onebeat.store.schedules.edit import new_row
from onebeat.store.tx import Tx
from onebeat.timing.clock import SECOND
from tests.conftest import MakeDatabase
from tests.support.builders import a_job, registered
from tests.support.plans import plans_of
from tests.support.simulated_worker import a_schedule
from tests.support.virtual import START, VirtualClock

DUE = 20  # schedules at each instant
DOUBLED = 10  # times: 20,480 schedules
ENDED = 3_000  # jobs of one schedule
STATISTICS = ["fresh", "stale", "absent"]
KEY = {"sqlite": "sqlite_autoindex_{table}_1", "postgresql": "{table}_pkey", "mysql": "PRIMARY"}


def analyze(tx: Tx) -> None:
    for table in (tx.tables.schedules, tx.tables.jobs, tx.tables.fires):
        tx.execute(text(f"ANALYZE {'TABLE ' * (tx.dialect.name == 'mysql')}{table.name}")).close()


def few(tx: Tx) -> None:
    """Hourly schedules that are due at one instant."""
    row = new_row(a_schedule(), START, source="api")
    rows = [row | {"id": f"s{number:02}", "next_fire_us": START} for number in range(DUE)]
    tx.execute(tx.tables.schedules.insert(), rows)


def many(tx: Tx) -> None:
    """As many at each second after it, for some minutes; the ended jobs of one schedule, and a backlog of others."""
    table, jobs = tx.tables.schedules, tx.tables.jobs
    for power in range(DOUBLED):
        changed = {"id": table.c.id.concat(f"-{power}"), "next_fire_us": table.c.next_fire_us + SECOND * 2**power}
        copied = select(*[changed.get(column.name, column) for column in table.c])
        tx.execute(table.insert().from_select(list(table.c), copied))
    like = _row(a_job(run_at=START)) | {"created_us": START}
    ended = {"schedule_id": "s00", "fire_us": START, "state": str(JobState.SUCCEEDED)}
    ids = [uuid7(START + number) for number in range(2 * ENDED)]
    tx.execute(jobs.insert(), [like | {"id": id} for id in ids[:ENDED]])
    tx.execute(jobs.insert(), [like | ended | {"id": id, "finished_us": n} for n, id in enumerate(ids[ENDED:])])


async def filled(database: Database, statistics: str) -> None:
    """Many rows, and what the database knows of them."""
    await database.write(few)
    if statistics == "stale":
        await database.write(analyze)
    await database.write(many)
    if statistics == "fresh":
        await database.write(analyze)


def index_of(plan: str, table: str, database: Database) -> str:
    """The index by which the plan reads the table; empty where it reads all rows."""
    if database.dialect.name == "postgresql":
        found = re.search(rf"Index (?:Only )?Scan using (\S+) on (?:\S+ )?{table}\b", plan)
    elif database.dialect.name == "sqlite":
        found = re.search(rf"SEARCH {table} USING (?:COVERING )?INDEX (\S+)", plan)
    else:
        found = re.search(rf"{table} (?:eq_ref|ref|range|const|index)(?:\|filter)? \S+ ([^\s|]+)", plan)
    return found.group(1) if found else ""


def fire_all(tx: Tx) -> Any:
    return fire.fire_due(tx, worker_id="w" * 32, hashes=(), new_tracking_id=lambda: "t" * 32, limit=250)


def planned(plans: list[tuple[str, str]], begin: str) -> str:
    """The plan of the one statement that begins so."""
    (plan,) = {plan for statement, plan in plans if statement.startswith(begin)}
    return plan


@pytest.fixture
async def clock() -> VirtualClock:
    return VirtualClock(START)


@pytest.mark.campaign
@pytest.mark.parametrize("statistics", STATISTICS)
async def test_a_fire_reads_only_what_is_due(
    statistics: str, database_url: str, make_database: MakeDatabase, clock: VirtualClock
) -> None:
    database = await make_database(database_url, database_clock=clock)
    await filled(database, statistics)
    plans = await database.write(partial(_plans, fire_all))
    table, jobs = database.tables.schedules.name, database.tables.jobs.name
    by_key = KEY[database.dialect.name].format(table=table)
    first = ", ".join(f"{table}.{name}" for name in fire.READ[:2])
    assert index_of(planned(plans, f"SELECT {first}"), table, database) == f"{table}_due"
    assert index_of(planned(plans, "UPDATE"), table, database) == by_key, "the compare-and-set"
    assert index_of(planned(plans, f"SELECT {jobs}.schedule_id"), jobs, database) == f"{jobs}_schedule"
    (next_due,) = await database.read(partial(_plans, partial(fire.next_due, hashes=())))
    assert index_of(next_due[1], table, database) == f"{table}_due"
    assert not re.search("Sort|filesort|TEMP B-TREE", next_due[1])


def _plans(call: Callable[[Tx], Any], tx: Tx) -> list[tuple[str, str]]:
    return plans_of(tx, call)


@pytest.mark.campaign
@pytest.mark.parametrize("statistics", STATISTICS)
async def test_the_last_status_of_a_schedule_is_found_beside_any_history(
    statistics: str, database_url: str, make_database: MakeDatabase, clock: VirtualClock
) -> None:
    database = await make_database(database_url, database_clock=clock)
    await filled(database, statistics)
    assert (await database.read(read.get, "s00")).last_status == "succeeded"
    plans = await database.read(partial(_plans, partial(read.get, id="s00")))
    assert len(plans) == 3
    plan = plans[1][1]
    assert plan.count(f"{database.tables.jobs.name}_schedule") >= 2, plan
    assert not re.search("Sort|TEMP B-TREE", plan), plan


def waiting(tx: Tx) -> None:
    """A hundred jobs that wait for another one, in each of ten schedules."""
    like = _row(a_job(run_at=START, state=JobState.WAITING)) | {"created_us": START}
    keys = [(f"s0{n}", waits_for(f"s0{n}")) for n in range(10)] * 100
    rows = [
        like | {"id": uuid7(2 * START + n), "schedule_id": id, "waits_for": key} for n, (id, key) in enumerate(keys)
    ]
    tx.execute(tx.tables.jobs.insert(), rows)


@pytest.mark.campaign
@pytest.mark.parametrize("statistics", STATISTICS)
async def test_a_release_reads_only_the_oldest_that_waits(
    statistics: str, database_url: str, make_database: MakeDatabase, clock: VirtualClock
) -> None:
    database = await make_database(database_url, database_clock=clock)
    if statistics == "fresh":
        await database.write(waiting)
    await filled(database, statistics)
    if statistics != "fresh":
        await database.write(waiting)
    jobs = database.tables.jobs.name
    ended = [uuid7(START + number) for number in range(ENDED, ENDED + 100)]
    found = (await database.write(partial(_plans, partial(release.release, ids=ended))))[0][1]
    assert index_of(found, "ended", database) in (f"{jobs}_pkey", "PRIMARY", f"sqlite_autoindex_{jobs}_1"), found
    assert index_of(found, "waiting", database) == f"{jobs}_waits", found
    assert index_of(found, "holder", database) == f"{jobs}_schedule", found
    ((_, lost),) = await database.read(partial(_plans, release.lost_releases))
    assert index_of(lost, "waiting", database) == f"{jobs}_waits", lost
    assert index_of(lost, "holder", database) == f"{jobs}_schedule", lost


@pytest.mark.parametrize("statistics", ["stale", "fresh"])
async def test_the_end_of_a_job_is_written_by_its_key(
    statistics: str, database_url: str, make_database: MakeDatabase
) -> None:
    """By the index of a worker's running jobs, PostgreSQL compared each of them with each end."""
    database = await make_database(database_url)
    worker = await registered(database)
    if statistics == "stale":
        await database.write(analyze)
    await database.write(
        lambda tx: tx.execute(
            tx.tables.jobs.insert(),
            [_row(a_job()) | {"created_us": 0, "run_at_us": 0, "id": uuid7(START + n)} for n in range(300)],
        )
    )
    claiming = partial(claim.claim, worker_id=worker, token=token(), limit=100, tasks=["work"])
    ended = [Ended(job, SUCCESS, SUCCEEDED) for job in await database.write(claiming)]
    assert len(ended) == 100
    if statistics == "fresh":
        await database.write(analyze)
    ((_, plan),) = await database.write(partial(_plans, partial(settle.succeed, ended=ended)))
    jobs = database.tables.jobs.name
    assert index_of(plan, jobs, database) == KEY[database.dialect.name].format(table=jobs), plan
