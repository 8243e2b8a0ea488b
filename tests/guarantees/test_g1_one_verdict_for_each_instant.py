"""G1: each due instant has exactly one recorded outcome, and at most one job, whoever looks at it how often."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update

from onebeat.errors import InvalidTrigger
from onebeat.model.schedule import plan
from onebeat.store.connection.database import Database
from onebeat.store.jobs import insert
from onebeat.store.schedules import fire
from onebeat.store.schedules.fire_writer import FireRecorded, FireReport, FireWriter
from onebeat.store.schedules.rows import as_schedule
from onebeat.store.tx import Tx
from tests.conftest import MakeDatabase
from tests.guarantees.arrange import a_schedule, added, fired, or_whatever
from tests.support import rows
from tests.support.checker import SECOND, Facts, every, i1
from tests.support.virtual import START, VirtualClock


async def verdicts_are_exact(url: str, clock: VirtualClock, id: str = "beat") -> None:
    """The checker's I1 over everything since the start."""
    found = await rows.read(url)
    facts = Facts(jobs=found.jobs, fires=found.fires, due=list(every(id, SECOND, START, clock.now + 1)))
    assert [str(violation) for violation in i1(facts)] == []


async def a_late_dispatcher_meets_fired_instants(url: str, make: MakeDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two dispatchers read the same due row; one is slow between its read and its write."""
    clock = VirtualClock()
    quick, slow = await make(url, database_clock=clock), await make(url, database_clock=clock)
    await added(quick, a_schedule())
    clock.advance(3)
    stale = await slow.read(fire.due, (), 50)
    first = await fired(quick)
    with monkeypatch.context() as patch:
        patch.setattr(fire, "due", lambda tx, hashes, limit, unreadable: stale)
        second = await fired(slow)
    assert (first.decided, len(first.fired)) == (1, 3)
    assert (second.decided, second.fired, second.conflicts) == (0, [], [])
    await verdicts_are_exact(url, clock)


async def test_g1_a_late_dispatcher_decides_nothing_again(
    database_url: str, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a_late_dispatcher_meets_fired_instants(database_url, make_database, monkeypatch)


async def test_without_the_compare_and_set_the_unique_record_still_refuses(
    database_url: str, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fire, "still_unfired", or_whatever)
    with pytest.raises(FireRecorded):
        await a_late_dispatcher_meets_fired_instants(database_url, make_database, monkeypatch)
    assert len((await rows.read(database_url)).jobs) == 3


async def test_without_both_a_late_dispatcher_doubles_the_jobs(
    database_url: str, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = iter(range(1_000_000))
    row = FireWriter._row

    def not_unique(self: FireWriter, *values: Any) -> tuple[Any, ...]:
        schedule_id, key, *others = row(self, *values)
        return schedule_id, f"{key}#{next(numbers)}", *others

    monkeypatch.setattr(fire, "still_unfired", or_whatever)
    monkeypatch.setattr(FireWriter, "_row", not_unique)
    with pytest.raises(AssertionError):
        await a_late_dispatcher_meets_fired_instants(database_url, make_database, monkeypatch)
    assert len((await rows.read(database_url)).jobs) == 6


class Crash(Exception):
    """The process ends here."""


class CrashAt:
    """Points that raise when a name is reached for the first time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.armed = True

    def reach(self, name: str, tx: Tx) -> None:
        if self.armed and name == self.name:
            self.armed = False
            raise Crash(name)


async def a_crash_loses_nothing(url: str, make: MakeDatabase, at: str) -> None:
    """A dispatcher dies in the middle of its transaction; another goes on."""
    clock = VirtualClock()
    points = CrashAt("nowhere")
    dying, other = await make(url, database_clock=clock, points=points), await make(url, database_clock=clock)
    await added(other, a_schedule())
    clock.advance(3)
    points.name = at
    with pytest.raises(Crash):
        await fired(dying)
    await fired(other)
    await verdicts_are_exact(url, clock)


@pytest.mark.parametrize("at", ["fire.due", "fire.written", "commit"])
async def test_g1_a_crash_in_the_middle_of_a_fire_loses_and_doubles_nothing(
    at: str, database_url: str, make_database: MakeDatabase
) -> None:
    await a_crash_loses_nothing(database_url, make_database, at)


async def test_with_two_commits_instead_of_one_a_crash_loses_fires(
    database_url: str, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = fire._move

    def move_and_commit(tx: Tx, plans: Any, ours: Any) -> tuple[set[str], int | None]:
        moved = move(tx, plans, ours)
        tx.dialect.commit(tx.connection)
        tx.dialect.begin(tx.connection, write=True)
        return moved

    monkeypatch.setattr(fire, "_move", move_and_commit)
    with pytest.raises(AssertionError, match="without a verdict"):
        await a_crash_loses_nothing(database_url, make_database, "fire.written")


async def restored_tables_fire_nothing_again(database: Database, clock: VirtualClock, url: str) -> FireReport:
    """Someone put the schedule's row back as it was an hour ago; its fires are still recorded."""
    await added(database, a_schedule())
    clock.advance(3)
    await fired(database)

    def restore(tx: Tx) -> None:
        table = tx.tables.schedules
        tx.execute(table.update().values(next_fire_us=START + SECOND, last_fire_us=None))

    await database.write(restore)
    with pytest.raises(FireRecorded):
        await fired(database)
    report = await fired(database, careful=True)
    await verdicts_are_exact(url, clock)
    return report


async def test_g1_restored_rows_fire_nothing_again_and_raise_an_alarm(
    database_url: str, make_database: MakeDatabase
) -> None:
    clock = VirtualClock()
    database = await make_database(database_url, database_clock=clock)
    report = await restored_tables_fire_nothing_again(database, clock, database_url)
    assert len(report.conflicts) == 3
    assert report.fired == []


async def test_with_a_fire_and_its_job_apart_a_started_fire_has_no_job(
    database_url: str, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check itself: leave the job out of the transaction, and I1 says so."""
    clock = VirtualClock()
    database = await make_database(database_url, database_clock=clock)
    await added(database, a_schedule())
    clock.advance(2)
    monkeypatch.setattr(insert, "add_rows", lambda tx, columns, new: None)
    await fired(database)
    with pytest.raises(AssertionError, match="without a job"):
        await verdicts_are_exact(database_url, clock)


async def one_bad_row_stops_nobody(url: str, make: MakeDatabase) -> None:
    """A trigger of a newer version, policies of nonsense: they wait for code that can read them, the others fire."""
    clock = VirtualClock()
    database = await make(url, database_clock=clock)
    await added(database, a_schedule("newer"), a_schedule("nonsense"), a_schedule())

    def spoil(tx: Tx) -> None:
        table = tx.tables.schedules
        tx.execute(update(table).where(table.c.id == "newer").values(trigger_json='{"kind":"of the future"}'))
        tx.execute(update(table).where(table.c.id == "nonsense").values(policies="{"))

    await database.write(spoil)
    clock.advance(3)
    report = await fired(database)
    assert {item.schedule_id for item in report.fired} == {"beat"}
    assert sorted(id for id, _ in report.unreadable) == ["newer", "nonsense"]
    assert report.next_fire == START + SECOND, "they stay due"
    again = await database.read(fire.next_due, (), ("newer", "nonsense"))
    assert again == START + 4 * SECOND, "and can be left out, so that nobody spins over them"
    await verdicts_are_exact(url, clock)


async def test_g1_one_bad_row_stops_nobody_elses_fires(database_url: str, make_database: MakeDatabase) -> None:
    await one_bad_row_stops_nobody(database_url, make_database)


async def test_without_a_guard_around_each_row_one_bad_row_stops_all(
    database_url: str, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_or_nothing(tx: Tx, found: Any, report: FireReport, since: int | None) -> Any:
        return [(row, plan(as_schedule(row), report.now, ())) for row in found]

    monkeypatch.setattr(fire, "_plans", all_or_nothing)
    with pytest.raises(InvalidTrigger):
        await one_bad_row_stops_nobody(database_url, make_database)
