"""plan() gives every due instant one verdict, by the policies of the schedule."""

from __future__ import annotations

from onebeat.model.policies import CatchUp, Decision, Policies
from onebeat.model.schedule import FirePlan, Schedule, Unfinished, plan
from onebeat.timing.clock import HOUR, MINUTE, SECOND
from onebeat.timing.triggers import Every

NOW = 1_800_000_000 * SECOND


def schedule(policies: Policies | None = None, *, due: int = NOW, minutes: int = 1) -> Schedule:
    return Schedule(id="s", trigger=Every(minutes=minutes), policies=policies or Policies(), next_fire_us=due)


def verdicts(made: FirePlan) -> list[str]:
    return [str(fire.decision) for fire in made.fires]


def test_one_fire_on_time_starts_and_the_row_moves_on() -> None:
    made = plan(schedule(), NOW + SECOND)
    assert verdicts(made) == ["started"]
    assert made.fires[0].fire_us == NOW
    assert made.fires[0].run_at_us == NOW + SECOND
    assert (made.next_fire_us, made.last_fire_us, made.fires_count) == (NOW + MINUTE, NOW, 1)


def test_before_its_time_nothing_happens() -> None:
    made = plan(schedule(), NOW - 1)
    assert made.fires == ()
    assert made.next_fire_us == NOW


def test_after_an_hour_away_the_newest_missed_fire_runs() -> None:
    made = plan(schedule(), NOW + HOUR + 30 * SECOND)
    assert verdicts(made) == ["coalesced"] * 60 + ["started"]
    assert made.fires[-1].fire_us == NOW + HOUR


def test_catch_up_all_runs_each_and_overlap_decides_about_the_second() -> None:
    made = plan(schedule(Policies(catch_up="all", overlap="allow")), NOW + 3 * MINUTE + 30 * SECOND)
    assert verdicts(made) == ["started"] * 4
    made = plan(schedule(Policies(catch_up=CatchUp(max=2), overlap="skip")), NOW + 3 * MINUTE + 30 * SECOND)
    assert verdicts(made) == ["gap", "started", "skipped_overlap"]


def test_a_running_job_holds_the_next_fire() -> None:
    made = plan(schedule(), NOW, (Unfinished("j1", "running", NOW - MINUTE),))
    assert verdicts(made) == ["skipped_overlap"]
    assert "j1" in made.fires[0].reason
    made = plan(schedule(Policies(overlap="cancel_previous")), NOW, (Unfinished("j1", "running"),))
    assert made.fires[0].decision is Decision.STARTED
    assert made.fires[0].cancel == ("j1",)
    assert made.fires[0].waits_for == "schedule:s"
