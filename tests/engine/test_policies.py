"""Every worker is down for a virtual day; one comes back, and each policy gives its verdicts, on every database."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from onebeat.errors import InvalidTrigger
from onebeat.model import payload
from onebeat.model.changes import fire_now
from onebeat.model.definition import Definition
from onebeat.model.policies import CatchUp, Policies
from onebeat.model.schedule import PlannedFire, Schedule, Unfinished
from onebeat.store import fires, reports, schedules, settlements, workers, zones
from onebeat.store.database import Database, Tx
from onebeat.timing.clock import DAY, HOUR, MINUTE, SECOND, from_us
from onebeat.timing.rule import Rule
from onebeat.timing.triggers import At, Cron, Every
from tests.conftest import MakeDatabase
from tests.guarantees.arrange import OPTIONS, added, fired
from tests.support import rows
from tests.support.builders import claimed, ended, registered
from tests.support.checker import FireRow
from tests.support.virtual import START, VirtualClock


def a_schedule(id: str = "s", trigger: Rule | None = None, policies: dict[str, Any] | None = None) -> Definition:
    """Hourly, with the default policies."""
    rule = Every(hours=1) if trigger is None else trigger
    return Definition(
        id=id,
        task="work",
        trigger=payload.canonical(rule.to_json()),
        timezone=rule.timezone or "UTC",
        policies=payload.canonical(Policies(**(policies or {})).to_json()),
        options=payload.canonical(OPTIONS),
    )


class Days:
    """One database under a virtual clock, and a worker that is there only when a test says so."""

    def __init__(self, database: Database, url: str, clock: VirtualClock) -> None:
        self.database, self.url, self.clock = database, url, clock
        self.started: list[tuple[int, int]] = []  # (fire time, when it ran)

    async def away(self, seconds: float) -> None:
        """Nobody works; then a dispatcher looks."""
        self.clock.advance(seconds)
        await fired(self.database)

    async def work_off(self) -> None:
        """Claim and finish until nothing is left that may run now."""
        worker = await registered(self.database)
        while batch := await claimed(self.database, worker, limit=100):
            for job in batch:
                assert job.fire_us is not None
                self.started.append((job.fire_us, self.clock.now))
            await self.database.write(settlements.settle, [ended(job) for job in batch], worker_id=worker)

    async def verdicts(self) -> list[FireRow]:
        return sorted((await rows.read(self.url)).fires, key=lambda fire: (fire.fire_us, fire.fire_key))

    async def counted(self) -> dict[str, int]:
        return dict(Counter(fire.decision for fire in await self.verdicts()))


@pytest.fixture
async def days(database_url: str, make_database: MakeDatabase) -> Days:
    clock = VirtualClock(START - START % HOUR)
    return Days(await make_database(database_url, clock=clock), database_url, clock)


AFTER_A_DAY: list[tuple[str, dict[str, Any], dict[str, int], int]] = [
    # name, policies, verdicts over the 24 instants of the day, the last of them on time, and jobs that ran
    ("default", {}, {"coalesced": 23, "started": 1}, 1),
    ("skip", {"catch_up": "skip"}, {"misfired": 23, "started": 1}, 1),
    ("grace", {"misfire_grace": 3 * 3600, "catch_up": "all", "overlap": "allow"}, {"misfired": 20, "started": 4}, 4),
    ("all", {"catch_up": "all", "overlap": "allow"}, {"started": 24}, 24),
    ("all, overlap skip", {"catch_up": "all"}, {"started": 1, "skipped_overlap": 23}, 1),
    ("all, at most five", {"catch_up": CatchUp(max=5), "overlap": "allow"}, {"gap": 1, "started": 6}, 6),
    ("all, of four hours", {"catch_up": CatchUp(window=4 * 3600), "overlap": "allow"}, {"gap": 1, "started": 5}, 5),
    ("queue one", {"catch_up": "all", "overlap": "queue_one"}, {"started": 2, "skipped_overlap": 22}, 2),
    ("queue all", {"catch_up": "all", "overlap": "queue_all"}, {"started": 24}, 24),
    ("cancel previous", {"catch_up": "all", "overlap": "cancel_previous"}, {"skipped_overlap": 23, "started": 1}, 1),
    ("max fires", {"catch_up": "all", "overlap": "allow", "max_fires": 3}, {"started": 3}, 3),
]


@pytest.mark.parametrize(
    ("policies", "verdicts", "ran"), [row[1:] for row in AFTER_A_DAY], ids=[r[0] for r in AFTER_A_DAY]
)
async def test_after_a_day_without_workers(
    days: Days, policies: dict[str, Any], verdicts: dict[str, int], ran: int
) -> None:
    await added(days.database, a_schedule(policies=policies))
    await days.away(24 * 3600)
    assert await days.counted() == verdicts
    found = await days.verdicts()
    assert all(fire.decision == "gap" or (fire.job_id is not None) == (fire.decision == "started") for fire in found)
    covered = sum(fire.instants or 1 for fire in found)
    assert covered == (3 if "max_fires" in policies else 24)
    await days.work_off()
    assert len(days.started) == ran
    assert await rows.unfinished(days.url) == 0


async def test_queued_fires_run_one_after_the_other_in_order_of_their_times(days: Days) -> None:
    await added(days.database, a_schedule(policies={"catch_up": "all", "overlap": "queue_all"}))
    await days.away(5 * 3600)
    worker = await registered(days.database)
    order = []
    for _ in range(5):
        (job,) = await claimed(days.database, worker)
        assert await claimed(days.database, worker) == []
        order.append(job.fire_us)
        await days.database.write(settlements.settle, [ended(job)], worker_id=worker)
    assert order == [days.clock.now - n * HOUR for n in (4, 3, 2, 1, 0)]
    assert await claimed(days.database, worker) == []


async def test_cancel_previous_lets_the_new_job_wait_until_the_old_one_ended(days: Days) -> None:
    await added(days.database, a_schedule(policies={"overlap": "cancel_previous"}))
    await days.away(3600)
    worker = await registered(days.database, lease=7 * DAY)
    (running,) = await claimed(days.database, worker)
    await days.away(86_400)
    assert await claimed(days.database, worker) == []
    states = Counter(job.state for job in (await rows.read(days.url)).jobs)
    assert states == {"running": 1, "waiting": 1}
    await days.database.write(settlements.settle, [ended(running)], worker_id=worker)
    (newer,) = await claimed(days.database, worker)
    assert newer.fire_us == days.clock.now


async def test_cancel_previous_ends_at_once_what_has_not_started(days: Days) -> None:
    await added(days.database, a_schedule(policies={"overlap": "cancel_previous"}))
    await days.away(3600)
    await days.away(86_400)
    states = Counter(job.state for job in (await rows.read(days.url)).jobs)
    assert states == {"cancelled": 1, "queued": 1}


async def test_a_job_that_runs_through_the_day_makes_skips_and_one_warning(days: Days) -> None:
    await added(days.database, a_schedule())
    await days.away(3600)
    worker = await registered(days.database, lease=7 * DAY)
    await claimed(days.database, worker)
    warnings = []
    for _ in range(5):
        days.clock.advance(3600)
        warnings += (await fired(days.database)).warnings
    assert len(warnings) == 1
    assert await days.counted() == {"started": 1, "skipped_overlap": 5}


async def test_jitter_moves_the_job_and_not_the_fire(days: Days) -> None:
    await added(days.database, a_schedule(policies={"jitter": 600}))
    await days.away(3600)
    worker = await registered(days.database)
    assert await claimed(days.database, worker) == []
    (job,) = (await rows.read(days.url)).jobs
    assert (job.state, job.fire_us) == ("scheduled", days.clock.now)


async def test_spacing_lets_missed_fires_run_one_by_one(days: Days) -> None:
    await added(days.database, a_schedule(policies={"catch_up": CatchUp(spacing=60), "overlap": "allow"}))
    await days.away(4 * 3600 + 30)
    states = Counter(job.state for job in (await rows.read(days.url)).jobs)
    assert states == {"queued": 1, "scheduled": 3}


async def test_a_pause_over_the_day_is_one_gap_row_and_catches_nothing_up(days: Days) -> None:
    await added(days.database, a_schedule(policies={"catch_up": "all", "overlap": "allow"}))
    await days.database.write(schedules.pause, "s", "maintenance")
    await days.away(24 * 3600)
    assert await days.counted() == {}
    await days.database.write(schedules.resume, "s")
    await days.away(1)
    (gap,) = await days.verdicts()
    assert (gap.decision, gap.instants) == ("gap", 24)
    await days.away(3600)
    assert await days.counted() == {"gap": 1, "started": 1}


async def test_fire_now_during_the_day_moves_nothing(days: Days) -> None:
    await added(days.database, a_schedule())
    before = (await rows.read(days.url)).schedules["s"]

    def decide(schedule: Schedule, now: int, held: tuple[Unfinished, ...]) -> tuple[PlannedFire, ...]:
        return (fire_now(schedule, now, held, unique="u"),)

    def by_hand(tx: Tx) -> None:
        fires.fire_by_hand(tx, "s", decide, new_tracking_id=lambda: "t" * 32, by="me")

    await days.database.write(by_hand)
    assert (await rows.read(days.url)).schedules["s"] == before
    (row,) = await days.verdicts()
    assert (row.fire_key, row.origin, row.decision) == ("manual:u", "manual", "started")


async def test_a_late_one_off_runs_once_and_the_schedule_is_finished(days: Days) -> None:
    await added(days.database, a_schedule(trigger=At(from_us(days.clock.now + HOUR))))
    await days.away(24 * 3600)
    await days.away(24 * 3600)
    assert await days.counted() == {"started": 1}
    info = await days.database.read(schedules.get, "s")
    assert (info.state, info.next_fire, info.fires_count) == ("finished", None, 1)


async def test_a_month_of_seconds_is_one_gap_row_and_bounded_work(days: Days) -> None:
    await added(days.database, a_schedule(trigger=Every(1), policies={"catch_up": "all", "overlap": "allow"}))
    await days.away(30 * 86_400)
    found = await days.verdicts()
    assert Counter(fire.decision for fire in found) == {"gap": 2, "started": 106}
    assert sum(fire.instants or 1 for fire in found) == 30 * 86_400


async def test_a_fold_and_a_gap_fire_once_each_by_wall_time(days: Days) -> None:
    days.clock.now = 1_774_656_000 * SECOND  # 2026-03-28 01:00 in Berlin
    cron = Cron("30 2 * * *", "Europe/Berlin")
    await added(days.database, a_schedule(trigger=cron, policies={"catch_up": CatchUp(max=400, window=400 * 86_400)}))
    await days.away(250 * 86_400)
    keys = [fire.fire_key for fire in await days.verdicts()]
    assert len(keys) == len(set(keys)) == 250
    assert keys.count("2026-03-29T02:30[Europe/Berlin]") == 1
    assert keys.count("2026-10-25T02:30[Europe/Berlin]") == 1


# ── zone data, code and its absence ───────────────────────────────────────────────────────────────────────────────────
async def test_other_zone_data_moves_the_next_fire_once_and_fires_nothing_twice(days: Days) -> None:
    cron = Cron("30 2 * * *", "Europe/Berlin")
    await added(days.database, a_schedule(trigger=cron))
    assert await days.database.write(zones.rezone) == []
    right = cron.next_fire(days.clock.now)
    assert right is not None

    def as_if_computed_with_other_data(tx: Tx) -> None:
        table = tx.tables.schedules
        tx.execute(table.update().values(next_fire_us=right.at + HOUR, zone_fingerprint="20000:" + "0" * 24))

    await days.database.write(as_if_computed_with_other_data)
    assert await days.database.write(zones.rezone) == ["s"]
    assert (await rows.read(days.url)).schedules["s"][1] == right.at
    assert await days.database.write(zones.rezone) == []
    days.clock.now = right.at
    await fired(days.database)
    await days.database.write(as_if_computed_with_other_data)
    await days.database.write(zones.rezone)
    await fired(days.database)
    assert await days.counted() == {"started": 1}


async def test_code_that_returns_after_a_day_decides_what_came_due_meanwhile(days: Days) -> None:
    item = a_schedule()
    worker = await registered(days.database, definitions={"s": item.hash}, lease=60 * SECOND)
    await days.database.write(schedules.declare, [item])
    days.clock.advance(120)
    await days.database.write(workers.mark_dead)
    await days.database.write(schedules.arbitrate)
    assert (await days.database.read(schedules.get, "s")).state == "orphaned"
    days.clock.advance(24 * 3600)
    worker = await registered(days.database, definitions={"s": item.hash})
    await days.database.write(schedules.declare, [item])
    assert (await days.database.read(schedules.get, "s")).state == "active"
    await days.database.write(
        fires.fire_due, worker_id=worker, hashes=[item.hash], new_tracking_id=lambda: "t" * 32, limit=50
    )
    assert await days.counted() == {"coalesced": 23, "started": 1}


async def test_code_whose_one_off_is_over_still_starts(days: Days) -> None:
    """It fired long ago, and its row may be pruned; the code that declares it must not be refused for that."""
    item = a_schedule(trigger=At(from_us(days.clock.now + HOUR)))
    await registered(days.database, definitions={"s": item.hash})
    await days.database.write(schedules.declare, [item])
    days.clock.advance(30 * 86_400)
    await days.database.write(schedules.declare, [item])
    over = a_schedule("t", trigger=At(from_us(days.clock.now - HOUR)))
    await days.database.write(schedules.declare, [over])
    assert (await days.database.read(schedules.get, "t")).state == "finished"
    with pytest.raises(InvalidTrigger, match="past"):
        await days.database.write(schedules.add, a_schedule("u", At(from_us(days.clock.now - HOUR))), if_exists="error")


async def test_rows_of_a_day_answer_why(days: Days) -> None:
    await added(days.database, a_schedule(policies={"misfire_grace": 2 * 3600}))
    first = days.clock.now + HOUR
    await days.away(24 * 3600 + 10 * MINUTE // SECOND)
    (row,) = await days.database.read(reports.fires_around, "s", first)
    assert (row.decision, row.reason) == ("misfired", "late by 23 hours 10 minutes; misfire_grace is 2 hours")
