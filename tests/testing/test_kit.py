"""TestScheduler: the real engine in virtual time, on a database in memory."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from onebeat import (
    ConfigurationError,
    Every,
    InvalidArguments,
    JobContext,
    JobSettled,
    Retry,
    ScheduleFired,
    ScheduleNotFound,
    Scheduler,
    Snooze,
    UnknownTask,
)
from onebeat.testing import SyncTestScheduler, TestScheduler

NOW = "2026-03-28T08:00:00+01:00"  # in Berlin, on the day before the clocks go forward
BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler("postgresql://nobody@localhost:1/nothing")  # the kit does not connect to it


# ── time ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("until", "days"),
    [
        ("2026-05-31T09:00:00+02:00", 65),
        pytest.param("2027-03-28T09:00:00+02:00", 366, marks=pytest.mark.campaign),
    ],
)
async def test_a_daily_schedule_fires_once_a_day_at_its_wall_time(scheduler: Scheduler, until: str, days: int) -> None:
    ran: list[datetime] = []

    @scheduler.cron("0 9 * * *", timezone="Europe/Berlin")
    async def report(context: JobContext) -> None:
        assert context.fire_time is not None
        ran.append(context.fire_time)

    began = time.process_time()
    async with TestScheduler(scheduler, now=NOW) as beat:
        await beat.advance(to=until)
        fires = beat.fired("report")
        assert beat.now() == datetime.fromisoformat(until)
    assert len(fires) == days, "nothing is pruned: a test sees the whole year"
    assert [fire.fire_time for fire in fires] == ran
    assert {fire.fire_time.astimezone(BERLIN).hour for fire in fires} == {9}
    assert {fire.decided_at - fire.fire_time for fire in fires} == {timedelta()}
    assert time.process_time() - began < 10, "a year takes about a second of an idle core"


async def test_what_is_due_at_the_end_of_a_step_belongs_to_it(scheduler: Scheduler) -> None:
    @scheduler.every(hours=1)
    async def poll() -> None: ...

    async with TestScheduler(scheduler, now="2026-01-01T00:00:00+00:00") as beat:
        await beat.advance(minutes=59, seconds=59.999999)
        assert beat.fired("poll") == []
        await beat.advance(timedelta(microseconds=1))
        (fire,) = beat.fired("poll")
        assert (fire.fire_time, fire.decision) == (datetime(2026, 1, 1, 1, tzinfo=UTC), "started")
        await beat.advance(to="2026-01-01T03:00:00+00:00")
        assert len(beat.fired("poll")) == 3
        with pytest.raises(ConfigurationError, match="only moves forward"):
            await beat.advance(to="2026-01-01T02:00:00+00:00")
        with pytest.raises(ScheduleNotFound):
            beat.fired("pol")


async def test_delays_and_retries_pass_in_virtual_time(scheduler: Scheduler) -> None:
    async with TestScheduler(scheduler, now=NOW) as beat:
        starts: list[timedelta] = []

        @scheduler.task(retry=Retry(attempts=3, base=60, factor=2, jitter=False))
        async def fetch() -> str:
            starts.append(beat.now() - datetime.fromisoformat(NOW))
            if len(starts) == 1:
                raise Snooze(3600)
            if len(starts) < 4:
                raise OSError("no route")
            return "done"

        job = await fetch.options(delay=10).enqueue()
        await beat.run_until_idle()
        assert starts == []
        await beat.advance(days=1)
        assert [start.total_seconds() for start in starts] == [10, 3610, 3670, 3790]
        done = await job.refresh()
        assert (done.state, done.value, done.attempt) == ("succeeded", "done", 4)
        assert done.finished_at == datetime.fromisoformat(NOW) + timedelta(seconds=3790)


async def test_a_job_runs_when_the_test_says_so_or_waits_for_it(scheduler: Scheduler) -> None:
    @scheduler.task
    def double(number: int) -> int:
        return 2 * number

    async with TestScheduler(scheduler) as beat:
        job = await double.enqueue(21)
        assert (await job.refresh()).state == "queued"
        assert await job.result(timeout=10) == 42
        other = await asyncio.to_thread(double.enqueue_sync, 4)
        await beat.run_until_idle()
        assert (await other.refresh()).value == 8


async def test_schedules_of_run_time_fire_and_pause(scheduler: Scheduler) -> None:
    @scheduler.task
    async def sync(customer: int) -> None: ...

    async with TestScheduler(scheduler) as beat:
        await scheduler.schedules.add("sync-7", sync, Every(minutes=5), args=(7,))
        await beat.advance(hours=1)
        assert len(beat.enqueued(sync, customer=7)) == 12
        await scheduler.schedules.pause("sync-7")
        await beat.advance(hours=1)
        assert len(beat.fired("sync-7", decision="started")) == 12
        await scheduler.schedules.remove("sync-7")


async def test_a_long_run_sleeps_in_virtual_time(scheduler: Scheduler) -> None:
    async with TestScheduler(scheduler, now="2026-01-01T00:00:00+00:00") as beat:

        @scheduler.task
        async def load() -> None:
            await beat.sleep(minutes=25)

        await scheduler.schedules.add("load", load, Every(minutes=10))
        await beat.advance(minutes=20)  # the fire at the end of a step is decided in it, also beside a run
        assert [fire.decision for fire in beat.fired("load")] == ["started", "skipped_overlap"]
        await beat.advance(minutes=20)
        decisions = [fire.decision for fire in beat.fired("load")]
        assert decisions == ["started", "skipped_overlap", "skipped_overlap", "started"]


# ── questions ─────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_expectations_name_what_was_enqueued_instead(scheduler: Scheduler) -> None:
    @scheduler.task
    async def send(user_id: UUID, message: str = "hi", *, urgent: bool = False, **more: int) -> None: ...

    ann, bob = UUID(int=1), UUID(int=2)
    async with TestScheduler(scheduler) as beat:
        beat.refute_enqueued(send)
        with pytest.raises(AssertionError, match="send has no jobs"):
            beat.assert_enqueued(send)
        job = await send.enqueue(ann, urgent=True, copies=2)
        assert beat.assert_enqueued(send, user_id=ann).id == job.id
        assert beat.assert_enqueued(send, ann, "hi", urgent=True, copies=2).id == job.id
        assert [found.id for found in beat.enqueued("send")] == [job.id]
        beat.refute_enqueued(send, user_id=bob)
        with pytest.raises(AssertionError, match=r"send\(user_id=.*2'\)\) was not enqueued; .*urgent=True.*queued"):
            beat.assert_enqueued(send, user_id=bob)
        with pytest.raises(AssertionError, match="was enqueued; the jobs of send"):
            beat.refute_enqueued(send, message="hi")
        with pytest.raises(InvalidArguments, match="too many positional"):
            beat.enqueued(send, ann, "hi", "ho")
        with pytest.raises(UnknownTask):
            beat.enqueued("sent")
        await beat.run_until_idle()
        assert beat.assert_enqueued(send).state == "succeeded"


async def test_hooks_hear_what_happens(scheduler: Scheduler) -> None:
    heard: list[str] = []

    @scheduler.every(hours=1)
    async def poll() -> None: ...

    @scheduler.on(ScheduleFired)
    def fired(event: ScheduleFired) -> None:
        heard.append(event.schedule_id)

    @scheduler.on(JobSettled)
    def settled(event: JobSettled) -> None:
        heard.append(event.state)

    async with TestScheduler(scheduler, now=NOW) as beat:
        await beat.advance(hours=2)
    assert heard == ["poll", "succeeded"] * 2


# ── several workers, and crashes ──────────────────────────────────────────────────────────────────────────────────────
async def test_another_worker_runs_the_job_of_a_crashed_one_when_its_lease_is_over(scheduler: Scheduler) -> None:
    attempts: list[int] = []
    async with TestScheduler(scheduler, workers=2) as beat:

        @scheduler.task
        async def charge(context: JobContext) -> str:
            attempts.append(context.attempt)
            if context.attempt == 1:
                beat.crash()
                attempts.append(-1)  # a crashed worker goes no further
            return "paid"

        job = await charge.enqueue()
        await beat.run_until_idle()
        assert (len(beat.workers), attempts) == (1, [1])
        await beat.advance(seconds=59)
        assert (await job.refresh()).state == "running", "nobody knows of the crash before the lease is over"
        await beat.advance(seconds=60)
        assert ((await job.refresh()).value, attempts) == ("paid", [1, 2])
        with pytest.raises(ConfigurationError, match="worker 7 is not there"):
            beat.crash(7)


async def test_the_worker_that_is_left_fires_in_time(scheduler: Scheduler) -> None:
    @scheduler.every(minutes=10)
    async def poll() -> None: ...

    async with TestScheduler(scheduler, now="2026-01-01T00:00:00+00:00", workers=3) as beat:
        for fires in range(1, 4):
            await beat.advance(minutes=10)
            assert len(beat.fired("poll")) == fires
            if fires < 3:
                beat.crash()


async def test_the_only_worker_crashes_and_another_one_starts(scheduler: Scheduler) -> None:
    @scheduler.every(minutes=10)
    async def poll() -> None: ...

    async with TestScheduler(scheduler, now="2026-01-01T00:00:00+00:00") as beat:
        await beat.advance(minutes=10)
        assert beat.crash() == 0
        await beat.advance(hours=1)
        assert len(beat.fired("poll")) == 1
        assert await beat.start_worker() == 1
        await beat.run_until_idle()
        assert [fire.decision for fire in beat.fired("poll")] == ["started"] + ["coalesced"] * 5 + ["started"]


async def test_a_lock_is_held_while_virtual_time_passes(scheduler: Scheduler) -> None:
    async with TestScheduler(scheduler, workers=2) as beat:
        order: list[str] = []

        @scheduler.task
        async def rebuild(name: str) -> None:
            async with scheduler.lock("index", ttl=30):
                await beat.sleep(minutes=10)
                order.append(name)

        await rebuild.enqueue("first")
        await beat.advance(minutes=5)
        assert await scheduler.lock("index").try_acquire() is None
        await beat.advance(minutes=10)
        assert order == ["first"]
        async with scheduler.lock("index", wait=0) as lease:
            assert lease.fence > 0


# ── inline ────────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_inline_runs_a_job_where_it_is_enqueued_and_raises_its_error(scheduler: Scheduler) -> None:
    @scheduler.task
    async def inner(number: int) -> int:
        if number < 0:
            raise ValueError("negative")
        return number + 1

    @scheduler.task
    async def outer(number: int) -> int:
        return int((await inner.enqueue(number)).value)

    async with TestScheduler(scheduler, inline=True) as beat:
        job = await outer.enqueue(1)
        assert (job.state, job.value) == ("succeeded", 2)
        assert await asyncio.to_thread(lambda: outer.enqueue_sync(2).value) == 3
        with pytest.raises(ValueError, match="negative"):
            await outer.enqueue(-1)
        later = await inner.options(delay=60).enqueue(5)
        assert later.state == "scheduled"
        await beat.advance(minutes=1)
        assert (await later.refresh()).value == 6


# ── what goes wrong ───────────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_value_that_cannot_be_stored_is_an_error_of_the_test(scheduler: Scheduler) -> None:
    @scheduler.task
    async def shape() -> object:
        return object()

    async with TestScheduler(scheduler) as beat:
        await shape.enqueue()
        with pytest.raises(InvalidArguments, match="the value of task shape was not stored"):
            await beat.run_until_idle()
        await beat.run_until_idle()


async def test_a_run_that_outlasts_the_patience_is_named_and_time_passes_beside_it(scheduler: Scheduler) -> None:
    go = asyncio.Event()

    @scheduler.task
    async def stuck() -> None:
        await go.wait()

    async with TestScheduler(scheduler, patience=0.05) as beat:
        job = await stuck.enqueue()
        with pytest.warns(UserWarning, match=r"\(stuck\) still runs after 0.05 s"):
            await beat.run_until_idle()
        await beat.advance(hours=2)
        go.set()
        await beat.run_until_idle()
        assert (await job.refresh()).state == "succeeded"


async def test_a_job_cannot_move_the_time(scheduler: Scheduler) -> None:
    async with TestScheduler(scheduler, inline=True) as beat:

        @scheduler.task
        async def jump() -> None:
            await beat.advance(hours=1)

        with pytest.raises(ConfigurationError, match="a job cannot move the time"):
            await jump.enqueue()


async def test_unclear_arguments_are_refused(scheduler: Scheduler) -> None:
    for wrong, words in (
        ({"now": datetime(2026, 1, 1)}, "has no time zone"),
        ({"now": "noon"}, "is no instant"),
        ({"workers": 0}, "give 1 or more"),
        ({"database": "other"}, "'own'"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            TestScheduler(scheduler, **wrong)
    with pytest.raises(ConfigurationError, match=r"takes a onebeat\.Scheduler"):
        TestScheduler("app:scheduler")  # type: ignore[arg-type]  # the point


async def test_the_kit_and_the_real_engine_do_not_run_at_once(tmp_path: object) -> None:
    scheduler = Scheduler(f"sqlite:///{tmp_path}/app.db")

    @scheduler.task
    async def work() -> datetime:
        return datetime.now(UTC)

    async with scheduler:
        with pytest.raises(ConfigurationError, match="before the application starts"):
            async with TestScheduler(scheduler):
                pass
    async with TestScheduler(scheduler, now="2020-01-01T00:00:00+00:00"):
        async with scheduler:  # as the application's lifespan does
            assert scheduler._running().database.where.endswith(":memory:")
        await work.enqueue()
    async with scheduler:
        job = await work.enqueue()
        assert (await job.wait(10)).created_at > datetime(2025, 1, 1, tzinfo=UTC)
        assert await scheduler.jobs.count() == 1


def test_a_test_without_an_event_loop_has_verbs_that_block(scheduler: Scheduler) -> None:
    @scheduler.every(hours=1)
    async def poll() -> None: ...

    with TestScheduler(scheduler, now="2026-01-01T00:00:00+00:00") as beat:
        assert isinstance(beat, SyncTestScheduler)
        beat.advance(hours=3)
        poll.enqueue_sync()
        beat.run_until_idle()
        assert beat.crash() == 0
        assert beat.start_worker() == 1
        assert [job.state for job in beat.enqueued(poll)] == ["succeeded"] * 4
