"""A schedule from its declaration to its end, through the whole engine, on every database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from onebeat.errors import ConfigurationError, InvalidTrigger, ScheduleExists, ScheduleNotFound, StaleRevision
from onebeat.scheduler.scheduler import Scheduler
from onebeat.tasks.context import JobContext
from onebeat.timing.triggers import At, Cron, Every
from tests.engine.conftest import Make


def with_task(scheduler: Scheduler, seen: list[datetime | None] | None = None) -> Any:
    """A task `note` that notes its fire time."""

    @scheduler.task(name="note")
    async def note(context: JobContext) -> None:
        if seen is not None:
            seen.append(context.fire_time)

    return note


async def until(condition: Callable[[], bool], timeout: float = 15) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.02)


async def test_an_interval_fires_each_instant_once_with_several_workers(make: Make) -> None:
    seen: list[datetime | None] = []
    for scheduler in (make(), make(), make()):

        @scheduler.every(seconds=1, id="beat", name="beat", overlap="allow", catch_up="all")
        async def beat(context: JobContext) -> None:
            seen.append(context.fire_time)

        await scheduler.start()
    await until(lambda: len(seen) >= 4)
    times = [moment for moment in seen if moment is not None]
    assert len(times) == len(set(times))
    gaps = {b - a for a, b in zip(sorted(times), sorted(times)[1:], strict=False)}
    assert gaps == {timedelta(seconds=1)}


async def test_a_one_off_added_at_run_time_fires_and_is_finished(make: Make) -> None:
    scheduler = make()
    seen: list[datetime | None] = []
    note = with_task(scheduler, seen)
    await scheduler.start()
    moment = datetime.now(UTC) + timedelta(seconds=0.5)
    added = await scheduler.schedules.add("once", note, At(moment))
    assert (added.state, added.source) == ("active", "api")
    await until(lambda: bool(seen))
    assert seen == [moment]
    assert (await scheduler.schedules.get("once")).state == "finished"
    again = await scheduler.schedules.add("once", note, At(datetime.now(UTC) + timedelta(hours=1)))
    assert again.state == "active"
    with pytest.raises(InvalidTrigger, match="past"):
        await scheduler.schedules.add("late", note, At(datetime.now(UTC) - timedelta(hours=1)))


async def test_an_id_is_taken_once_and_if_exists_says_what_else(make: Make) -> None:
    scheduler = make(role="client")
    note = with_task(scheduler)
    await scheduler.start()
    schedules = scheduler.schedules
    first = await schedules.add("a", note, Every(3600), tags=["x"])
    with pytest.raises(ScheduleExists, match="'a' exists"):
        await schedules.add("a", note, Every(60))
    assert (await schedules.add("a", note, Every(60), if_exists="keep")).trigger == Every(3600)
    same = await schedules.add("a", note, Every(3600), tags=["x"], if_exists="replace")
    assert same.rev == first.rev, "an equal replace changes nothing"
    changed = await schedules.add("a", note, Every(60), if_exists="replace")
    assert (changed.rev, changed.trigger) == (first.rev + 1, Every(60))


async def test_an_h_is_spread_by_the_schedules_id_wherever_it_is_declared(make: Make) -> None:
    scheduler = make()

    @scheduler.cron("H H * * *", id="report", name="report")
    async def report() -> None: ...

    note = with_task(scheduler)
    await scheduler.start()
    declared = (await scheduler.schedules.get("report")).trigger
    assert declared == Cron("H H * * *", "UTC", seed="report")
    added = [(await scheduler.schedules.add(id, note, Cron("H H * * *"))).next_fire for id in ("a", "b")]
    assert added[0] != added[1]
    assert declared.next_after(datetime(2026, 1, 1, tzinfo=UTC)) == datetime(2026, 1, 1, 11, 30, tzinfo=UTC)


async def test_an_edit_counts_refuses_a_stale_one_and_moves_the_next_fire(make: Make) -> None:
    scheduler = make(role="client")
    note = with_task(scheduler)
    await scheduler.start()
    schedules = scheduler.schedules
    added = await schedules.add("a", note, Every(3600), note="first")
    noted = await schedules.update("a", note="second", expected_rev=added.rev)
    assert (noted.next_fire, noted.rev, noted.note) == (added.next_fire, added.rev + 1, "second")
    moved = await schedules.update("a", trigger=Every(7200))
    assert moved.next_fire != added.next_fire or moved.next_fire is not None
    assert (moved.trigger, moved.note) == (Every(7200), "second")
    with pytest.raises(StaleRevision, match=f"rev {moved.rev}"):
        await schedules.update("a", note="third", expected_rev=added.rev)
    with pytest.raises(ScheduleNotFound):
        await schedules.update("nowhere", note="x")


async def test_pause_stops_and_resume_goes_on_with_one_gap_row(make: Make) -> None:
    scheduler = make()
    seen: list[datetime | None] = []
    note = with_task(scheduler, seen)
    await scheduler.start()
    schedules = scheduler.schedules
    await schedules.add("a", note, Every(1), overlap="allow")
    await until(lambda: bool(seen))
    paused = await schedules.pause("a", reason="maintenance")
    assert (paused.state, paused.paused_reason) == ("paused", "maintenance")
    await asyncio.sleep(2.2)  # two instants pass while it is paused
    fired = len(seen)
    assert (await schedules.resume("a")).state == "active"
    await until(lambda: len(seen) > fired)
    (gap,) = await schedules.fires("a", decision="gap")
    assert (gap.reason, gap.count) in {("paused", 1), ("paused", 2), ("paused", 3)}
    assert gap.count is not None


async def test_a_code_declared_schedule_is_edited_only_above_the_code(make: Make) -> None:
    scheduler = make()

    @scheduler.cron("0 3 * * *", timezone="Europe/Berlin", id="nightly", name="nightly")
    async def nightly() -> None: ...

    await scheduler.start()
    schedules = scheduler.schedules
    info = await schedules.get("nightly")
    assert (info.source, info.trigger) == ("code", Cron("0 3 * * *", timezone="Europe/Berlin"))
    with pytest.raises(ConfigurationError, match="override=True"):
        await schedules.update("nightly", trigger=Cron("0 4 * * *", timezone="Europe/Berlin"))
    changed = await schedules.update("nightly", trigger=Cron("0 4 * * *", timezone="Europe/Berlin"), override=True)
    assert changed.trigger == Cron("0 4 * * *", timezone="Europe/Berlin")
    coming = await schedules.upcoming("nightly", 3)
    assert [f"{moment:%H:%M} {moment.tzinfo}" for moment in coming] == ["04:00 Europe/Berlin"] * 3


async def test_the_newest_definition_of_live_workers_is_in_force_and_none_orphans(make: Make) -> None:
    old, new, observer = make(), make(), make(role="client")
    for scheduler, hour in ((old, 3), (new, 4)):

        @scheduler.cron(f"0 {hour} * * *", id="report", name="report")
        async def report() -> None: ...

    await observer.start()
    await old.start()
    assert (await observer.schedules.get("report")).trigger == Cron("0 3 * * *", timezone="UTC")
    await new.start()
    assert (await observer.schedules.get("report")).trigger == Cron("0 4 * * *", timezone="UTC")
    await old.stop()
    await old.start()
    assert (await observer.schedules.get("report")).trigger == Cron("0 4 * * *", timezone="UTC"), "old cannot win back"
    await new.stop()
    await old.stop()
    await old.start()
    assert (await observer.schedules.get("report")).trigger == Cron("0 3 * * *", timezone="UTC"), "a roll-back works"
    await old.stop()
    plain = make()
    await plain.start()
    async with asyncio.timeout(15):
        while (await observer.schedules.get("report")).state != "orphaned":
            await asyncio.sleep(0.05)
    await old.start()
    assert (await observer.schedules.get("report")).state == "active"


async def test_schedules_are_listed_by_tag_task_and_prefix_and_removed(make: Make) -> None:
    scheduler = make(role="client")
    note = with_task(scheduler)
    await scheduler.start()
    schedules = scheduler.schedules
    for name in ("mail.a", "mail.b", "other"):
        await schedules.add(name, note, Every(3600), tags=["mail"] if name.startswith("mail") else [])
    assert [item.id for item in await schedules.list(tag="mail")] == ["mail.a", "mail.b"]
    assert [item.id for item in await schedules.list(prefix="mail.")] == ["mail.a", "mail.b"]
    assert len(await schedules.list(task="note", state="active", source="api")) == 3
    page = await schedules.list(limit=2)
    assert [item.id for item in await schedules.list(limit=2, cursor=page.cursor)] == ["other"]
    await schedules.remove("other")
    with pytest.raises(ScheduleNotFound):
        await schedules.remove("other")
    assert await schedules.remove_where(tag="mail") == 2
    assert len(await schedules.list()) == 0


async def test_fire_now_works_on_a_paused_schedule_and_moves_nothing(make: Make) -> None:
    scheduler = make()
    seen: list[datetime | None] = []
    note = with_task(scheduler, seen)
    await scheduler.start()
    schedules = scheduler.schedules
    await schedules.add("a", note, Every(3600))
    before = await schedules.pause("a")
    fire = await schedules.fire_now("a")
    assert (fire.origin, fire.decision) == ("manual", "started")
    assert fire.job_id is not None
    await scheduler.jobs.wait(fire.job_id, 10)
    after = await schedules.get("a")
    assert (after.next_fire, after.fires_count, after.state) == (before.next_fire, before.fires_count, "paused")


async def test_backfill_makes_each_instant_once_unless_told_again(make: Make) -> None:
    scheduler = make()
    seen: list[datetime | None] = []
    note = with_task(scheduler, seen)
    await scheduler.start()
    schedules = scheduler.schedules
    await schedules.add("a", note, Every(3600))
    start = datetime(2026, 1, 1, tzinfo=UTC)
    made = await schedules.backfill("a", start, start + timedelta(hours=3))
    await until(lambda: len(seen) == 3)
    assert seen == [start + timedelta(hours=n) for n in range(3)], "one after the other, in order"
    assert [fire.origin for fire in made] == ["backfill"] * 3
    assert await schedules.backfill("a", start, start + timedelta(hours=3)) == []
    assert len(await schedules.backfill("a", start, start + timedelta(hours=3), limit=1, again=True)) == 1


async def test_a_function_learns_its_fire_time_in_the_zone_of_a_schedule_its_process_never_heard_of(make: Make) -> None:
    worker, client = make(), make(role="client", timezone="Asia/Tokyo")
    seen: list[datetime | None] = []
    with_task(worker, seen)
    note = with_task(client)
    await worker.start()
    await client.start()
    schedules = client.schedules
    day, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
    await schedules.add("named", note, Cron("0 3 * * *", timezone="Asia/Kolkata"))
    await schedules.add("default", note, Cron("0 3 * * *"))
    await schedules.add("plain", note, Cron("0 3 * * *", timezone="UTC"))
    for id in ("named", "default", "plain"):
        (fire,) = await schedules.backfill(id, day, end)
        assert fire.job_id is not None
        await client.jobs.wait(fire.job_id, 10)
    assert [f"{moment:%H:%M} {moment.tzinfo}" for moment in seen if moment] == [
        "03:00 Asia/Kolkata",
        "03:00 Asia/Tokyo",
        "03:00 UTC",
    ]


async def test_why_answers_in_one_sentence(make: Make) -> None:
    scheduler = make()
    seen: list[datetime | None] = []
    note = with_task(scheduler, seen)
    await scheduler.start()
    schedules = scheduler.schedules
    added = await schedules.add("a", note, Every(1), overlap="allow")
    await until(lambda: bool(seen))
    assert added.next_fire is not None
    assert "was started: on time; its job is" in str(await schedules.why("a", added.next_fire))
    assert "is no fire time" in str(await schedules.why("a", added.next_fire + timedelta(milliseconds=5)))
    assert "before schedule a was created" in str(await schedules.why("a", added.next_fire - timedelta(days=1)))
    assert "not decided yet" in str(await schedules.why("a", added.next_fire + timedelta(days=1)))


async def test_two_edits_of_two_fields_at_once_are_both_kept(make: Make) -> None:
    scheduler = make(role="client")
    task = with_task(scheduler)
    await scheduler.start()
    schedules = scheduler.schedules
    await schedules.add("a", task, Every(60), note="old")
    for number in range(5):
        await asyncio.gather(
            schedules.update("a", note=str(number)),
            schedules.update("a", trigger=Every(100 + number)),
            schedules.update("a", priority=number),
        )
        info = await schedules.get("a")
        assert (info.note, info.trigger) == (str(number), Every(100 + number))
