"""Rules around changes of clocks agree with a scan of every minute, in every zone, in every mode."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
import tzdata

from onebeat.errors import InvalidCron
from onebeat.timing.clock import SECOND, from_us, to_us
from onebeat.timing.periods import Months, Weeks
from onebeat.timing.rule import Rule
from onebeat.timing.triggers import Cron
from tests.timing.oracle import MINUTE, WEEK, OracleRule, changes, length, random_rule, scan, zones

DAYS = timedelta(days=3)
ODD = [
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "Pacific/Apia",
    "Africa/Cairo",
    "Asia/Beirut",
    "America/Santiago",
    "Antarctica/Troll",
    "America/Sao_Paulo",
    "Asia/Tehran",
    "Asia/Gaza",
]


def campaign(cases: int, seed: int) -> int:
    """Compare `cases` questions with the scan; returns how many rules could never run and were refused."""
    rng = random.Random(seed)
    every = zones()
    done = refused = 0
    while done < cases:
        zone = rng.choice(ODD if rng.random() < 0.4 else every)
        found = changes(zone, rng.randint(2000, 2037))
        if not found:
            continue
        change = rng.choice(found)
        start = change - DAYS
        minutes = 2 * DAYS // MINUTE
        for _ in range(8):
            dst = rng.choice(["vixie", "vixie", "skip_missing", "run_both"])
            rule, trigger = asked(rng, zone, dst, change)
            if trigger is None:
                refused += 1  # the scan would find nothing either
                assert not scan(rule, zone, dst, start, minutes), rule.text
                continue
            instants = scan(rule, zone, dst, start, minutes)
            for _ in range(5):
                at = change + timedelta(seconds=rng.randint(-150 * 60, 150 * 60))
                if rng.random() < 0.3:
                    at = change - timedelta(microseconds=rng.choice([0, 1, 10**6, 3600 * 10**6]))
                compare(trigger, instants, at, start, start + 2 * DAYS)
                done += 1
    return refused


def asked(rng: random.Random, zone: str, dst: str, change: datetime) -> tuple[OracleRule, Rule | None]:
    """A rule as the oracle knows it, and the trigger that should mean the same; None: refused."""
    if rng.random() < 0.15:
        return at_a_wall_time(rng, zone, dst, change)
    rule = random_rule(rng)
    try:
        return rule, Cron(rule.text, zone, dst=dst)
    except InvalidCron:
        return rule, None


def at_a_wall_time(rng: random.Random, zone: str, dst: str, change: datetime) -> tuple[OracleRule, Rule]:
    """Each week, or each month on a day near the change, at a time near those at which clocks change."""
    hour, minute = rng.choice([0, 1, 2, 3, 12, 23]), rng.randint(0, 59)
    at = f"{hour:02d}:{minute:02d}"
    if rng.random() < 0.5:
        on = rng.sample(range(7), rng.randint(1, 6))
        weeks = Weeks(on=tuple(WEEK[day] for day in on), at=at, timezone=zone, dst=dst)
        return wall_rule(hour, minute, lambda when: when.weekday() in on), weeks
    near = change.astimezone(ZoneInfo(zone)).day
    day = rng.choice([near, max(1, near - 1), 31])
    months = Months(day=day, at=at, timezone=zone, dst=dst)
    return wall_rule(hour, minute, lambda when: when.day == min(day, length(when))), months


def wall_rule(hour: int, minute: int, day: Callable[[date], bool]) -> OracleRule:
    return OracleRule("", frozenset({0}), frozenset({minute}), frozenset({hour}), day, True)


def compare(cron: Rule, instants: list[datetime], at: datetime, start: datetime, end: datetime) -> None:
    after = next((i for i in instants if i > at), None)
    before = next((i for i in reversed(instants) if i < at), None)
    told = cron.next_fire(to_us(at))
    backward = cron.previous_fire(to_us(at))
    case = f"{cron!r} at {at.isoformat()}: scan {before} {after}"
    if after is not None:
        assert (None if told is None else from_us(told.at)) == after, f"{case}, next {told}"
    else:
        assert told is None or from_us(told.at) >= end, f"{case}, next {told}"
    if before is not None and before >= start + DAYS / 2:
        assert (None if backward is None else from_us(backward.at)) == before, f"{case}, previous {backward}"
    elif before is None:
        assert backward is None or from_us(backward.at) < start + DAYS / 2, f"{case}, previous {backward}"


def test_two_hundred_questions_agree_with_the_scan() -> None:
    campaign(200, seed=20261025)


@pytest.mark.campaign
@pytest.mark.timeout(600)  # eight seconds of work, on a machine that may be busy
def test_two_thousand_questions_agree_with_the_scan() -> None:
    print(f"tzdata {tzdata.IANA_VERSION}")
    campaign(2_000, seed=20260329)


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_a_hundred_thousand_questions_agree_with_the_scan() -> None:
    seed = random.randrange(1 << 32)
    print(f"tzdata {tzdata.IANA_VERSION}, seed {seed}")
    print(f"refused as never running: {campaign(100_000, seed)}")


def test_a_fold_over_midnight_brings_back_a_day_that_had_ended() -> None:
    """Found by the campaign: Gaza, 2003-10-17 00:00 became 23:00 of the 16th, a matching day."""
    cron = Cron("36 * */15 * *", "Asia/Gaza")
    late = to_us(datetime(2003, 10, 16, 20, 57, tzinfo=UTC))  # 23:57, first pass
    assert cron.upcoming_fires(1, after=late)[0].at == to_us(datetime(2003, 10, 16, 21, 36, tzinfo=UTC))
    assert cron.previous_fire(to_us(datetime(2003, 10, 16, 21, 10, tzinfo=UTC))) == cron.next_fire(late - 3600 * SECOND)


def test_looking_back_from_the_second_pass_finds_what_ran_in_the_first() -> None:
    cron = Cron("45 2 25 10 *", "Europe/Berlin")
    asked = to_us(datetime(2026, 10, 25, 1, 10, tzinfo=UTC))  # 02:10, second pass
    back = cron.previous_fire(asked)
    assert back is not None
    assert back.at == to_us(datetime(2026, 10, 25, 0, 45, tzinfo=UTC))
