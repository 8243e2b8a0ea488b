"""Each policy, in a table: what was due, what was unfinished, and the verdict with its reason."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from onebeat.errors import ConfigurationError, InvalidArguments, InvalidTrigger
from onebeat.model.changes import backfill, edited, fire_now, first_fire, resumed, rezoned
from onebeat.model.policies import CatchUp, Decision, Overlap, Policies, ScheduleState
from onebeat.model.schedule import FirePlan, PlannedFire, Schedule, Unfinished, jitter_us, plan
from onebeat.timing.clock import DAY, HOUR, MINUTE, SECOND, from_us, to_us
from onebeat.timing.triggers import At, Cron, Every
from onebeat.timing.zones import fingerprint

T = 1_800_000_000 * SECOND  # a full minute
RUNNING, QUEUED = Unfinished("r", "running", T - MINUTE), Unfinished("q", "queued", T - MINUTE)
WAITING, RETRY = Unfinished("w", "waiting", T - MINUTE), Unfinished("s", "scheduled", T - MINUTE)


def of(policies: dict[str, Any] | None = None, **changes: Any) -> Schedule:
    values: dict[str, Any] = {"id": "s", "trigger": Every(minutes=1), "next_fire_us": T}
    return Schedule(**(values | {"policies": Policies(**(policies or {}))} | changes))


def verdicts(made: FirePlan) -> str:
    return " ".join(str(fire.decision) for fire in made.fires)


def only(made: FirePlan) -> PlannedFire:
    (fire,) = made.fires
    return fire


TABLE: list[tuple[str, dict[str, Any], int, tuple[Unfinished, ...], str]] = [
    # name, policies, microseconds after T, unfinished jobs, verdicts
    ("on time", {}, 0, (), "started"),
    ("five seconds late is on time", {"catch_up": "skip"}, 5 * SECOND, (), "started"),
    ("five seconds and a bit is late", {"catch_up": "skip"}, 5 * SECOND + 1, (), "misfired"),
    ("latest, one late", {}, 30 * SECOND, (), "started"),
    ("latest, the newest late one", {}, 2 * MINUTE + 30 * SECOND, (), "coalesced coalesced started"),
    ("latest, one on time", {}, 2 * MINUTE, (), "coalesced coalesced started"),
    ("skip leaves out all that is late", {"catch_up": "skip"}, 2 * MINUTE, (), "misfired misfired started"),
    ("all", {"catch_up": "all", "overlap": "allow"}, 2 * MINUTE, (), "started started started"),
    ("all, at most max", {"catch_up": CatchUp(max=1), "overlap": "allow"}, 2 * MINUTE, (), "gap started started"),
    ("all, within the window", {"catch_up": CatchUp(window=90), "overlap": "allow"}, 3 * MINUTE, (),
     "gap started started"),
    ("grace", {"misfire_grace": 30}, 31 * SECOND, (), "misfired"),
    ("grace, just within", {"misfire_grace": 30}, 30 * SECOND, (), "started"),
    ("grace below on time", {"misfire_grace": 1}, 2 * SECOND, (), "misfired"),
    ("grace comes before catch-up", {"misfire_grace": 90, "catch_up": "all", "overlap": "allow"}, 2 * MINUTE, (),
     "misfired started started"),
    ("skip, while one runs", {}, 0, (RUNNING,), "skipped_overlap"),
    ("skip, while one waits for its retry", {}, 0, (RETRY,), "skipped_overlap"),
    ("skip, two of one plan", {"catch_up": "all"}, MINUTE, (), "started skipped_overlap"),
    ("allow", {"overlap": "allow"}, 0, (RUNNING, QUEUED), "started"),
    ("queue one, nothing held", {"overlap": "queue_one"}, 0, (), "started"),
    ("queue one, one runs", {"overlap": "queue_one"}, 0, (RUNNING,), "started"),
    ("queue one, one waits", {"overlap": "queue_one"}, 0, (RUNNING, WAITING), "skipped_overlap"),
    ("queue one, three of one plan", {"overlap": "queue_one", "catch_up": "all"}, 2 * MINUTE, (),
     "started started skipped_overlap"),
    ("queue all", {"overlap": "queue_all"}, 0, (RUNNING, *[WAITING] * 99), "started"),
    ("queue all, full", {"overlap": "queue_all"}, 0, (RUNNING, *[WAITING] * 100), "skipped_overlap"),
    ("cancel previous", {"overlap": "cancel_previous"}, 0, (RUNNING, WAITING), "started"),
    ("cancel previous, three of one plan", {"overlap": "cancel_previous", "catch_up": "all"}, 2 * MINUTE, (),
     "skipped_overlap skipped_overlap started"),
    ("max fires", {"max_fires": 2, "catch_up": "all", "overlap": "allow"}, 4 * MINUTE, (), "started started"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("policies", "late", "held", "expected"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE]
)
def test_verdicts(policies: dict[str, Any], late: int, held: tuple[Unfinished, ...], expected: str) -> None:
    made = plan(of(policies), T + late, held)
    assert verdicts(made) == expected
    assert all(fire.reason for fire in made.fires)
    starts = [fire for fire in made.fires if fire.decision is Decision.STARTED]
    assert all(fire.run_at_us is not None and fire.run_at_us >= T + late for fire in starts)
    assert made.fires_count == len(starts)


def test_the_reason_names_the_job_that_held_the_fire() -> None:
    assert only(plan(of(), T, (RUNNING, QUEUED))).reason == "job r is running and has not ended"
    assert "w is already waiting" in only(plan(of({"overlap": "queue_one"}), T, (RUNNING, WAITING))).reason
    second = plan(of({"catch_up": "all"}), T + MINUTE).fires[1]
    assert second.reason == f"job of the fire at {from_us(T).isoformat()} is queued and has not ended"


def test_fires_that_were_due_at_once_do_not_count_as_skipped_in_a_row() -> None:
    """After a restart several are due; that says nothing about how long the task takes."""
    made = plan(of({"catch_up": "all"}), T + 5 * MINUTE)
    assert verdicts(made) == " ".join(["started", *["skipped_overlap"] * 5])
    assert (made.consecutive_skips, made.warning) == (0, None)


def test_a_held_job_is_born_waiting_and_says_what_for() -> None:
    for overlap in ("queue_one", "queue_all", "cancel_previous"):
        assert only(plan(of({"overlap": overlap}), T, (RUNNING,))).waits_for == "schedule:s"
        assert only(plan(of({"overlap": overlap}), T)).waits_for is None


def test_cancel_previous_names_every_unfinished_job_and_none_of_its_own_plan() -> None:
    made = plan(of({"overlap": "cancel_previous", "catch_up": "all"}), T + 2 * MINUTE, (RUNNING, WAITING))
    assert [fire.cancel for fire in made.fires] == [(), (), ("r", "w")]
    assert made.fires[0].reason == f"cancelled by the newer fire {T + MINUTE}"
    assert made.fires_count == 1


def test_three_skips_in_a_row_make_one_warning() -> None:
    skips, warnings = 0, []
    for n in range(5):
        made = plan(of(next_fire_us=T + n * MINUTE, consecutive_skips=skips), T + n * MINUTE, (RUNNING,))
        skips = made.consecutive_skips
        warnings.append(made.warning)
    assert [warning is not None for warning in warnings] == [False, False, True, False, False]
    assert "job r is running" in str(warnings[2])
    assert plan(of(consecutive_skips=2), T).consecutive_skips == 0


def test_more_than_a_thousand_missed_fires_become_one_gap_row_and_the_newest_thousand() -> None:
    made = plan(of({"catch_up": "all", "overlap": "allow"}, trigger=Every(1)), T + 10_000 * SECOND)
    first, second, *rest = made.fires
    assert (first.decision, first.fire_us, first.count) == (Decision.GAP, T, 9_001)
    assert first.until_us == T + 9_000 * SECOND
    assert second.decision is Decision.GAP
    assert second.count == 1_000 - 6 - 100
    assert len(rest) == 106
    assert made.next_fire_us == T + 10_001 * SECOND


def test_ten_years_of_seconds_are_planned_at_once() -> None:
    """A rule of each second, asleep for ten years: counted by arithmetic, not by visiting 315 million instants."""
    cron = Cron("* * * * * *", "Europe/Berlin")
    started = time.process_time()
    made = plan(of(trigger=cron), T + 3650 * DAY)
    assert time.process_time() - started < 5
    assert sum(fire.count or 0 for fire in made.fires) == 3650 * 86_400 + 1 - 1_000
    assert len(made.fires) == 1_001


def test_exactly_a_thousand_are_decided_one_by_one() -> None:
    made = plan(of(trigger=Every(1)), T + 999 * SECOND)
    assert len(made.fires) == 1_000
    assert Decision.GAP not in {fire.decision for fire in made.fires}


def test_spacing_moves_the_start_and_never_the_fire_time() -> None:
    late = 3 * MINUTE + 30 * SECOND
    made = plan(of({"catch_up": CatchUp(spacing=10), "overlap": "allow"}), T + late)
    assert [fire.fire_us - T for fire in made.fires] == [0, MINUTE, 2 * MINUTE, 3 * MINUTE]
    assert [(fire.run_at_us or 0) - T - late for fire in made.fires] == [0, 10 * SECOND, 20 * SECOND, 30 * SECOND]


def test_jitter_is_one_offset_a_schedule_and_stays_below_the_next_instant() -> None:
    offsets = {jitter_us(f"schedule-{n}", 10 * SECOND) for n in range(1_000)}
    assert len(offsets) == 1_000
    assert 0 <= min(offsets) < SECOND < 9 * SECOND < max(offsets) < 10 * SECOND
    made = [only(plan(of({"jitter": 10}, next_fire_us=T + n * MINUTE), T + n * MINUTE)) for n in range(3)]
    assert {(fire.run_at_us or 0) - fire.fire_us for fire in made} == {jitter_us("s", 10 * SECOND)}
    for n in range(50):
        fire = only(plan(of({"jitter": 3600}, id=f"s{n}"), T))
        assert T <= (fire.run_at_us or 0) < T + MINUTE


def test_after_its_last_permitted_fire_a_schedule_is_finished() -> None:
    made = plan(of({"max_fires": 5}, fires_count=4), T)
    assert (made.finished, made.next_fire_us, made.fires_count) == (True, None, 5)
    lowered = plan(of({"max_fires": 3}, fires_count=4), T)
    assert (lowered.fires, lowered.finished, lowered.next_fire_us, lowered.fires_count) == ((), True, None, 4)
    skipped = plan(of({"max_fires": 5}, fires_count=4), T, (RUNNING,))
    assert (skipped.finished, skipped.fires_count) == (False, 4)


def test_an_at_fires_once_and_is_finished() -> None:
    made = plan(of(trigger=At(datetime.fromtimestamp(T // SECOND, UTC))), T + HOUR)
    assert (verdicts(made), made.finished, made.next_fire_us, made.last_fire_us) == ("started", True, None, T)


@pytest.mark.parametrize("state", [ScheduleState.PAUSED, ScheduleState.FINISHED, ScheduleState.ORPHANED])
def test_what_is_not_active_decides_nothing(state: ScheduleState) -> None:
    made = plan(of(state=state), T + HOUR)
    assert (made.fires, made.next_fire_us) == ((), T)


def test_a_clock_that_went_back_fires_nothing_twice() -> None:
    made = plan(of(), T)
    again = plan(of(next_fire_us=made.next_fire_us, last_fire_us=made.last_fire_us), T - HOUR)
    assert again.fires == ()


@pytest.mark.parametrize("catch_up", ["skip", "latest", "all"])
def test_what_was_on_time_when_the_worker_began_with_a_backlog_stays_on_time(catch_up: str) -> None:
    schedule = of({"catch_up": catch_up})
    fire = only(plan(schedule, T + 55 * SECOND, since_us=T + 5 * SECOND))
    assert fire.decision is Decision.STARTED
    assert fire.reason == "late by 55 seconds, as very many were due at once"
    assert only(plan(schedule, T + 4 * SECOND, since_us=T)).reason == "on time"


def test_a_backlog_excuses_only_what_was_on_time_at_its_begin_and_no_more_than_a_minute() -> None:
    schedule = of({"catch_up": "skip"}, trigger=Every(hours=1, anchor=datetime.fromtimestamp(T // SECOND, UTC)))
    for now, since, decision in (
        (T + 64 * SECOND, T, Decision.STARTED),
        (T + 66 * SECOND, T, Decision.MISFIRED),
        (T + 20 * SECOND, T + 6 * SECOND, Decision.MISFIRED),
        (T + 3 * SECOND, T + 30 * SECOND, Decision.STARTED),  # the clock went back
        (T + 20 * SECOND, None, Decision.MISFIRED),
    ):
        assert only(plan(schedule, now, since_us=since)).decision is decision
    graced = of({"catch_up": "skip", "misfire_grace": 10})
    assert only(plan(graced, T + 11 * SECOND, since_us=T)).decision is Decision.MISFIRED, "the user's own bound"


def test_a_fire_keeps_its_mark_and_key_in_the_plan() -> None:
    cron = Cron("30 2 * * *", "Europe/Berlin")
    gap = to_us(datetime(2026, 3, 29, 1, 0, tzinfo=UTC))
    fire = only(plan(of(trigger=cron, next_fire_us=gap), gap))
    assert (fire.key, fire.mark) == ("2026-03-29T02:30[Europe/Berlin]", "gap")


def test_workers_of_different_zone_data_neither_lose_nor_double_a_fire() -> None:
    """The row's next fire was computed by a worker whose data says an hour later."""
    cron = Cron("30 2 * * *", "Europe/Berlin")
    yesterday, today, tomorrow = (fire.at for fire in cron.upcoming_fires(3, after=T))
    made = plan(of(trigger=cron, next_fire_us=today + HOUR, last_fire_us=yesterday), today + HOUR)
    assert [(fire.fire_us, fire.decision) for fire in made.fires] == [(today, Decision.STARTED)]
    assert (made.next_fire_us, made.last_fire_us) == (tomorrow, today)
    again = plan(of(trigger=cron, next_fire_us=today + HOUR, last_fire_us=today), today + HOUR)
    assert (again.fires, again.next_fire_us) == ((), tomorrow)
    early = plan(of(trigger=cron, next_fire_us=today - HOUR, last_fire_us=yesterday), today - HOUR)
    assert (early.fires, early.next_fire_us) == ((), today)


# ── pause, edit, first fire ───────────────────────────────────────────────────────────────────────────────────────────
def test_a_pause_leaves_one_gap_row_and_nothing_is_caught_up() -> None:
    back = resumed(of(state=ScheduleState.PAUSED), T + HOUR + SECOND)
    assert back.next_fire_us == T + HOUR + MINUTE
    (row,) = back.fires
    assert (row.decision, row.reason, row.fire_us, row.until_us, row.count) == (
        Decision.GAP, "paused", T, T + HOUR, 61,
    )  # fmt: skip
    assert resumed(of(state=ScheduleState.PAUSED), T - 1).fires == ()


def test_a_schedule_that_ended_during_its_pause_is_finished() -> None:
    back = resumed(of(state=ScheduleState.PAUSED, trigger=At(datetime.fromtimestamp(T // SECOND, UTC))), T + 1)
    assert (back.finished, back.next_fire_us) == (True, None)


def test_nothing_before_its_creation_is_due_but_a_fresh_at() -> None:
    assert first_fire(Every(60), T) == T + MINUTE
    past = At(datetime.fromtimestamp(T // SECOND, UTC))
    assert first_fire(past, T + MINUTE) == T
    with pytest.raises(InvalidTrigger, match="lies in the past"):
        first_fire(past, T + MINUTE + 1)


def test_an_edit_of_the_rule_looks_after_now_and_after_the_last_fire() -> None:
    rule, before = Every(minutes=1), {"last_fire_us": T - MINUTE, "next_fire_us": T}
    assert edited(rule, rule, T + HOUR, **before) == T
    assert edited(rule, Every(hours=1), T, **before) == T + HOUR - T % HOUR
    assert edited(None, Every(hours=1), T, **before) == T + HOUR - T % HOUR, "the old rule could not be read"
    ahead = T + 5 * MINUTE  # the clock went back after the last fire
    assert edited(rule, Every(30), T, last_fire_us=ahead, next_fire_us=None) == ahead + 30 * SECOND


# ── zone data ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_unchanged_zone_data_changes_nothing_until_the_fingerprint_is_old() -> None:
    schedule = of(trigger=Cron("30 2 * * *", "Europe/Berlin"), next_fire_us=T + DAY)
    stored = fingerprint("Europe/Berlin", T)
    assert rezoned(schedule, stored, T + 100 * DAY, since_us=T) is None
    renewed = rezoned(schedule, stored, T + 250 * DAY, since_us=T)
    assert renewed is not None
    assert renewed.next_fire_us == T + DAY
    assert renewed.fingerprint == fingerprint("Europe/Berlin", T + 250 * DAY)


def test_changed_zone_data_moves_the_next_fire_and_never_before_the_last_one() -> None:
    cron = Cron("30 2 * * *", "Europe/Berlin")
    tonight = cron.next_fire(T)
    assert tonight is not None
    foreign = "1:0123456789abcdef01234567"
    believed = of(trigger=cron, next_fire_us=tonight.at + HOUR, last_fire_us=T - HOUR)
    moved = rezoned(believed, foreign, T, since_us=T - 10 * DAY)
    assert moved is not None
    assert moved.next_fire_us == tonight.at
    fired = replace(believed, last_fire_us=tonight.at, next_fire_us=tonight.at + DAY + HOUR)
    again = rezoned(fired, foreign, tonight.at + SECOND, since_us=T)
    assert again is not None
    assert again.next_fire_us == cron.upcoming_fires(2, after=T)[1].at


def test_an_overdue_schedule_keeps_its_due_fires_under_new_zone_data() -> None:
    cron = Cron("30 2 * * *", "Europe/Berlin")
    first, second, _ = cron.upcoming_fires(3, after=T)
    overdue = of(trigger=cron, next_fire_us=first.at + HOUR, last_fire_us=None)
    moved = rezoned(overdue, "1:00", second.at + SECOND, since_us=T)
    assert moved is not None
    assert moved.next_fire_us == first.at


# ── by hand ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_fire_now_meets_overlap_unless_forced() -> None:
    assert fire_now(of(), T, (RUNNING,), unique="u").decision is Decision.SKIPPED_OVERLAP
    forced = fire_now(of(), T, (RUNNING,), unique="u", force=True)
    assert (forced.decision, forced.key, forced.origin, forced.run_at_us) == (Decision.STARTED, "manual:u", "manual", T)
    assert fire_now(of(state=ScheduleState.PAUSED), T, (), unique="u").decision is Decision.STARTED
    assert fire_now(of({"overlap": "queue_one"}), T, (RUNNING,), unique="u").waits_for == "schedule:s"


def test_backfill_takes_start_and_leaves_end() -> None:
    made = backfill(of({"overlap": "allow"}), T - 3 * MINUTE, T, T)
    assert [fire.fire_us - T for fire in made] == [-3 * MINUTE, -2 * MINUTE, -MINUTE]
    assert [fire.key for fire in made] == [f"backfill:{fire.fire_us}" for fire in made]
    assert {fire.waits_for for fire in made} == {None}
    assert {fire.origin for fire in made} == {"backfill"}


def test_backfill_runs_one_after_the_other_unless_overlap_allows() -> None:
    assert [f.waits_for for f in backfill(of(), T - 2 * MINUTE, T, T)] == [None, "schedule:s"]
    assert [f.waits_for for f in backfill(of(), T - 2 * MINUTE, T, T, (RUNNING,))] == ["schedule:s"] * 2


def test_backfill_again_makes_new_keys() -> None:
    (one,) = backfill(of(), T - MINUTE, T, T)
    (two,) = backfill(of(), T - MINUTE, T, T, again="u")
    assert two.key == f"{one.key};again:u"


@pytest.mark.parametrize(
    ("start", "end", "limit", "why"),
    [
        (T, T, None, "empty"),
        (T - MINUTE, T + 1, None, "future"),
        (T - 2_000 * MINUTE, T, None, "over 1000 fires"),
        (T - MINUTE, T, 0, "limit=0"),
    ],
)
def test_backfill_refuses_what_cannot_be_meant(start: int, end: int, limit: int | None, why: str) -> None:
    with pytest.raises(InvalidArguments, match=why):
        backfill(of(), start, end, T, limit=limit)


def test_backfill_with_a_limit_takes_the_oldest() -> None:
    assert [f.fire_us for f in backfill(of(), T - 2_000 * MINUTE, T, T, limit=1)] == [T - 2_000 * MINUTE]


# ── values ────────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    "policies",
    [
        {},
        {"misfire_grace": 60, "catch_up": "all", "overlap": "queue_all", "jitter": 1.5, "max_fires": 3},
        {"catch_up": CatchUp(max=5, window=3600, spacing=0.25)},
        {"catch_up": "skip", "overlap": Overlap.ALLOW},
    ],
)
def test_policies_survive_json(policies: dict[str, Any]) -> None:
    value = Policies(**policies)
    assert Policies.from_json(value.to_json()) == value
    assert hash(Policies.from_json(value.to_json())) == hash(value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"misfire_grace": -1},
        {"misfire_grace": 0},
        {"misfire_grace": "60"},
        {"catch_up": "some"},
        {"catch_up": None},
        {"overlap": "queue"},
        {"overlap": None},
        {"jitter": float("nan")},
        {"jitter": 10**12},
        {"max_fires": 0},
        {"max_fires": True},
        {"max_fires": 1.5},
    ],
)
def test_policies_that_cannot_work_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Policies(**wrong)


@pytest.mark.parametrize("wrong", [{"max": 0}, {"max": 1_001}, {"max": 2.5}, {"window": -1}, {"spacing": "1"}])
def test_a_catch_up_that_cannot_work_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        CatchUp(**wrong)


@pytest.mark.parametrize("stored", [None, {}, [], {"catch_up": {"max": 1}}, {"catch_up": "latest"}])
def test_foreign_stored_policies_are_refused(stored: Any) -> None:
    with pytest.raises(ConfigurationError, match="stored policies"):
        Policies.from_json(stored)
