"""Virtual years of mixed schedules through plan(): the fires are those that a second reading of the rules finds."""

from __future__ import annotations

from datetime import UTC, datetime
from random import Random

import pytest
import tzdata

from onebeat.model import schedule as model
from onebeat.model.policies import Decision, Overlap, Policies
from onebeat.model.schedule import Schedule, Unfinished, plan
from onebeat.timing.clock import SECOND, from_us, to_us
from onebeat.timing.triggers import At, Cron, Every
from tests.timing.random_rules import Plan, instants, plans

ALLOW = Policies(overlap="allow", catch_up="all")


def fired(item: Plan, start: datetime, end: datetime) -> list[datetime]:
    """Every started fire of the rule, each tick a moment after its time; each must have a key of its own."""
    first = item.trigger.next_fire(to_us(start))
    next_us = None if first is None else first.at
    found: list[datetime] = []
    keys: set[str] = set()
    last = None
    while next_us is not None and next_us <= to_us(end):
        row = Schedule(id="s", trigger=item.trigger, policies=ALLOW, next_fire_us=next_us, last_fire_us=last)
        made = plan(row, next_us + SECOND)
        for fire in made.fires:
            assert fire.decision is Decision.STARTED
            found.append(from_us(fire.fire_us))
            keys.add(fire.key)
        next_us, last = made.next_fire_us, made.last_fire_us
    assert len(keys) == len(found)
    return found


def compare(count: int, start: datetime, end: datetime, seed: int) -> int:
    total = 0
    for item in plans(count, seed):
        expected = list(instants(item, start, end))
        assert fired(item, start, end) == expected, f"{item.trigger!r}"
        total += len(expected)
    return total


@pytest.mark.timeout(600)  # a few seconds, on a machine that may be busy
def test_the_short_way_of_an_ordinary_fire_decides_what_the_general_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    chance, short = Random(14), 0
    for _ in range(3_000):
        at = chance.randrange(0, 7_200, 60) * SECOND
        policies = Policies(
            overlap=chance.choice(list(Overlap)),
            catch_up=chance.choice(["latest", "skip"]),
            misfire_grace=chance.choice([None, 2]),
            jitter=chance.choice([0, 30]),
            max_fires=chance.choice([None, 1, 2]),
        )
        schedule = Schedule(
            id=f"s{chance.randrange(9)}",
            trigger=chance.choice([Every(60), Every(1), At(from_us(at)), Cron("*/7 * * * *", "Europe/Berlin")]),
            policies=policies,
            next_fire_us=at,
            last_fire_us=chance.choice([None, at - 60 * SECOND, at, at + SECOND]),
            fires_count=chance.randrange(2),
            consecutive_skips=chance.randrange(4),
        )
        now = at + chance.choice([0, 1, 3 * SECOND, 5 * SECOND + 1, 90 * SECOND])
        held = chance.choice([(), (), (Unfinished("j", "running", 0),)])
        since = chance.choice([None, at, now])
        with monkeypatch.context() as patched:
            patched.setattr(model, "_one_on_time", lambda *_: None)
            expected = plan(schedule, now, held, since)
        assert plan(schedule, now, held, since) == expected
        due = model._due(schedule.trigger, model._since(schedule, at), now)[0]
        short += len(due) == 1 and model._one_on_time(schedule, due[0], now, None, held, since) is not None
    assert 500 < short < 2_500, "both ways were taken"


def test_two_years_of_thirty_schedules_fire_as_a_second_reading_says() -> None:
    assert compare(30, datetime(2011, 1, 1, tzinfo=UTC), datetime(2012, 12, 31, tzinfo=UTC), seed=3) > 10_000


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_ten_years_of_three_hundred_schedules_fire_as_a_second_reading_says() -> None:
    total = 0
    for decade in (2010, 2026):
        total += compare(150, datetime(decade, 1, 1, tzinfo=UTC), datetime(decade + 10, 1, 1, tzinfo=UTC), seed=decade)
    print(f"tzdata {tzdata.IANA_VERSION}: {total} fires of 300 schedules over ten years each")
    assert total > 1_000_000
