"""Every path that ends a job writes the same columns and releases what waited, on every database."""

from __future__ import annotations

import ast
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Row, select, update

import onebeat.store
from onebeat.model.job import Claimed, Ending, JobState, NewJob, Outcome
from onebeat.model.schedule import waits_for
from onebeat.store import workers
from onebeat.store.connection.database import Database
from onebeat.store.jobs import control, finish, insert, rescue, settle as settle_rows
from onebeat.store.jobs.finish import FinishedJob, after_end, releases_others
from onebeat.store.tx import Tx
from tests.conftest import MakeDatabase
from tests.guarantees.arrange import a_schedule, added, fired
from tests.support.builders import a_job, claimed, ended, registered
from tests.support.virtual import VirtualClock

SLOT = "u" * 64
VALUE = Outcome(ending=Ending.SUCCEEDED, value="1")
ERROR = Outcome(ending=Ending.ERROR, error="ValueError: no")


class Scene:
    """A database under a virtual clock, with one job of a schedule, a worker, and a second job that waits."""

    def __init__(self, database: Database, clock: VirtualClock) -> None:
        self.database = database
        self.clock = clock
        self.worker = ""
        self.job = a_job(schedule_id="s")
        self.next = a_job(schedule_id="s", state=JobState.WAITING, waits_for=waits_for("s"))

    async def arrange(self, **changes: Any) -> None:
        """Store both jobs; the first one has a unique slot."""
        self.job = a_job(**({"schedule_id": "s"} | changes))
        await self.database.write(insert.add, [self.job, self.next])
        await self.occupy(self.job.id)
        self.worker = await registered(self.database, lease=10**12)

    async def occupy(self, id: UUID) -> None:
        """Give a job a unique slot and a stale `waits_for`, both of which its end must clear."""

        def write(tx: Tx) -> None:
            table = tx.tables.jobs
            tx.execute(update(table).where(table.c.id == id).values(unique_slot=SLOT, waits_for="something else"))

        await self.database.write(write)

    async def claim(self) -> Claimed:
        (job,) = await claimed(self.database, self.worker)
        assert job.id == self.job.id
        return job

    async def settle(self, job: Claimed, outcome: Outcome) -> None:
        kept = await self.database.write(settle_rows.settle, [ended(job, outcome)], worker_id=self.worker)
        assert kept.keys() == {job.id}

    async def cancel(self) -> None:
        await self.database.write(control.cancel, [self.job.id])

    async def rescue(self) -> None:
        await self.database.write(workers.mark_dead_by_id, [self.worker])
        assert len(await self.database.write(rescue.rescue, random=Random(1))) == 1

    async def row(self, id: UUID) -> Row[Any]:
        def read(tx: Tx) -> Row[Any]:
            table = tx.tables.jobs
            return tx.execute(select(table).where(table.c.id == id)).one()

        return await self.database.read(read)


@pytest.fixture
async def scene(database_url: str, make_database: MakeDatabase) -> Scene:
    clock = VirtualClock()
    return Scene(await make_database(database_url, database_clock=clock), clock)


# ── the ways in which a job ends ──────────────────────────────────────────────────────────────────────────────────────
async def success(scene: Scene) -> None:
    await scene.arrange()
    await scene.settle(await scene.claim(), Outcome(ending=Ending.SUCCEEDED))


async def success_with_a_value(scene: Scene) -> None:
    await scene.arrange()
    await scene.settle(await scene.claim(), VALUE)


async def success_after_an_error(scene: Scene) -> None:
    await scene.arrange()
    await scene.settle(await scene.claim(), ERROR)
    scene.clock.advance(3600)
    await scene.database.write(insert.promote)
    await scene.settle(await scene.claim(), Outcome(ending=Ending.SUCCEEDED))


async def failure(scene: Scene) -> None:
    await scene.arrange(max_attempts=1)
    await scene.settle(await scene.claim(), ERROR)


async def cancelled_by_the_function(scene: Scene) -> None:
    await scene.arrange()
    await scene.settle(await scene.claim(), Outcome(ending=Ending.CANCELLED, reason="not today"))


def cancelled_instead_of(outcome: Outcome) -> Callable[[Scene], Awaitable[None]]:
    """A cancel is requested after the executor decided to queue the job again."""

    async def end(scene: Scene) -> None:
        await scene.arrange()
        job = await scene.claim()
        await scene.cancel()
        await scene.settle(job, outcome)

    return end


async def lost_at_most_once(scene: Scene) -> None:
    await scene.arrange(at_most_once=True, max_attempts=1)
    await scene.claim()
    await scene.rescue()


async def rescued_after_a_cancel(scene: Scene) -> None:
    await scene.arrange()
    await scene.claim()
    await scene.cancel()
    await scene.rescue()


async def given_back_after_a_cancel(scene: Scene) -> None:
    await scene.arrange()
    job = await scene.claim()
    await scene.cancel()
    assert len(await scene.database.write(rescue.give_back, [(job.id, job.lease_token)])) == 1


async def cancelled_while_queued(scene: Scene) -> None:
    await scene.arrange()
    await scene.cancel()


async def cancelled_while_scheduled(scene: Scene) -> None:
    await scene.arrange(state=JobState.SCHEDULED, run_at=scene.clock.now + 1)
    await scene.cancel()


async def cancelled_by_the_next_fire(scene: Scene) -> None:
    await added(scene.database, a_schedule("s", 60, overlap="cancel_previous", catch_up="latest"))
    scene.clock.advance(60)
    (first,) = (await fired(scene.database)).fired
    assert first.job_id
    await scene.occupy(first.job_id)
    scene.clock.advance(60)
    (second,) = (await fired(scene.database)).fired
    assert second.job_id
    scene.job, scene.next = a_job(id=first.job_id), a_job(id=second.job_id)


SNOOZE = Outcome(ending=Ending.SNOOZED, delay=5)
DRAIN = Outcome(ending=Ending.DRAINED)
ENDS: dict[str, tuple[Callable[[Scene], Awaitable[None]], tuple[str, str | None, str | None]]] = {
    "success": (success, ("succeeded", None, None)),
    "success with a value": (success_with_a_value, ("succeeded", None, None)),
    "success after an error": (success_after_an_error, ("succeeded", None, None)),
    "failure": (failure, ("failed", "exhausted", ERROR.error)),
    "cancelled by the function": (cancelled_by_the_function, ("cancelled", "not today", None)),
    "cancelled instead of a retry": (cancelled_instead_of(ERROR), ("cancelled", "requested", ERROR.error)),
    "cancelled instead of a snooze": (cancelled_instead_of(SNOOZE), ("cancelled", "requested", None)),
    "cancelled instead of a drain": (cancelled_instead_of(DRAIN), ("cancelled", "requested", None)),
    "lost, at most once": (lost_at_most_once, ("failed", "lost", "its worker died")),
    "rescued after a cancel": (rescued_after_a_cancel, ("cancelled", "requested", "its worker died")),
    "given back after a cancel": (given_back_after_a_cancel, ("cancelled", "requested", None)),
    "cancelled while queued": (cancelled_while_queued, ("cancelled", "requested", None)),
    "cancelled while scheduled": (cancelled_while_scheduled, ("cancelled", "requested", None)),
    "cancelled by the next fire": (cancelled_by_the_next_fire, ("cancelled", "requested", None)),
}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[FinishedJob]:
    """What `after_end` was told of, by every module that calls it."""
    jobs: list[FinishedJob] = []

    def recording(tx: Tx, finished: Iterable[FinishedJob]) -> None:
        jobs.extend(finished := list(finished))
        after_end(tx, finished)

    for module in (control, rescue, settle_rows):
        monkeypatch.setattr(module, "after_end", recording)
    return jobs


@pytest.mark.parametrize("name", ENDS)
async def test_every_end_writes_the_final_columns_and_releases_the_waiting_job(
    name: str, scene: Scene, told: list[FinishedJob]
) -> None:
    end, expected = ENDS[name]
    await end(scene)
    row = await scene.row(scene.job.id)
    assert (row.state, row.reason, row.error) == expected
    assert (row.unique_slot, row.waits_for, row.finished_us) == (None, None, scene.clock.now)
    assert [(job.id, job.schedule_id) for job in told] == [(scene.job.id, "s")]
    following = await scene.row(scene.next.id)
    assert (following.state, following.waits_for) == ("queued", None)


@pytest.mark.parametrize("outcome", [ERROR, SNOOZE, DRAIN])
async def test_a_job_that_is_queued_again_keeps_its_unique_slot_and_releases_nothing(
    outcome: Outcome, scene: Scene
) -> None:
    await scene.arrange()
    await scene.settle(await scene.claim(), outcome)
    row = await scene.row(scene.job.id)
    assert row.state in ("queued", "scheduled")
    assert (row.unique_slot, row.finished_us) == (SLOT, None)
    assert (await scene.row(scene.next.id)).state == "waiting"


async def test_a_rescued_job_that_is_queued_again_keeps_its_unique_slot(scene: Scene) -> None:
    await scene.arrange()
    await scene.claim()
    await scene.rescue()
    row = await scene.row(scene.job.id)
    assert (row.state, row.unique_slot, row.finished_us) == ("queued", SLOT, None)
    assert (await scene.row(scene.next.id)).state == "waiting"


# ── one statement ─────────────────────────────────────────────────────────────────────────────────────────────────────
class Statements:
    """Counts the statements of a database."""

    def __init__(self) -> None:
        self.count = 0

    def reach(self, name: str, tx: Tx) -> None:
        self.count += name == "statement"


async def test_a_success_in_one_statement_writes_the_same_columns(scene: Scene) -> None:
    await scene.arrange(schedule_id=None)
    ends = [ended((await scene.claim())._replace(unique_slot=None))]  # on MySQL a keyed end looks for locks first
    assert settle_rows.one_statement(scene.database.dialect, ends)
    assert (await scene.database.write_one(settle_rows.succeed, ends)).keys() == {scene.job.id}
    row = await scene.row(scene.job.id)
    assert (row.state, row.reason, row.error) == ("succeeded", None, None)
    assert (row.unique_slot, row.waits_for, row.finished_us) == (None, None, scene.clock.now)


async def test_only_jobs_that_release_nothing_are_ended_by_one_statement(
    database_url: str, make_database: MakeDatabase
) -> None:
    counted = Statements()
    database = await make_database(database_url, points=counted)
    jobs: list[NewJob] = [a_job(), a_job(schedule_id="s")]
    await database.write(insert.add, jobs)
    got = await claimed(database, await registered(database))
    assert [releases_others(job) for job in got] == [False, True]
    assert [settle_rows.one_statement(database.dialect, [ended(job)]) for job in got] == [True, False]
    assert not settle_rows.one_statement(database.dialect, [ended(job) for job in got])
    sent = []
    for job in got:
        finished = FinishedJob(id=job.id, previous=JobState.RUNNING, schedule_id=job.schedule_id)
        counted.count = 0
        await database.write(after_end, [finished])
        sent.append(counted.count)
    assert sent == [0, 1], "a job that `releases_others` calls False needs no statement after its end"


async def test_a_waiting_job_that_is_cancelled_held_nothing(database_url: str, make_database: MakeDatabase) -> None:
    counted = Statements()
    database = await make_database(database_url, points=counted)
    finished = FinishedJob(id=a_job().id, previous=JobState.WAITING, schedule_id="s")
    await database.write(after_end, [finished])
    assert counted.count == 0


# ── no statement bypasses them ────────────────────────────────────────────────────────────────────────────────────────
STORE = Path(onebeat.store.__file__).parent
FINAL_STATES = {"SUCCEEDED", "FAILED", "CANCELLED"}
BUILDERS = {"final_values", "unless_cancelled"}
NOT_FINAL = {  # states that are no literals, and why they are not final
    ("jobs/find.py", "state"): "a filter of a search, which writes nothing",
    ("jobs/insert.py", "str(job.state)"): "a job is stored before it runs",
    ("jobs/rescue.py", "value('state')"): "the statement for the decisions that are not final",
    ("jobs/rescue.py", "str(decision.state)"): "a value for the statements with and without `final_values`",
    ("jobs/settle.py", "str(item.settlement.state)"): "a value for `final_values` or `unless_cancelled`",
}


def written_states(source: str) -> list[ast.expr]:
    """Return what a module writes into a column `state` without a builder of final values."""
    found: list[ast.expr] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict):
            keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
            found += [value for key, value in zip(keys, node.values, strict=True) if key == "state"]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "values":
            found += [keyword.value for keyword in node.keywords if keyword.arg == "state"]
        elif isinstance(node, ast.Assign):
            found += [node.value for target in node.targets if ast.unparse(target).endswith("['state']")]
    return found


def is_final(value: ast.expr) -> bool:
    """Return whether an expression names a final state."""
    names = {node.attr for node in ast.walk(value) if isinstance(node, ast.Attribute)}
    texts = {str(node.value).upper() for node in ast.walk(value) if isinstance(node, ast.Constant)}
    return bool((names | texts) & FINAL_STATES)


def is_literal(value: ast.expr) -> bool:
    """Return whether an expression names the states that it may write."""
    return "JobState." in ast.unparse(value) and "bindparam" not in ast.unparse(value)


def bypasses(name: str, source: str) -> list[str]:
    """Return the expressions by which a module of the store could end a job on its own."""
    states = written_states(source)
    found = [ast.unparse(value) for value in states if is_final(value)]
    if name.startswith("jobs/"):
        unclear = [ast.unparse(value) for value in states if not is_literal(value)]
        found += [text for text in unclear if (name, text) not in NOT_FINAL]
    return found


MODULES = {
    name: path.read_text("utf-8")
    for path in STORE.rglob("*.py")
    if (name := path.relative_to(STORE).as_posix()) != "jobs/finish.py"
}


def test_no_module_but_finish_writes_a_final_state() -> None:
    assert {name: found for name, source in MODULES.items() if (found := bypasses(name, source))} == {}
    for name, text in NOT_FINAL:
        assert text in {ast.unparse(value) for value in written_states(MODULES[name])}, "an exception nobody needs"


@pytest.mark.parametrize(
    "source",
    [
        "update(table).values(state=str(JobState.FAILED), finished_us=tx.clock)",
        "update(table).values(state='cancelled')",
        "update(table).values(state=case((asked, str(JobState.CANCELLED)), else_=str(JobState.QUEUED)))",
        "update(table).values(state=bindparam('b_state'))",
        "update(table).values(state=str(settlement.state))",
        "values = {'state': str(JobState.SUCCEEDED)}",
        "values['state'] = str(JobState.SUCCEEDED)",
    ],
)
def test_a_bypass_would_be_found(source: str) -> None:
    assert bypasses("jobs/other.py", source)


def test_every_module_that_ends_jobs_calls_after_end_and_releases_nothing_by_itself() -> None:
    ending = set()
    for name, source in MODULES.items():
        calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
        called = {ast.unparse(function).rpartition(".")[2] for function in calls}
        if called & BUILDERS:
            ending.add(name)
            assert "after_end" in called, f"{name} ends jobs and does not call after_end"
        assert "onebeat.store.jobs.release" not in source, f"{name} releases jobs and does not call after_end"
    assert ending == {"jobs/complete.py", "jobs/control.py", "jobs/rescue.py", "jobs/settle.py"}
    assert set(vars(finish)) >= BUILDERS
