"""The settler writes outcomes in batches and announces what became of each job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from onebeat.errors import DatabaseUnavailable
from onebeat.model.events import JobSettled, SettlementLost
from onebeat.model.job import Ending, JobState, Outcome
from onebeat.store import reports
from onebeat.store.jobs import control, rescue, settle
from onebeat.timing.backoff import Retry
from tests.engine.conftest import Make
from tests.engine.parts import Parts
from tests.support.builders import SECOND, a_job, ended


async def test_an_end_that_the_database_refuses_holds_up_no_other(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = make(role="client")
    runner = make()
    refused: list[UUID] = []

    def refusing(call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(tx: Any, ended: Any, **keywords: Any) -> Any:
            if refused and any(item.job.id == refused[0] for item in ended):
                raise ValueError("this one not")
            return call(tx, ended, **keywords)

        checked.__name__ = call.__name__
        return checked

    monkeypatch.setattr(settle, "settle", refusing(settle.settle))
    monkeypatch.setattr(settle, "succeed", refusing(settle.succeed))

    @runner.task(name="count")
    async def count(number: int) -> None: ...

    scheduler.include(runner)
    await scheduler.start()
    jobs = [await scheduler.registry.get("count").enqueue(number) for number in range(20)]
    refused.append(jobs[3].id)
    await runner.start()
    for job in jobs[:3] + jobs[4:]:
        assert (await job.wait(10)).state is JobState.SUCCEEDED
    refused.clear()
    assert (await jobs[3].wait(10)).state is JobState.SUCCEEDED


# ── ticks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_nothing_to_write_asks_to_be_woken(parts: Parts) -> None:
    assert await parts.settler.tick(0) is None
    assert parts.woken == []


async def test_outcomes_that_gathered_are_written_by_one_tick(parts: Parts) -> None:
    for job in await parts.claimed(a_job(), a_job(), a_job()):
        parts.settler.put(ended(job), seconds=0.25)
    assert parts.woken == ["run_ended"]  # one tick writes all three
    assert parts.settler.unsettled == 3
    assert await parts.settler.tick(0) is None
    assert parts.settler.unsettled == 0
    assert {event.state for event in parts.told(JobSettled)} == {"succeeded"}
    assert {event.seconds for event in parts.told(JobSettled)} == {0.25}
    assert [name for name in parts.woken if name != "run_ended"] == ["job_ended"] * 3 + ["slots_freed"]


async def test_an_outcome_of_a_lost_claim_changes_nothing_and_is_announced(parts: Parts) -> None:
    [job] = await parts.claimed()
    await parts.database.write(rescue.give_back, [(job.id, job.lease_token)])
    parts.settler.put(ended(job), seconds=1)
    await parts.settler.tick(0)
    assert [event.ending for event in parts.told(SettlementLost)] == ["succeeded"]
    assert parts.told(JobSettled) == []
    assert "job_ended" not in parts.woken
    assert (await parts.database.read(reports.job, job.id)).state == "queued"


async def test_a_retry_wakes_the_promoter_which_then_sleeps_until_it_is_due(parts: Parts) -> None:
    [job] = await parts.claimed()
    retry = Retry(3, base=1, jitter=False)
    parts.settler.put(ended(job, Outcome(ending=Ending.ERROR, error="ValueError"), retry), seconds=1)
    await parts.settler.tick(0)
    assert parts.woken[-2:] == ["slots_freed", "jobs_delayed"]
    [event] = parts.told(JobSettled)
    assert (event.state, event.retry_in) == ("scheduled", 1.0)
    now = parts.clock.now
    assert await parts.promoter.tick(now) == now + SECOND


async def test_a_batch_is_bounded_and_the_rest_is_written_at_once(parts: Parts) -> None:
    parts.settler._batch.rows = 2
    for job in await parts.claimed(a_job(), a_job(), a_job()):
        parts.settler.put(ended(job), seconds=0)
    assert await parts.settler.tick(7) == 7
    assert parts.settler.unsettled == 1
    assert await parts.settler.tick(7) is None


async def test_what_an_unreachable_database_did_not_take_is_kept_for_the_next_tick(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    [job] = await parts.claimed()
    parts.settler.put(ended(job), seconds=0)

    async def gone(*_: object, **__: object) -> None:
        raise DatabaseUnavailable("gone")

    with monkeypatch.context() as patched:
        patched.setattr(parts.database, "write", gone)
        patched.setattr(parts.database, "write_one", gone)
        with pytest.raises(DatabaseUnavailable):
            await parts.settler.tick(0)
    assert parts.settler.unsettled_ids == {job.id}
    assert "slots_freed" not in parts.woken
    await parts.settler.tick(0)
    assert (await parts.database.read(reports.job, job.id)).state == "succeeded"


async def test_a_batch_that_is_too_large_for_its_time_is_written_in_halves(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    write = parts.database.write_one

    async def slow(call: Callable[..., Any], batch: list[Any]) -> Any:
        sizes.append(len(batch))
        parts.clock.advance(10 * len(batch))  # three need the whole limit of a call
        if len(batch) > 2:
            raise DatabaseUnavailable("no answer within the limit of a call")
        return await write(call, batch)

    monkeypatch.setattr(parts.database, "write_one", slow)
    for job in await parts.claimed(*(a_job() for _ in range(8))):
        parts.settler.put(ended(job), seconds=0)
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable):
            await parts.settler.tick(0)
    while parts.settler.unsettled:
        await parts.settler.tick(0)
    assert sizes == [8, 4, 2, 1, 1, 1, 1, 1, 1]
    assert len(parts.told(JobSettled)) == 8


async def test_batches_grow_again_when_the_database_is_fast(parts: Parts) -> None:
    parts.settler._batch.rows = 1
    for job in await parts.claimed(*(a_job() for _ in range(7))):
        parts.settler.put(ended(job), seconds=0)
    for left in (6, 4, 0):
        await parts.settler.tick(0)
        assert parts.settler.unsettled == left


async def test_a_cancel_requested_before_a_retry_is_told_as_cancelled(parts: Parts) -> None:
    [job] = await parts.claimed()
    await parts.database.write(control.cancel, [job.id])
    retry = Retry(3, base=1, jitter=False)
    parts.settler.put(ended(job, Outcome(ending=Ending.ERROR, error="ValueError"), retry), seconds=1)
    await parts.settler.tick(0)
    [event] = parts.told(JobSettled)
    assert (event.ending, event.state, event.reason, event.retry_in) == ("error", "cancelled", "requested", None)
    assert "jobs_delayed" not in parts.woken
    assert (await parts.database.read(reports.job, job.id)).state == "cancelled"


async def test_it_counts_the_outcomes_that_give_their_job_back(parts: Parts) -> None:
    one, other = await parts.claimed(a_job(), a_job())
    parts.settler.put(ended(one, Outcome(ending=Ending.DRAINED)), seconds=0)
    parts.settler.put(ended(other), seconds=0)
    assert parts.settler.returning == 1


async def test_an_outcome_is_settled_under_the_last_worker_id_after_a_lost_lease(parts: Parts) -> None:
    [job] = await parts.claimed()
    parts.settler.put(ended(job, Outcome(ending=Ending.ERROR, error="ValueError")), seconds=0)
    parts.identity.lease = None
    await parts.settler.tick(0)
    [attempt] = await parts.database.read(reports.attempts, job.id)
    assert (attempt.outcome, attempt.worker) == ("error", parts.worker_id)
