"""Every fire time is told in the schedule's zone, and in the hour that comes twice it names the right pass."""

from __future__ import annotations

from datetime import datetime, timedelta

from onebeat import Cron, Every, JobContext, Scheduler
from onebeat.testing import TestScheduler

FIRST, SECOND = "2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00"  # the clocks of Berlin go back between them
NEXT_DAY = "2026-10-26T02:30:00+01:00"
TWICE = Cron("30 2 * * *", timezone="Europe/Berlin", dst="run_both")
BEFORE = "2026-10-25T02:00:00+02:00"


def told(*moments: datetime | None) -> list[str]:
    """Each moment with its offset; all of them in the zone of Berlin itself, not at a mere offset."""
    found = [moment for moment in moments if moment is not None]
    assert [str(moment.tzinfo) for moment in found] == ["Europe/Berlin"] * len(moments)
    return [moment.isoformat() for moment in found]


async def test_each_pass_of_a_repeated_hour_is_told_in_the_zone_of_its_schedule() -> None:
    scheduler = Scheduler("sqlite://")
    ran: list[datetime | None] = []

    @scheduler.task(name="work")
    async def work(context: JobContext) -> None:
        ran.append(context.fire_time)

    async with TestScheduler(scheduler, now=BEFORE) as beat:
        schedules = scheduler.schedules
        added = await schedules.add("s", work, TWICE)
        assert (told(added.next_fire), added.last_fire) == ([FIRST], None)
        await beat.advance(to=FIRST)
        between = await schedules.get("s")
        assert told(between.last_fire, between.next_fire) == [FIRST, SECOND]
        assert told(*await schedules.upcoming("s", 2)) == [SECOND, NEXT_DAY], "the first pass is over"
        assert between.last_fire is not None
        assert between.next_fire is not None
        first, second = between.last_fire, between.next_fire
        assert "was started: on time" in str(await schedules.why("s", first))
        assert f"lies ahead; the next fire is {SECOND}" in str(await schedules.why("s", second))

        await beat.advance(to=SECOND)
        later = await schedules.get("s")
        assert told(later.last_fire, later.next_fire) == [SECOND, NEXT_DAY]
        jobs = beat.enqueued("work")
        for found in (ran, [job.fire_time for job in jobs], [fire.fire_time for fire in beat.fired("s")]):
            assert told(*found) == [FIRST, SECOND]
        for moment, job in zip((first, second), jobs, strict=True):
            why = await schedules.why("s", moment)
            assert f"was started: on time; its job is {job.id}" in str(why)
            assert told(*(fire.fire_time for fire in why.fires)) == [moment.isoformat()]
        assert told((await schedules.fire_now("s")).fire_time) == [SECOND], "by hand, at this moment"


async def test_both_ends_of_a_gap_in_a_repeated_hour_are_known_after_an_edit() -> None:
    scheduler = Scheduler("sqlite://")

    @scheduler.task(name="work")
    async def work() -> None: ...

    async with TestScheduler(scheduler, now=BEFORE) as beat:
        schedules = scheduler.schedules
        await schedules.add("s", work, TWICE)
        await schedules.pause("s")
        await beat.advance(hours=3)
        await schedules.resume("s")
        await schedules.update("s", trigger=Cron("0 12 * * *", timezone="Europe/Berlin"))
        (gap,) = beat.fired("s")
        assert told(gap.fire_time, gap.until) == [FIRST, SECOND]
        for moment in (gap.fire_time, gap.until):
            assert moment is not None
            assert "is one of 2 fires left out together" in str(await schedules.why("s", moment))
        assert "is no fire time" in str(await schedules.why("s", gap.fire_time + timedelta(minutes=15)))


async def test_a_schedule_without_a_zone_of_its_own_is_told_in_that_of_the_scheduler() -> None:
    scheduler = Scheduler("sqlite://", timezone="Europe/Berlin")

    @scheduler.every(minutes=30, id="s")
    async def work() -> None: ...

    async with TestScheduler(scheduler, now=BEFORE):
        info = await scheduler.schedules.get("s")
        assert isinstance(info.trigger, Every)
        upcoming = await scheduler.schedules.upcoming("s", 4)
        assert told(info.next_fire, *upcoming) == [
            FIRST,
            FIRST,
            "2026-10-25T02:00:00+01:00",
            SECOND,
            "2026-10-25T03:00:00+01:00",
        ]
