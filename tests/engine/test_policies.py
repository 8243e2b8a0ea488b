"""Every worker is down for a virtual day; one comes back, and each policy gives its verdicts, on every database."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any

import pytest

from onebeat.errors import InvalidTrigger
from onebeat.model.policies import CatchUp
from onebeat.model.schedule import QUEUE_ALL, jitter_us
from onebeat.store import workers
from onebeat.store.jobs import settle
from onebeat.store.schedules import declare, edit, fire, read, rezone
from onebeat.store.tx import Tx
from onebeat.timing.clock import DAY, HOUR, SECOND, from_us
from onebeat.timing.triggers import At, Cron, Every
from tests.guarantees.arrange import added, fired
from tests.support import rows
from tests.support.builders import claimed, ended, registered
from tests.support.simulated_worker import SimulatedWorker, a_schedule

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
    simulated: SimulatedWorker, policies: dict[str, Any], verdicts: dict[str, int], ran: int
) -> None:
    await added(simulated.database, a_schedule(policies=policies))
    await simulated.away(24 * 3600)
    assert await simulated.counted() == verdicts
    found = await simulated.verdicts()
    assert all(fire.decision == "gap" or (fire.job_id is not None) == (fire.decision == "started") for fire in found)
    covered = sum(fire.instants or 1 for fire in found)
    assert covered == (3 if "max_fires" in policies else 24)
    await simulated.work_off()
    assert len(simulated.started) == ran
    assert await rows.unfinished(simulated.url) == 0


async def test_queued_fires_run_one_after_the_other_in_order_of_their_times(simulated: SimulatedWorker) -> None:
    await added(simulated.database, a_schedule(policies={"catch_up": "all", "overlap": "queue_all"}))
    await simulated.away(5 * 3600)
    worker = await registered(simulated.database)
    order = []
    for _ in range(5):
        (job,) = await claimed(simulated.database, worker)
        assert await claimed(simulated.database, worker) == []
        order.append(job.fire_us)
        await simulated.database.write(settle.settle, [ended(job)], worker_id=worker)
    assert order == [simulated.clock.now - n * HOUR for n in (4, 3, 2, 1, 0)]
    assert await claimed(simulated.database, worker) == []


async def test_cancel_previous_lets_the_new_job_wait_until_the_old_one_ended(simulated: SimulatedWorker) -> None:
    await added(simulated.database, a_schedule(policies={"overlap": "cancel_previous"}))
    await simulated.away(3600)
    worker = await registered(simulated.database, lease=7 * DAY)
    (running,) = await claimed(simulated.database, worker)
    await simulated.away(86_400)
    assert await claimed(simulated.database, worker) == []
    states = Counter(job.state for job in (await rows.read(simulated.url)).jobs)
    assert states == {"running": 1, "waiting": 1}
    await simulated.database.write(settle.settle, [ended(running)], worker_id=worker)
    (newer,) = await claimed(simulated.database, worker)
    assert newer.fire_us == simulated.clock.now


async def test_cancel_previous_ends_at_once_what_has_not_started(simulated: SimulatedWorker) -> None:
    await added(simulated.database, a_schedule(policies={"overlap": "cancel_previous"}))
    await simulated.away(3600)
    await simulated.away(86_400)
    states = Counter(job.state for job in (await rows.read(simulated.url)).jobs)
    assert states == {"cancelled": 1, "queued": 1}


async def test_a_job_that_runs_through_the_day_makes_skips_and_one_warning(simulated: SimulatedWorker) -> None:
    await added(simulated.database, a_schedule())
    await simulated.away(3600)
    worker = await registered(simulated.database, lease=7 * DAY)
    await claimed(simulated.database, worker)
    warnings = []
    for _ in range(5):
        simulated.clock.advance(3600)
        warnings += (await fired(simulated.database)).warnings
    assert len(warnings) == 1
    assert await simulated.counted() == {"started": 1, "skipped_overlap": 5}


async def test_jitter_moves_the_jobs_of_the_day_and_not_its_fires(simulated: SimulatedWorker) -> None:
    await added(simulated.database, a_schedule(policies={"jitter": 600, "catch_up": "all", "overlap": "allow"}))
    begin, offset = simulated.clock.now, jitter_us("s", 600 * SECOND)
    await simulated.away(24 * 3600)
    assert [fire.fire_us for fire in await simulated.verdicts()] == [begin + n * HOUR for n in range(1, 25)]
    assert {job.run_at_us for job in await simulated.jobs()} == {begin + DAY + offset}
    await simulated.work_off()
    assert simulated.started == []
    simulated.clock.now += offset
    await simulated.work_off()
    assert len(simulated.started) == 24


async def test_spacing_lets_the_missed_fires_of_the_day_run_one_by_one(simulated: SimulatedWorker) -> None:
    await added(simulated.database, a_schedule(policies={"catch_up": CatchUp(spacing=60), "overlap": "allow"}))
    begin = simulated.clock.now
    await simulated.away(24 * 3600 + 30)
    now = simulated.clock.now
    found = sorted((job.fire_us or 0, job.run_at_us) for job in await simulated.jobs())
    assert found == [(begin + (n + 1) * HOUR, now + n * 60 * SECOND) for n in range(24)]
    for _ in range(24):
        await simulated.work_off()
        simulated.clock.advance(60)
    assert [(at - now) // SECOND for _, at in simulated.started] == [n * 60 for n in range(24)]


async def test_queue_all_keeps_a_hundred_waiting_and_no_more(simulated: SimulatedWorker) -> None:
    policies = {"catch_up": CatchUp(max=1_000), "overlap": "queue_all"}
    await added(simulated.database, a_schedule(trigger=Every(minutes=10), policies=policies))
    await simulated.away(24 * 3600)
    assert Counter(job.state for job in await simulated.jobs()) == {"queued": 1, "waiting": QUEUE_ALL}
    assert await simulated.counted() == {"started": 101, "skipped_overlap": 43}
    await simulated.work_off()
    assert len(simulated.started) == 101
    assert simulated.started == sorted(simulated.started)


async def test_a_pause_over_the_day_is_one_gap_row_and_catches_nothing_up(simulated: SimulatedWorker) -> None:
    await added(simulated.database, a_schedule(policies={"catch_up": "all", "overlap": "allow"}))
    await simulated.database.write(edit.pause, "s", "maintenance")
    await simulated.away(24 * 3600)
    assert await simulated.counted() == {}
    await simulated.database.write(edit.resume, "s")
    await simulated.away(1)
    (gap,) = await simulated.verdicts()
    assert (gap.decision, gap.instants) == ("gap", 24)
    await simulated.away(3600)
    assert await simulated.counted() == {"gap": 1, "started": 1}


async def test_fire_now_over_the_day_moves_nothing_and_meets_overlap_unless_forced(simulated: SimulatedWorker) -> None:
    await added(simulated.database, a_schedule())
    await simulated.database.write(edit.pause, "s", None)
    simulated.clock.advance(24 * 3600)
    before = await simulated.schedules.get("s")
    first = await simulated.schedules.fire_now("s")
    assert (first.origin, first.decision, first.fire_time) == ("manual", "started", from_us(simulated.clock.now))
    simulated.clock.advance(1)
    held = await simulated.schedules.fire_now("s")
    assert (held.decision, held.job_id) == ("skipped_overlap", None)
    assert f"job {first.job_id} is queued" in str(held.reason)
    forced = await simulated.schedules.fire_now("s", force=True)
    assert forced.decision == "started"
    after = await simulated.schedules.get("s")
    assert (after.next_fire, after.fires_count, after.state) == (before.next_fire, before.fires_count, "paused")
    await simulated.work_off()
    assert len(simulated.started) == 2


async def test_a_backfill_of_the_day_makes_each_instant_once_unless_told_again(simulated: SimulatedWorker) -> None:
    await added(simulated.database, a_schedule(policies={"catch_up": "skip"}))
    begin, end = from_us(simulated.clock.now), from_us(simulated.clock.now + DAY)
    await simulated.away(24 * 3600)
    assert await simulated.counted() == {"misfired": 23, "started": 1}
    await simulated.work_off()
    simulated.started.clear()
    made = await simulated.schedules.backfill("s", begin, end)
    assert {fire.origin for fire in made} == {"backfill"}
    assert Counter(job.state for job in await simulated.jobs()) == {"succeeded": 1, "queued": 1, "waiting": 23}
    await simulated.work_off()
    assert [at for at, _ in simulated.started] == [simulated.clock.now - n * HOUR for n in range(24, 0, -1)]
    assert await simulated.schedules.backfill("s", begin, end) == []
    assert len(await simulated.schedules.backfill("s", begin, end, limit=2, again=True)) == 2
    info = await simulated.schedules.get("s")
    assert (info.fires_count, info.next_fire) == (1, from_us(simulated.clock.now + HOUR))


async def test_max_fires_may_be_raised_and_lowered_by_an_edit(simulated: SimulatedWorker) -> None:
    await added(simulated.database, a_schedule(policies={"max_fires": 2, "overlap": "allow"}))
    for _ in range(3):
        await simulated.away(3600)
    assert await simulated.counted() == {"started": 2}

    async def edited_to(max_fires: int | None) -> tuple[str, datetime | None]:
        item = a_schedule(policies={"max_fires": max_fires, "overlap": "allow"})
        await simulated.database.write(edit.edit, item, expected_rev=None, override=False)
        info = await simulated.schedules.get("s")
        return info.state, info.next_fire

    assert await edited_to(1) == ("finished", None)
    assert await edited_to(3) == ("active", from_us(simulated.clock.now + HOUR))
    assert await edited_to(2) == ("finished", None)
    assert await edited_to(None) == ("active", from_us(simulated.clock.now + HOUR))
    for _ in range(3):
        await simulated.away(3600)
    assert await simulated.counted() == {"started": 5}


async def test_a_late_one_off_runs_once_and_the_schedule_is_finished(simulated: SimulatedWorker) -> None:
    await added(simulated.database, a_schedule(trigger=At(from_us(simulated.clock.now + HOUR))))
    await simulated.away(24 * 3600)
    await simulated.away(24 * 3600)
    assert await simulated.counted() == {"started": 1}
    info = await simulated.database.read(read.get, "s")
    assert (info.state, info.next_fire, info.fires_count) == ("finished", None, 1)


async def test_a_month_of_seconds_is_one_gap_row_and_bounded_work(simulated: SimulatedWorker) -> None:
    await added(simulated.database, a_schedule(trigger=Every(1), policies={"catch_up": "all", "overlap": "allow"}))
    await simulated.away(30 * 86_400)
    found = await simulated.verdicts()
    assert Counter(fire.decision for fire in found) == {"gap": 2, "started": 106}
    assert sum(fire.instants or 1 for fire in found) == 30 * 86_400


async def test_a_fold_and_a_gap_fire_once_each_by_wall_time(simulated: SimulatedWorker) -> None:
    simulated.clock.now = 1_774_656_000 * SECOND  # 2026-03-28 01:00 in Berlin
    cron = Cron("30 2 * * *", "Europe/Berlin")
    await added(
        simulated.database, a_schedule(trigger=cron, policies={"catch_up": CatchUp(max=400, window=400 * 86_400)})
    )
    await simulated.away(250 * 86_400)
    keys = [fire.fire_key for fire in await simulated.verdicts()]
    assert len(keys) == len(set(keys)) == 250
    assert keys.count("2026-03-29T02:30[Europe/Berlin]") == 1
    assert keys.count("2026-10-25T02:30[Europe/Berlin]") == 1


@pytest.mark.parametrize(
    ("dst", "gap", "fold"),
    [
        ("vixie", ["2026-03-29T01:00"], ["2026-10-25T00:30"]),
        ("skip_missing", [], ["2026-10-25T00:30"]),
        ("run_both", ["2026-03-29T01:00"], ["2026-10-25T00:30", "2026-10-25T01:30"]),
    ],
)
async def test_each_dst_mode_fires_what_it_says_on_the_days_of_the_changes(
    simulated: SimulatedWorker, dst: str, gap: list[str], fold: list[str]
) -> None:
    cron = Cron("30 2 * * *", "Europe/Berlin", dst=dst)
    for number, (noon, expected) in enumerate([(1_774_695_600, gap), (1_792_839_600, fold)]):  # the day before
        id = f"s{number}"
        simulated.clock.now = noon * SECOND
        await added(simulated.database, a_schedule(id, cron, {"catch_up": "all", "overlap": "allow"}))
        await simulated.away(86_400)
        found = [fire for fire in await simulated.verdicts() if fire.schedule_id == id]
        assert [f"{from_us(fire.fire_us):%Y-%m-%dT%H:%M}" for fire in found] == expected
        assert len({fire.fire_key for fire in found}) == len(found)
        assert {fire.decision for fire in found} <= {"started"}
        await simulated.schedules.remove(id)


# ── zone data, code and its absence ───────────────────────────────────────────────────────────────────────────────────
async def rezone_all(simulated: SimulatedWorker) -> list[str]:
    """What moves when every zone is looked at."""
    moved: list[str] = []
    for zone in await simulated.database.read(rezone.outdated):
        after: str | None = ""
        while after is not None:
            ids, after = await simulated.database.write(rezone.rezone, zone, after, 2)
            moved += ids
    return moved


async def test_other_zone_data_moves_the_next_fire_once_and_fires_nothing_twice(simulated: SimulatedWorker) -> None:
    cron = Cron("30 2 * * *", "Europe/Berlin")
    await added(simulated.database, a_schedule(trigger=cron))
    assert await rezone_all(simulated) == []
    right = cron.next_fire(simulated.clock.now)
    assert right is not None

    def as_if_computed_with_other_data(tx: Tx) -> None:
        table = tx.tables.schedules
        tx.execute(table.update().values(next_fire_us=right.at + HOUR, zone_fingerprint="20000:" + "0" * 24))

    await simulated.database.write(as_if_computed_with_other_data)
    assert await rezone_all(simulated) == ["s"]
    assert (await rows.read(simulated.url)).schedules["s"][1] == right.at
    assert await rezone_all(simulated) == []
    simulated.clock.now = right.at
    await fired(simulated.database)
    await simulated.database.write(as_if_computed_with_other_data)
    await rezone_all(simulated)
    await fired(simulated.database)
    assert await simulated.counted() == {"started": 1}


async def test_code_that_returns_after_a_day_decides_what_came_due_meanwhile(simulated: SimulatedWorker) -> None:
    item = a_schedule()
    worker = await registered(simulated.database, definitions={"s": item.hash}, lease=60 * SECOND)
    await simulated.database.write(declare.declare, [item])
    simulated.clock.advance(120)
    await simulated.database.write(workers.mark_dead)
    await simulated.database.write(declare.arbitrate, ["s"])
    assert (await simulated.database.read(read.get, "s")).state == "orphaned"
    simulated.clock.advance(24 * 3600)
    worker = await registered(simulated.database, definitions={"s": item.hash})
    await simulated.database.write(declare.declare, [item])
    assert (await simulated.database.read(read.get, "s")).state == "active"
    await simulated.database.write(
        fire.fire_due, worker_id=worker, hashes=[item.hash], new_tracking_id=lambda: "t" * 32, limit=50
    )
    assert await simulated.counted() == {"coalesced": 23, "started": 1}


async def test_code_whose_one_off_is_over_still_starts(simulated: SimulatedWorker) -> None:
    """It fired long ago, and its row may be pruned; the code that declares it must not be refused for that."""
    item = a_schedule(trigger=At(from_us(simulated.clock.now + HOUR)))
    await registered(simulated.database, definitions={"s": item.hash})
    await simulated.database.write(declare.declare, [item])
    simulated.clock.advance(30 * 86_400)
    await simulated.database.write(declare.declare, [item])
    over = a_schedule("t", trigger=At(from_us(simulated.clock.now - HOUR)))
    await simulated.database.write(declare.declare, [over])
    assert (await simulated.database.read(read.get, "t")).state == "finished"
    with pytest.raises(InvalidTrigger, match="past"):
        await simulated.database.write(
            edit.add, a_schedule("u", At(from_us(simulated.clock.now - HOUR))), if_exists="error"
        )


async def test_last_status_is_that_of_the_newest_fire_or_of_the_job_that_ended_last(simulated: SimulatedWorker) -> None:
    async def last() -> str | None:
        return (await simulated.schedules.get("s")).last_status

    await added(simulated.database, a_schedule(policies={"overlap": "allow"}), a_schedule("other"))
    assert await last() is None
    await simulated.away(3_600)
    assert await last() == "queued"
    await simulated.work_off()
    assert await last() == "succeeded"
    await simulated.away(3_600)
    assert await last() == "queued", "its fire is newer than that of the ended one"
    (page,) = [info.last_status for info in await simulated.schedules.list() if info.id == "s"]
    assert page == "queued"
    await simulated.work_off()
    assert await last() == "succeeded"
