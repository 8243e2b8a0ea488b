"""Years of fires said a second time, wall time by wall time through `zoneinfo`'s folds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from onebeat.errors import InvalidCron
from onebeat.timing.triggers import Cron
from tests.timing.oracle import OracleRule, column, day_of_month, day_of_week

ZONES = (
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "Pacific/Apia",
    "Africa/Cairo",
)
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Plan:
    """A rule no denser than hourly, in a zone."""

    rule: OracleRule
    zone: str
    cron: Cron


def plans(count: int, seed: int) -> list[Plan]:
    """Mixed rules: daily and several times a day, hourly, by weekday, by day of the month, with wildcards."""
    rng = random.Random(seed)
    found: list[Plan] = []
    while len(found) < count:
        minute = rng.randint(0, 59)
        hour, hours = rng.choice([("*", frozenset(range(24))), column(rng, 0, 23, around=rng.choice([0, 1, 2, 3, 23]))])
        dom, of_month = day_of_month(rng) if rng.random() < 0.3 else ("*", None)
        dow, of_week = day_of_week(rng) if rng.random() < 0.3 else ("*", None)
        if len(hours) > 6 and rng.random() < 0.7:
            continue
        both = dom[0] == "*" or dow[0] == "*"

        def matches(when: date, of_month=of_month, of_week=of_week, both: bool = both) -> bool:  # type: ignore[no-untyped-def]  # bound here
            if of_month is None or of_week is None:
                return bool((of_month or of_week or (lambda _: True))(when))
            return bool(of_month(when) and of_week(when) if both else of_month(when) or of_week(when))

        text = f"{minute} {hour} {dom} * {dow}"
        zone = ZONES[len(found) % len(ZONES)]
        try:
            cron = Cron(text, zone)
        except InvalidCron:
            continue
        rule = OracleRule(text, frozenset({0}), frozenset({minute}), hours, matches, not hour.startswith("*"))
        found.append(Plan(rule, zone, cron))
    return found


def instants(plan: Plan, start: datetime, end: datetime) -> Iterator[datetime]:
    """The fires of the rule with `start` < fire ≤ `end`, in order of time."""
    tz = ZoneInfo(plan.zone)
    found: set[datetime] = set()
    day = (start - 2 * _DAY).date()
    while day <= (end + 2 * _DAY).date():
        if plan.rule.day(day):
            for hour in plan.rule.hours:
                for minute in plan.rule.minutes:
                    found.update(
                        _meant(datetime(day.year, day.month, day.day, hour, minute, tzinfo=tz), plan.rule.fixed)
                    )
        day += _DAY
    return iter(sorted(moment for moment in found if start < moment <= end))


def _meant(wall: datetime, fixed: bool) -> list[datetime]:
    first, second = wall.astimezone(UTC), wall.replace(fold=1).astimezone(UTC)
    if first == second:
        return [first]
    if first < second:  # the wall shows this time twice
        return [first] if fixed else [first, second]
    return [_after_gap(wall.tzinfo, second, first)] if fixed else []


@lru_cache(maxsize=10_000)
def _after_gap(tz: ZoneInfo, low: datetime, high: datetime) -> datetime:
    """The instant at which the clock jumped, between the two readings of a time that does not exist."""
    before = (low - timedelta(minutes=1)).astimezone(tz).utcoffset()
    moment = low
    while moment.astimezone(tz).utcoffset() == before:
        moment += timedelta(minutes=1)
        assert moment <= high
    return moment
