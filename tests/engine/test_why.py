"""`schedules.why` has one sentence for every instant there can be, and `schedules.fires` lists every record once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from onebeat.errors import ConfigurationError, InvalidArguments, ScheduleNotFound
from onebeat.model.policies import CatchUp
from onebeat.store import workers
from onebeat.store.jobs import settle
from onebeat.store.schedules import declare
from onebeat.timing.clock import HOUR, MINUTE, SECOND, from_us
from onebeat.timing.triggers import At, Cron, Every
from tests.guarantees.arrange import added
from tests.support.builders import claimed, ended, registered
from tests.support.simulated_worker import SimulatedWorker, a_schedule

AN_HOUR = timedelta(hours=1)


async def sentence(simulated: SimulatedWorker, at: datetime) -> str:
    found = str(await simulated.schedules.why("s", at))
    assert "\n" not in found
    assert at.isoformat() in found or "paused" in found or "orphaned" in found
    return found


OF_A_DAY: list[tuple[str, dict[str, Any], int, str]] = [
    # decision, policies, which hour of the day without workers, what is said of it
    ("started", {}, 24, "was started: on time; its job is "),
    ("started late", {}, 24, "was started: late by 10 minutes; stands for 24 missed fires; its job is "),
    ("misfired by grace", {"misfire_grace": 7_200}, 1, "was misfired: late by 23 hours 10 minutes; misfire_grace is 2"),
    ("misfired by catch_up", {"catch_up": "skip"}, 1, "was misfired: late by 23 hours 10 minutes; catch_up is skip"),
    ("coalesced", {}, 2, "was coalesced: late by 22 hours 10 minutes; the newest missed fire, "),
    ("skipped", {"catch_up": "all"}, 2, "was skipped_overlap: job of the fire "),
    ("queue one", {"catch_up": "all", "overlap": "queue_one"}, 3, "was skipped_overlap: job of the fire "),
    (
        "waits",
        {"catch_up": "all", "overlap": "queue_all"},
        2,
        "was started: late by 22 hours 10 minutes; waits, for job",
    ),
    ("superseded", {"catch_up": "all", "overlap": "cancel_previous"}, 2, "was skipped_overlap: cancelled by the newer"),
    ("a gap of catch_up", {"catch_up": CatchUp(max=2)}, 5, "is one of 22 fires left out together: catch_up runs at"),
]


@pytest.mark.parametrize(("policies", "hour", "said"), [row[1:] for row in OF_A_DAY], ids=[row[0] for row in OF_A_DAY])
async def test_each_decision_of_a_day_without_workers(
    simulated: SimulatedWorker, policies: dict[str, Any], hour: int, said: str
) -> None:
    await added(simulated.database, a_schedule(policies=policies))
    begin = simulated.clock.now
    on_time = said.startswith("was started: on time")
    await simulated.away(24 * 3600 if on_time else 24 * 3600 + 600)
    assert said in await sentence(simulated, from_us(begin + hour * HOUR))


async def test_what_was_never_due_says_so(simulated: SimulatedWorker) -> None:
    await added(simulated.database, a_schedule())
    begin = from_us(simulated.clock.now)
    assert "before schedule s was created" in await sentence(simulated, begin)
    assert "before schedule s was created" in await sentence(simulated, begin - 5 * AN_HOUR)
    between = await sentence(simulated, begin + timedelta(minutes=30))
    assert f"is no fire time of schedule s, which fires next at {(begin + AN_HOUR).isoformat()}" in between
    with pytest.raises(ScheduleNotFound):
        await simulated.schedules.why("t", begin)
    with pytest.raises(InvalidArguments, match="no time zone"):
        await simulated.schedules.why("s", datetime(2026, 1, 1))


async def test_what_lies_ahead_and_what_is_due_but_not_decided(simulated: SimulatedWorker) -> None:
    await added(simulated.database, a_schedule())
    begin = from_us(simulated.clock.now)
    simulated.clock.advance(5400)
    assert "is due and not decided yet" in await sentence(simulated, begin + AN_HOUR)
    ahead = await sentence(simulated, begin + 9 * AN_HOUR)
    assert f"not decided yet, it lies ahead; the next fire is {(begin + AN_HOUR).isoformat()}" in ahead


async def test_during_a_pause_and_after_it(simulated: SimulatedWorker) -> None:
    await added(simulated.database, a_schedule())
    begin = from_us(simulated.clock.now)
    await simulated.schedules.pause("s", "maintenance")
    simulated.clock.advance(5 * 3600)
    assert "paused (maintenance); " in await sentence(simulated, begin + AN_HOUR)
    assert "came due meanwhile and is left out at the resume" in await sentence(simulated, begin + AN_HOUR)
    assert "fires only if it is resumed before" in await sentence(simulated, begin + 9 * AN_HOUR)
    await simulated.schedules.resume("s")
    assert "is one of 5 fires left out together: paused" in await sentence(simulated, begin + 3 * AN_HOUR)
    half = await sentence(simulated, begin + timedelta(minutes=150))
    assert "is no fire time of schedule s; 5 fires around it were left out: paused" in half


async def test_while_no_worker_has_the_code(simulated: SimulatedWorker) -> None:
    item = a_schedule()
    await registered(simulated.database, definitions={"s": item.hash}, lease=60 * SECOND)
    await simulated.database.write(declare.declare, [item])
    begin = from_us(simulated.clock.now)
    simulated.clock.advance(7200)
    await simulated.database.write(workers.mark_dead)
    await simulated.database.write(declare.arbitrate, ["s"])
    assert "is orphaned: no live worker runs the code" in await sentence(simulated, begin + AN_HOUR)
    assert "is decided when one does" in await sentence(simulated, begin + AN_HOUR)
    assert "fires only if one does by then" in await sentence(simulated, begin + 5 * AN_HOUR)


async def test_after_the_last_permitted_fire_and_after_an_at(simulated: SimulatedWorker) -> None:
    await added(simulated.database, a_schedule(policies={"max_fires": 1}))
    begin = from_us(simulated.clock.now)
    await simulated.away(3600)
    assert "is not due: the schedule is finished, after 1 fire" in await sentence(simulated, begin + 2 * AN_HOUR)
    await added(simulated.database, a_schedule("once", At(begin + 3 * AN_HOUR)))
    await simulated.away(2 * 3600)
    assert "was started: on time" in str(await simulated.schedules.why("once", begin + 3 * AN_HOUR))
    assert "never fires after it" in str(await simulated.schedules.why("once", begin + 4 * AN_HOUR))


async def test_a_month_of_seconds_is_told_as_a_gap(simulated: SimulatedWorker) -> None:
    await added(simulated.database, a_schedule(trigger=Every(1)))
    begin = simulated.clock.now
    await simulated.away(30 * 86_400)
    found = await sentence(simulated, from_us(begin + HOUR))
    assert f"is one of {30 * 86_400 - 1_000} fires left out together: more than 1000 fires were missed" in found


async def test_a_job_that_ran_too_long_is_named(simulated: SimulatedWorker) -> None:
    await added(simulated.database, a_schedule())
    await simulated.away(3600)
    worker = await registered(simulated.database)
    (job,) = await claimed(simulated.database, worker)
    await simulated.away(3600)
    said = await sentence(simulated, from_us(simulated.clock.now))
    assert f"was skipped_overlap: job {job.id} is running and has not ended" in said
    await simulated.database.write(settle.settle, [ended(job)], worker_id=worker)


async def test_what_was_made_up_later_is_told_beside_what_became_of_it_first(simulated: SimulatedWorker) -> None:
    await added(simulated.database, a_schedule(policies={"catch_up": "skip"}))
    first = from_us(simulated.clock.now + HOUR)
    await simulated.away(4 * 3600 + 600)
    (made,) = await simulated.schedules.backfill("s", first, first + AN_HOUR)
    found = await simulated.schedules.why("s", first)
    assert "was misfired: late by 3 hours 10 minutes; catch_up is skip; started by a backfill: asked for" in str(found)
    assert str(found).endswith(f"its job is {made.job_id}")
    assert [fire.origin for fire in found.fires] == ["schedule", "backfill"]
    for _ in range(3):
        await simulated.schedules.backfill("s", first, first + AN_HOUR, again=True)
    again = await simulated.schedules.why("s", first)
    assert "catch_up is skip; 3 more; started by a backfill: asked for; its job is" in str(again)
    assert len(again.fires) == 5
    by_hand = await simulated.schedules.fire_now("s", force=True)
    assert "was started by hand: asked for, by force" in await sentence(simulated, by_hand.fire_time)


async def test_both_passes_of_a_repeated_hour_have_their_answer(simulated: SimulatedWorker) -> None:
    simulated.clock.now = 1_792_843_200 * SECOND  # 2026-10-24 12:00 UTC
    await added(
        simulated.database, a_schedule(trigger=Cron("30 2 * * *", "Europe/Berlin"), policies={"catch_up": "all"})
    )
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    await simulated.away(12.5 * 3600)
    assert "was started: on time" in await sentence(simulated, first)
    assert "is no fire time of schedule s" in await sentence(simulated, first + AN_HOUR)


# ── every record once ─────────────────────────────────────────────────────────────────────────────────────────────────
async def test_pages_of_fires_hold_every_record_once_newest_first(simulated: SimulatedWorker) -> None:
    await added(simulated.database, a_schedule(policies={"catch_up": "skip"}))
    begin = from_us(simulated.clock.now)
    await simulated.away(24 * 3600)
    await simulated.schedules.backfill("s", begin, begin + 24 * AN_HOUR)
    await simulated.schedules.backfill("s", begin, begin + 3 * AN_HOUR, again=True)  # three of one instant
    pages, cursor = [], None
    while True:
        page = await simulated.schedules.fires("s", limit=7, cursor=cursor)
        pages.append([(fire.fire_time, fire.key) for fire in page])
        if (cursor := page.cursor) is None:
            break
    assert [len(page) for page in pages] == [7, 7, 7, 7, 7, 7, 7, 2]
    found = [fire for page in pages for fire in page]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 24 + 24 + 3


async def test_fires_are_filtered_by_decision_and_time(simulated: SimulatedWorker) -> None:
    await added(simulated.database, a_schedule())
    begin = from_us(simulated.clock.now)
    await simulated.away(24 * 3600 + 10 * MINUTE // SECOND)
    assert len(await simulated.schedules.fires("s", decision="coalesced")) == 23
    part = await simulated.schedules.fires("s", start=begin + 2 * AN_HOUR, end=begin + 5 * AN_HOUR)
    assert [fire.fire_time for fire in part] == [begin + n * AN_HOUR for n in (4, 3, 2)]
    assert len(await simulated.schedules.fires("s", decision="gap")) == 0


async def test_what_no_page_can_hold_is_refused(simulated: SimulatedWorker) -> None:
    await added(simulated.database, a_schedule())
    assert len(await simulated.schedules.fires("s")) == 0
    with pytest.raises(ScheduleNotFound):
        await simulated.schedules.fires("t")
    with pytest.raises(ConfigurationError, match="'started', 'skipped_overlap'"):
        await simulated.schedules.fires("s", decision="skipped")
    for cursor in ("", "junk", "5", "x/y", "9" * 30 + "/k"):
        with pytest.raises(ConfigurationError, match="cursor"):
            await simulated.schedules.fires("s", cursor=cursor)
    with pytest.raises(ConfigurationError, match="'active', 'paused'"):
        await simulated.schedules.list(state="running")


# ── what comes next ───────────────────────────────────────────────────────────────────────────────────────────────────
async def test_upcoming_begins_at_the_next_fire_and_ends_with_the_last_permitted_one(
    simulated: SimulatedWorker,
) -> None:
    await added(simulated.database, a_schedule(policies={"max_fires": 3}))
    begin = from_us(simulated.clock.now)
    assert await simulated.schedules.upcoming("s", 9) == [begin + n * AN_HOUR for n in (1, 2, 3)]
    await simulated.away(3600)
    assert await simulated.schedules.upcoming("s", 9) == [begin + n * AN_HOUR for n in (2, 3)]
    assert await simulated.schedules.upcoming("s", 1) == [begin + 2 * AN_HOUR]
    simulated.clock.advance(3600)  # due, not decided
    assert await simulated.schedules.upcoming("s", 1) == [begin + 2 * AN_HOUR]


async def test_upcoming_of_a_paused_schedule_shows_nothing_that_the_pause_leaves_out(
    simulated: SimulatedWorker,
) -> None:
    await added(simulated.database, a_schedule())
    begin = from_us(simulated.clock.now)
    await simulated.schedules.pause("s")
    simulated.clock.advance(5 * 3600)
    assert await simulated.schedules.upcoming("s", 2) == [begin + n * AN_HOUR for n in (6, 7)]
