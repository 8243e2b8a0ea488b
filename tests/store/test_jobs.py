"""What the store promises about jobs, on every database."""

from __future__ import annotations

import asyncio
from random import Random
from uuid import UUID

import pytest
from sqlalchemy import update

from onebeat.errors import JobNotFound
from onebeat.model.job import Ending, JobState, Outcome
from onebeat.model.schedule import waits_for
from onebeat.store import reports, workers
from onebeat.store.connection.database import Database
from onebeat.store.jobs import claim, control, insert, release, rescue, settle as settle_rows
from onebeat.store.tx import Tx
from onebeat.timing.backoff import Retry
from tests.support.builders import SECOND, a_job, claimed, claimed_suspects, ended, jobs_by_state, registered


async def state_of(database: Database, id: UUID) -> JobState:
    return (await database.read(reports.job, id)).state


async def test_a_queued_job_is_claimed_once_with_a_fence_and_an_attempt(database: Database) -> None:
    job = a_job()
    await database.write(insert.add, [job])
    worker = await registered(database)
    (got,) = await claimed(database, worker)
    assert (got.id, got.attempt, got.task) == (job.id, 1, "work")
    assert got.fence > 1_600_000_000_000_000
    assert await claimed(database, worker) == []


async def test_two_workers_never_receive_the_same_job(database: Database) -> None:
    await database.write(insert.add, [a_job() for _ in range(60)])
    one, two = await registered(database), await registered(database)
    batches = await asyncio.gather(*(claimed(database, id, 7) for id in [one, two] * 6))
    ids = [job.id for batch in batches for job in batch]
    assert len(ids) == len(set(ids))
    assert len(ids) + len([job async for job in _rest(database, one)]) == 60


async def _rest(database: Database, worker: str):  # type: ignore[no-untyped-def]  # a small generator
    for job in await claimed(database, worker, 100):
        yield job


async def test_larger_priority_first_then_earlier_time_then_id(database: Database) -> None:
    late, early, urgent = a_job(run_at=2_000), a_job(run_at=1_000), a_job(run_at=3_000, priority=5)
    await database.write(insert.add, [late, early, urgent])
    got = await claimed(database, await registered(database))
    assert [job.id for job in got] == [urgent.id, early.id, late.id]


async def test_a_worker_takes_only_tasks_it_knows_and_queues_it_serves(database: Database) -> None:
    other, mail, work = a_job(task="other"), a_job(queue="mail"), a_job()
    await database.write(insert.add, [other, mail, work])
    worker = await registered(database)
    assert [job.id for job in await claimed(database, worker, queues=["mail"])] == [mail.id]
    assert await claimed(database, worker, excluded=["default"]) == []
    assert [job.id for job in await claimed(database, worker)] == [work.id]
    assert await state_of(database, other.id) is JobState.QUEUED


async def test_a_dead_or_expired_worker_claims_nothing(database: Database) -> None:
    await database.write(insert.add, [a_job()])
    expired = await registered(database, lease=-SECOND)
    assert await claimed(database, expired) == []
    (dead,) = await database.write(workers.mark_dead)
    assert dead.id == expired
    assert await claimed(database, expired) == []


async def test_dead_is_sticky(database: Database) -> None:
    worker = await registered(database, lease=-SECOND)
    assert not await database.write(workers.renew, worker, 60 * SECOND)
    await database.write(workers.mark_dead)
    assert not await database.write(workers.renew, worker, 60 * SECOND)


async def test_adding_again_after_a_lost_answer_adds_nothing(database: Database) -> None:
    one, many = a_job(), [a_job(), a_job(tags=("a", "b"))]
    for _ in range(2):
        await database.write(insert.add, [one])
        await database.write(insert.add, many)
    assert await database.read(reports.count_jobs) == 3
    assert await database.read(reports.count_jobs, tag="b") == 1


async def test_a_scheduled_job_is_promoted_when_its_time_has_come(database: Database) -> None:
    now = await database.read(lambda tx: tx.now())
    due, later = (
        a_job(state=JobState.SCHEDULED, run_at=now - 1),
        a_job(state=JobState.SCHEDULED, run_at=now + 60 * SECOND),
    )
    await database.write(insert.add, [due, later])
    assert await database.write(insert.promote) == (1, later.run_at)
    assert await state_of(database, due.id) is JobState.QUEUED
    assert await state_of(database, later.id) is JobState.SCHEDULED


async def test_a_success_is_settled_under_its_token_and_keeps_it(database: Database) -> None:
    await database.write(insert.add, [a_job() for _ in range(5)])
    worker = await registered(database)
    got = await claimed(database, worker)
    ends = [ended(job) for job in got]
    first = await database.write(settle_rows.settle, ends, worker_id=worker)
    assert first == dict.fromkeys((job.id for job in got), JobState.SUCCEEDED)
    again = await database.write(settle_rows.settle, ends, worker_id=worker)
    assert again == first, "the answer of the first settlement may have been lost"
    assert await database.read(jobs_by_state) == {"succeeded": 5}


async def test_a_late_worker_cannot_settle_a_rescued_job(database: Database) -> None:
    await database.write(insert.add, [a_job(), a_job()])
    slow, fast = await registered(database), await registered(database)
    plain, valued = await claimed(database, slow)
    await database.write(workers.mark_dead_by_id, [slow])
    assert {job.id for job in await database.write(rescue.rescue, random=Random(1))} == {plain.id, valued.id}
    anew = await claimed(database, fast)
    late = [ended(plain), ended(valued, Outcome(ending=Ending.SUCCEEDED, value='"late"'))]
    assert await database.write(settle_rows.settle, late, worker_id=slow) == {}
    assert {job.attempt for job in anew} == {2}
    assert all(new.fence > old.fence for new in anew for old in (plain, valued) if new.id == old.id)
    assert await state_of(database, plain.id) is JobState.RUNNING


@pytest.mark.parametrize("way", ["settle", "succeed"])
async def test_every_end_of_a_batch_is_held_against_its_own_token(database: Database, way: str) -> None:
    first, second = a_job(), a_job()
    await database.write(insert.add, [first])
    slow = await registered(database)
    (late,) = await claimed(database, slow)
    await database.write(workers.mark_dead_by_id, [slow])
    await database.write(rescue.rescue, random=Random(1))
    await database.write(insert.add, [second])
    anew = await claimed(database, await registered(database))
    ends = [ended(late), *(ended(job) for job in anew if job.id == second.id)]

    async def settle() -> dict[UUID, JobState]:
        if way == "succeed" and settle_rows.one_statement(database.dialect, ends):
            return await database.write_one(settle_rows.succeed, ends)
        return await database.write(settle_rows.settle, ends, worker_id=slow)

    assert await settle() == {second.id: JobState.SUCCEEDED}, "the late end's token is not the one the job has now"
    assert await settle() == {second.id: JobState.SUCCEEDED}, "the answer of the first settlement may have been lost"
    assert await state_of(database, first.id) is JobState.RUNNING
    assert await state_of(database, second.id) is JobState.SUCCEEDED


async def test_an_error_is_retried_after_its_delay_and_then_exhausted(database: Database) -> None:
    job = a_job(max_attempts=2)
    await database.write(insert.add, [job])
    worker = await registered(database)
    (first,) = await claimed(database, worker)
    failure = Outcome(ending=Ending.ERROR, error="ValueError: no", traceback="…")
    await database.write(settle_rows.settle, [ended(first, failure)], worker_id=worker)
    info = await database.read(reports.job, job.id)
    assert (info.state, info.reason, info.error) == (JobState.SCHEDULED, "error", "ValueError: no")
    assert 4 < (info.run_at - info.created_at).total_seconds() < 15
    await database.write(_make_due, job.id)
    await database.write(insert.promote)
    (second,) = await claimed(database, worker)
    await database.write(settle_rows.settle, [ended(second, failure)], worker_id=worker)
    info = await database.read(reports.job, job.id)
    assert (info.state, info.reason, info.attempt) == (JobState.FAILED, "exhausted", 2)
    history = await database.read(reports.attempts, job.id)
    assert [(item.attempt, item.outcome, item.worker) for item in history] == [
        (1, "error", worker),
        (2, "error", worker),
    ]


def _make_due(tx: Tx, id: UUID) -> None:
    table = tx.tables.jobs
    tx.execute(update(table).where(table.c.id == id).values(run_at_us=1))


async def test_values_are_stored_for_each_job_of_a_batch(database: Database) -> None:
    await database.write(insert.add, [a_job() for _ in range(3)])
    worker = await registered(database)
    got = await claimed(database, worker)
    ends = [ended(job, Outcome(ending=Ending.SUCCEEDED, value=str(n))) for n, job in enumerate(got)]
    await database.write(settle_rows.settle, ends, worker_id=worker)
    assert [(await database.read(reports.job, job.id)).value for job in got] == [0, 1, 2]


async def test_a_third_crash_quarantines_and_a_suspect_is_claimed_alone(database: Database) -> None:
    job, neighbour = a_job(), a_job()
    await database.write(insert.add, [job])
    for crash in range(3):
        worker = await registered(database)
        if crash == 2:
            await database.write(_make_due, job.id)
            await database.write(insert.promote)
            await database.write(insert.add, [neighbour])
            assert [got.id for got in await claimed(database, worker)] == [neighbour.id]
        (got,) = await (claimed_suspects if crash == 2 else claimed)(database, worker)
        assert (got.id, got.crashes) == (job.id, crash)
        await database.write(workers.mark_dead_by_id, [worker])
        await database.write(rescue.rescue, random=Random(1))
    info = await database.read(reports.job, job.id)
    assert (info.state, info.reason, info.attempt) == (JobState.FAILED, "quarantined", 3)
    assert [item.outcome for item in await database.read(reports.attempts, job.id)] == ["lost"] * 3


async def test_an_at_most_once_job_of_a_dead_worker_is_lost_and_never_queued_again(database: Database) -> None:
    job = a_job(at_most_once=True, max_attempts=1)
    await database.write(insert.add, [job])
    worker = await registered(database)
    await claimed(database, worker)
    await database.write(workers.mark_dead_by_id, [worker])
    await database.write(rescue.rescue, random=Random(1))
    info = await database.read(reports.job, job.id)
    assert (info.state, info.reason) == (JobState.FAILED, "lost")


async def test_a_living_workers_jobs_are_never_rescued_however_old(database: Database) -> None:
    await database.write(insert.add, [a_job()])
    await claimed(database, await registered(database))
    assert await database.write(rescue.rescue, random=Random(1)) == []


async def test_given_back_unstarted_jobs_keep_their_attempt_count(database: Database) -> None:
    await database.write(insert.add, [a_job()])
    worker = await registered(database)
    (got,) = await claimed(database, worker)
    await database.write(rescue.give_back, [(got.id, got.lease_token)])
    assert await database.write(rescue.give_back, [(got.id, got.lease_token)]) == []
    (again,) = await claimed(database, worker)
    assert (again.attempt, again.crashes) == (1, 0)


async def test_cancel_ends_what_has_not_started_and_asks_what_runs(database: Database) -> None:
    running, waiting = a_job(), a_job()
    await database.write(insert.add, [running])
    worker = await registered(database)
    (got,) = await claimed(database, worker)
    await database.write(insert.add, [waiting])
    await database.write(control.cancel, [running.id, waiting.id])
    assert await state_of(database, waiting.id) is JobState.CANCELLED
    (held,) = await database.read(claim.held_by, worker)
    assert (held.id, held.cancel_requested_us is not None) == (running.id, True)
    failure = Outcome(ending=Ending.ERROR, error="it failed before it heard")
    await database.write(settle_rows.settle, [ended(got, failure)], worker_id=worker)
    assert await state_of(database, running.id) is JobState.CANCELLED


async def test_a_success_in_spite_of_a_cancel_says_so(database: Database) -> None:
    await database.write(insert.add, [a_job(), a_job()])
    worker = await registered(database)
    plain, valued = await claimed(database, worker)
    await database.write(control.cancel, [plain.id, valued.id])
    ends = [ended(plain), ended(valued, Outcome(ending=Ending.SUCCEEDED, value="1"))]
    await database.write(settle_rows.settle, ends, worker_id=worker)
    for job in (plain, valued):
        info = await database.read(reports.job, job.id)
        assert (info.state, info.reason) == (JobState.SUCCEEDED, "cancel ignored")


async def test_a_cancel_that_comes_before_the_retry_releases_what_waits(database: Database) -> None:
    first = a_job(schedule_id="s")
    second = a_job(schedule_id="s", state=JobState.WAITING, waits_for=waits_for("s"))
    await database.write(insert.add, [first, second])
    worker = await registered(database)
    (got,) = await claimed(database, worker)
    await database.write(control.cancel, [first.id])
    await database.write(settle_rows.settle, [ended(got, Outcome(ending=Ending.ERROR))], worker_id=worker)
    assert await state_of(database, first.id) is JobState.CANCELLED
    assert await state_of(database, second.id) is JobState.QUEUED


async def test_a_waiting_job_is_released_in_the_transaction_that_ends_its_holder(database: Database) -> None:
    holder = a_job(schedule_id="s")
    second, third = (a_job(schedule_id="s", state=JobState.WAITING, waits_for=waits_for("s")) for _ in range(2))
    await database.write(insert.add, [holder, second, third])
    worker = await registered(database)
    (got,) = await claimed(database, worker)
    await database.write(settle_rows.settle, [ended(got)], worker_id=worker)
    assert await state_of(database, second.id) is JobState.QUEUED
    assert await state_of(database, third.id) is JobState.WAITING, "one after the other"
    await database.write(control.cancel, [second.id])
    assert await state_of(database, third.id) is JobState.QUEUED, "a cancelled holder releases too"


async def test_a_release_that_was_lost_is_healed(database: Database) -> None:
    stuck = a_job(schedule_id="s", state=JobState.WAITING, waits_for=waits_for("s"))
    await database.write(insert.add, [stuck])
    assert await database.read(release.lost_releases) == ([stuck.id], None)
    assert await database.write(release.release, [stuck.id]) == 1
    assert await database.write(release.release, [stuck.id]) == 0
    assert await database.read(release.lost_releases) == ([], None)
    assert await state_of(database, stuck.id) is JobState.QUEUED


async def test_lost_releases_are_found_page_by_page_beside_those_that_are_held(database: Database) -> None:
    held = [a_job(schedule_id=f"s{n}") for n in (1, 4)]
    waiting = [
        a_job(schedule_id=f"s{n}", state=JobState.WAITING, waits_for=waits_for(f"s{n}")) for n in (0, 0, 1, 2, 3, 4, 5)
    ]
    other = a_job(state=JobState.WAITING, waits_for="limit:mail")
    await database.write(insert.add, [*held, *waiting, other])
    found: list[UUID] = []
    after: str | None = ""
    pages = 0
    while after is not None:
        page, after = await database.read(release.lost_releases, after, 2)
        found += page
        pages += 1
    assert found == [waiting[0].id, waiting[3].id, waiting[4].id, waiting[6].id], "the oldest of each"
    assert pages == 4
    assert await database.write(release.release, [*found, held[0].id]) == 4
    assert await state_of(database, waiting[1].id) is JobState.WAITING
    assert await state_of(database, other.id) is JobState.WAITING


async def test_an_ended_job_can_be_retried_with_fresh_budgets(database: Database) -> None:
    job = a_job(max_attempts=1)
    await database.write(insert.add, [job])
    worker = await registered(database)
    (got,) = await claimed(database, worker)
    assert not await database.write(control.retry, job.id)
    await database.write(settle_rows.settle, [ended(got, Outcome(ending=Ending.ERROR))], worker_id=worker)
    assert await database.write(control.retry, job.id)
    (again,) = await claimed(database, worker)
    assert (again.attempt, again.errors, again.crashes) == (2, 0, 0)


async def test_pruning_deletes_old_ended_jobs_with_their_history_and_nothing_else(database: Database) -> None:
    old, young, running = a_job(tags=("x",)), a_job(), a_job()
    await database.write(insert.add, [old, young, running])
    worker = await registered(database)
    got = {job.id: job for job in await claimed(database, worker)}
    ends = [ended(got[old.id], Outcome(ending=Ending.ERROR, retryable=False)), ended(got[young.id])]
    await database.write(settle_rows.settle, ends, worker_id=worker)
    await database.write(_finished_long_ago, old.id)
    assert await database.write(control.prune, succeeded=None, failed=None) == 0
    assert await database.write(control.prune, succeeded=SECOND * 3600, failed=SECOND * 3600) == 1
    with pytest.raises(JobNotFound):
        await database.read(reports.job, old.id)
    assert await database.read(reports.attempts, old.id) == []
    assert await database.read(jobs_by_state) == {"succeeded": 1, "running": 1}


def _finished_long_ago(tx: Tx, id: UUID) -> None:
    table = tx.tables.jobs
    tx.execute(update(table).where(table.c.id == id).values(finished_us=1))


async def test_a_page_leads_to_the_next(database: Database) -> None:
    await database.write(insert.add, [a_job() for _ in range(5)])
    first = await database.read(reports.jobs, limit=3, cursor=None)
    second = await database.read(reports.jobs, limit=3, cursor=first.cursor)
    assert (len(first), len(second), second.cursor) == (3, 2, None)
    ids = [job.id for job in (*first, *second)]
    assert ids == sorted(ids, reverse=True)


async def test_a_job_that_is_put_off_again_and_again_keeps_a_bounded_history(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle_rows, "SNOOZES", 3)
    job = a_job()
    await database.write(insert.add, [job])
    worker = await registered(database)
    for number in range(12):
        [got] = await claimed(database, worker)
        error = Outcome(ending=Ending.ERROR, error="ValueError")
        outcome = error if number == 1 else Outcome(ending=Ending.SNOOZED)
        await database.write(settle_rows.settle, [ended(got, outcome, Retry(3, base=0))], worker_id=worker)
        await database.write(insert.promote)
    kept = await database.read(reports.attempts, job.id)
    assert [attempt.attempt for attempt in kept] == [2, 10, 11, 12], "errors stay, and at least the last three snoozes"
