"""The database's clock is set back or forward: it is said, and no schedule stands still or fires twice for it."""

from __future__ import annotations

from collections import Counter
from random import Random
from uuid import UUID

import pytest
from sqlalchemy import update

from onebeat.engine.clock_watch import ClockWatch
from onebeat.engine.wakeups import Wakeups
from onebeat.errors import DatabaseUnavailable
from onebeat.logs.events import word
from onebeat.model.events import ClockStepped, Event
from onebeat.model.job import Ending, JobState, Outcome
from onebeat.store import clock_ahead, locks, workers
from onebeat.store.jobs import insert, settle
from onebeat.store.schedules import clock_step
from onebeat.timing.backoff import Retry
from onebeat.timing.clock import DAY, HOUR, MINUTE, SECOND, SystemClock
from onebeat.timing.rule import Rule
from onebeat.timing.triggers import Cron, Every
from tests.conftest import MakeDatabase
from tests.engine.conftest import Make
from tests.guarantees.arrange import added, fired
from tests.support import rows
from tests.support.builders import a_job, claimed, ended, registered
from tests.support.databases import waits_until
from tests.support.simulated_worker import SimulatedWorker, a_schedule
from tests.support.virtual import START, ProcessClock, VirtualClock

TEN_YEARS = 3653 * DAY / SECOND  # seconds


class Watch:
    """A `ClockWatch` in a process whose own clocks never step, with what it announced and whom it woke."""

    def __init__(self, simulated: SimulatedWorker, process: VirtualClock) -> None:
        self.simulated = simulated
        self.process = process
        self.events: list[Event] = []
        self.woken = 0
        wakeups = Wakeups()
        wakeups.schedules_changed.subscribe(self._wake)
        self.watch = ClockWatch(
            database=simulated.database,
            clock=ProcessClock(self.process),
            interval=15 * SECOND,
            wakeups=wakeups,
            random=Random(1),
            announce=self.events.append,
        )

    def _wake(self) -> None:
        self.woken += 1

    async def look(self) -> list[tuple[float | None, int]]:
        """Look fifteen seconds later; what was announced: the step in whole hours, and how many schedules moved."""
        self.process.advance(15)
        self.simulated.clock.advance(15)
        self.events.clear()
        await self.watch.tick(self.process.now)
        steps = [event for event in self.events if isinstance(event, ClockStepped)]
        return [(None if step.seconds is None else round(step.seconds / 3600), step.moved) for step in steps]

    def pass_time(self, seconds: float) -> None:
        """Both clocks go on."""
        self.process.advance(seconds)
        self.simulated.clock.advance(seconds)


@pytest.fixture
def process() -> VirtualClock:
    """The clocks of the process, which never step."""
    return VirtualClock()


@pytest.fixture
async def simulated(database_url: str, make_database: MakeDatabase, process: VirtualClock) -> SimulatedWorker:
    """Every database in turn, with a clock of its own that shows a full hour."""
    clock = VirtualClock(START - START % HOUR)
    database = await make_database(database_url, database_clock=clock, clock=ProcessClock(process))
    return SimulatedWorker(database, database_url, clock)


@pytest.fixture
def watch(simulated: SimulatedWorker, process: VirtualClock) -> Watch:
    """What a worker that starts now has."""
    return Watch(simulated, process)


async def next_fire(simulated: SimulatedWorker) -> int | None:
    return (await rows.read(simulated.url)).schedules["s"][1]


async def scheduled(simulated: SimulatedWorker, trigger: Rule) -> None:
    await added(simulated.database, a_schedule(trigger=trigger, policies={"overlap": "allow", "catch_up": "latest"}))


async def once_each(simulated: SimulatedWorker) -> bool:
    """Whether no instant has two jobs."""
    counts = Counter(job.fire_us for job in await simulated.jobs())
    return set(counts.values()) <= {1}


@pytest.mark.parametrize("rule", [Every(hours=1), Cron("0 * * * *", "Europe/Berlin")], ids=["interval", "cron"])
async def test_a_clock_that_was_ten_years_ahead_for_a_while_costs_no_fire(
    rule: Rule, simulated: SimulatedWorker, watch: Watch
) -> None:
    await scheduled(simulated, rule)
    assert await watch.look() == []
    began = simulated.clock.now
    simulated.clock.advance(TEN_YEARS)
    assert await watch.look() == [(round(TEN_YEARS / 3600), 0)]
    await simulated.away(0)
    assert (await next_fire(simulated) or 0) > began + TEN_YEARS * SECOND
    simulated.clock.advance(-TEN_YEARS)
    assert await watch.look() == [(-round(TEN_YEARS / 3600), 1)]
    assert watch.woken == 1
    due = rule.next_fire(simulated.clock.now)
    assert due is not None
    assert await next_fire(simulated) == due.at
    jobs = len(await simulated.jobs())
    for hour in range(1, 4):
        watch.pass_time(3600)
        await simulated.away(0)
        assert len(await simulated.jobs()) == jobs + hour
    assert await once_each(simulated)
    assert [(fire.fire_key, fire.decision) for fire in await simulated.verdicts() if fire.decision == "gap"] == []
    assert await watch.look() == []


async def test_what_fired_before_the_clock_was_set_back_does_not_fire_again(
    simulated: SimulatedWorker, watch: Watch
) -> None:
    await scheduled(simulated, Every(minutes=10))
    await watch.look()
    for _ in range(9):
        watch.pass_time(600)
        await simulated.away(0)
    before = await next_fire(simulated)
    simulated.clock.advance(-3600)
    assert await watch.look() == [(-1, 0)], "it is said, and there is nothing to compute anew"
    assert await next_fire(simulated) == before
    for _ in range(12):
        watch.pass_time(600)
        await simulated.away(0)
    assert await once_each(simulated)
    assert {fire.decision for fire in await simulated.verdicts()} == {"started"}
    assert len(await simulated.jobs()) == 9 + 6


async def test_instants_without_a_record_between_the_two_times_fire(simulated: SimulatedWorker, watch: Watch) -> None:
    """The clock went wrong by a day, one fire was decided there, and it came back."""
    await scheduled(simulated, Every(hours=1))
    await watch.look()
    simulated.clock.advance(DAY / SECOND)
    await watch.look()
    await simulated.away(0)
    simulated.clock.advance(-DAY / SECOND)
    assert await watch.look() == [(-24, 1)]
    for _ in range(30):
        watch.pass_time(3600)
        await fired(simulated.database, careful=True)  # as a dispatcher does at the one that has a job
    assert await once_each(simulated)
    started = [fire.fire_us for fire in await simulated.verdicts() if fire.decision == "started"]
    assert started == sorted(set(started))
    assert len(started) == 30


async def test_a_step_that_no_running_worker_saw_is_mended_at_start(
    simulated: SimulatedWorker, watch: Watch, process: VirtualClock
) -> None:
    await scheduled(simulated, Every(hours=1))
    simulated.clock.advance(TEN_YEARS)
    await simulated.away(3600)
    simulated.clock.advance(-TEN_YEARS)
    assert await watch.look() == [(None, 1)]
    assert await next_fire(simulated) == (simulated.clock.now // HOUR + 1) * HOUR
    assert await Watch(simulated, process).look() == [], "the next start finds nothing to mend"


async def test_a_worker_looks_after_the_clock_by_itself(
    database_url: str, make: Make, make_database: MakeDatabase
) -> None:
    scheduler, steps = make(), list[ClockStepped]()
    scheduler.on(ClockStepped)(steps.append)
    task = scheduler.task(name="work")(_do_nothing)
    await scheduler.start()
    right = (await scheduler.schedules.add("s", task, Every(hours=1))).next_fire
    await scheduler.stop()
    database = await make_database(database_url)
    schedules, rows_of_workers = database.tables.schedules, database.tables.workers
    far = SystemClock().now() + 3653 * DAY
    await database.write(lambda tx: tx.execute(update(schedules).values(next_fire_us=far)) and None)
    await database.write(lambda tx: tx.execute(update(rows_of_workers).values(heartbeat_us=far)) and None)
    await scheduler.start()
    await waits_until(lambda: steps != [])
    assert [(step.seconds, step.moved) for step in steps] == [(None, 1)]
    moved = (await scheduler.schedules.get("s")).next_fire
    assert moved is not None
    assert right is not None
    assert 0 <= (moved - right).total_seconds() <= 3600, "an hour may have begun in between"


async def _do_nothing() -> None: ...


async def test_small_adjustments_and_equal_clocks_are_no_step(simulated: SimulatedWorker, watch: Watch) -> None:
    await scheduled(simulated, Every(hours=1))
    for seconds in (0.0, 20.0, -20.0, 0.5):
        simulated.clock.advance(seconds)
        assert await watch.look() == []


async def test_a_step_back_is_mended_after_an_outage_in_the_middle(
    simulated: SimulatedWorker, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scheduled(simulated, Every(hours=1))
    await watch.look()
    simulated.clock.advance(TEN_YEARS)
    await watch.look()
    await simulated.away(0)
    simulated.clock.advance(-TEN_YEARS)
    original = clock_step.bring_forward

    def fails(*_: object) -> None:
        raise DatabaseUnavailable("a test said so")

    monkeypatch.setattr(clock_step, "bring_forward", fails)
    with pytest.raises(DatabaseUnavailable):
        await watch.look()
    monkeypatch.setattr(clock_step, "bring_forward", original)
    assert await watch.look() == [(-round(TEN_YEARS / 3600), 1)]


async def test_more_schedules_than_one_transaction_takes_are_all_mended(
    simulated: SimulatedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock_step, "BATCH", 2)
    for number in range(5):
        await added(simulated.database, a_schedule(f"s{number}", Every(hours=1)))
    wrong = simulated.clock.now + DAY
    table = simulated.database.tables.schedules
    await simulated.database.write(lambda tx: tx.execute(update(table).values(next_fire_us=wrong)) and None)
    moved, behind, rounds = 0, "", 0
    while True:
        count, last = await simulated.database.write(clock_step.bring_forward, behind)
        moved, rounds = moved + count, rounds + 1
        if last is None:
            break
        behind = last
    assert (moved, rounds) == (5, 3)


async def test_a_worker_that_dies_after_the_clock_was_set_back_is_found_within_an_hour(
    simulated: SimulatedWorker, watch: Watch
) -> None:
    await watch.look()
    simulated.clock.advance(TEN_YEARS)
    await watch.look()
    await registered(simulated.database, lease=MINUTE)
    simulated.clock.advance(-TEN_YEARS)
    await watch.look()
    simulated.clock.advance(3601)
    assert await simulated.database.read(workers.any_expired)


# ── retries, delayed jobs and leases ──────────────────────────────────────────────────────────────────────────────────
SOME_TIME = 90.0  # seconds; less than the delays and leases below


async def run_at(simulated: SimulatedWorker, id: UUID) -> float:
    """Seconds from now until this job's start."""
    (job,) = [job for job in await simulated.jobs() if job.id == id]
    return (job.run_at_us - simulated.clock.now) / SECOND


@pytest.mark.parametrize("step", [TEN_YEARS, SOME_TIME], ids=["ten years", "a minute and a half"])
async def test_a_retry_stored_while_the_clock_was_ahead_waits_no_longer_than_its_delay(
    step: float, simulated: SimulatedWorker, watch: Watch, process: VirtualClock
) -> None:
    database, another = simulated.database, Watch(simulated, process)
    moment = simulated.clock.now + 600 * SECOND
    retried, given = a_job(), a_job(run_at=moment, state=JobState.SCHEDULED)
    await database.write(insert.add, [retried, given])
    for seconds in (0, step):
        simulated.clock.advance(seconds)
        await watch.look(), await another.look()
    delayed = a_job(run_at=simulated.clock.now + 600 * SECOND, state=JobState.SCHEDULED)  # delay=600
    await database.write(insert.add, [delayed])
    worker = await registered(database)
    (job,) = [job for job in await claimed(database, worker) if job.id == retried.id]
    failed = ended(job, Outcome(ending=Ending.ERROR, error="no"), Retry(base=100, jitter=False))
    await database.write(settle.settle, [failed], worker_id=worker)
    simulated.clock.advance(-step)
    await watch.look()
    (event,) = [event for event in watch.events if isinstance(event, ClockStepped)]
    assert (event.retries, event.delayed) == (1, 1)
    assert await run_at(simulated, retried.id) == 100
    assert await run_at(simulated, delayed.id) == pytest.approx(step + 600 - 15)
    assert await database.read(clock_ahead.delayed_ahead) == [delayed.id]
    await another.look()
    assert await run_at(simulated, retried.id) == 85, "another process that saw the step moves nothing again"
    assert await run_at(simulated, given.id) == (moment - simulated.clock.now) / SECOND, "a moment stays a moment"


@pytest.mark.parametrize("step", [TEN_YEARS, SOME_TIME], ids=["ten years", "a minute and a half"])
async def test_leases_given_while_the_clock_was_ahead_end_when_they_should(
    step: float, simulated: SimulatedWorker, watch: Watch, process: VirtualClock
) -> None:
    database, another, ttl = simulated.database, Watch(simulated, process), 120 * SECOND
    for seconds in (0, step):
        simulated.clock.advance(seconds)
        await watch.look(), await another.look()
    for name in ("live", "dead"):
        assert await database.write(locks.acquire, name, name, ttl, "a host")
    live, dead = await registered(database, lease=ttl), await registered(database, lease=ttl)
    simulated.clock.advance(-step)
    await watch.look(), await another.look()
    leases = {row.name: (row.expires_us - simulated.clock.now) / SECOND for row in await database.read(locks.held)}
    assert leases == {"live": 105, "dead": 105}, "no lease ends before its owner stops trusting it"
    assert await database.write(locks.renew, "live", "live", ttl)
    assert await database.write(workers.renew, live, ttl)
    simulated.clock.advance(110)
    assert [row.name for row in await database.read(locks.held)] == ["live"]
    assert [worker.id for worker in await database.write(workers.mark_dead)] == [dead]


async def test_a_lock_taken_before_the_clock_went_wrong_is_free_within_a_day_of_its_owner_s_death(
    simulated: SimulatedWorker, watch: Watch
) -> None:
    database = simulated.database
    await watch.look()
    await database.write(locks.acquire, "name", "owner", 3600 * SECOND, "a host")
    simulated.clock.advance(TEN_YEARS)
    await watch.look()
    far, table = simulated.clock.now + 3600 * SECOND, database.tables.locks
    await database.write(lambda tx: tx.execute(update(table).values(expires_us=far)) and None)  # renewed meanwhile
    simulated.clock.advance(-TEN_YEARS)
    await watch.look()
    (held,) = await database.read(locks.held)
    assert held.expires_us == simulated.clock.now + DAY


def test_the_log_says_by_how_much_the_clock_was_set(caplog: pytest.LogCaptureFixture) -> None:
    for seconds in (-3600.0, 60.0, None):
        word(ClockStepped(seconds=seconds, moved=2))
    word(ClockStepped(seconds=-60, moved=0, retries=3, delayed=4))
    back, forward, before, jobs = (record.getMessage() for record in caplog.records)
    assert "set back by 3600 s; 2 schedules" in back
    assert "set forward by 60 s" in forward
    assert "set back; 2 schedules" in before
    assert "3 retries start after the delay" in jobs
    assert "4 jobs were stored while it was ahead" in jobs
    assert {record.levelname for record in caplog.records} == {"WARNING"}
