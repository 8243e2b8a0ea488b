"""Random time rules, and their fires computed independently: wall time by wall time, with the folds of `zoneinfo`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from onebeat.errors import InvalidCron
from onebeat.timing.any_of import AnyOf
from onebeat.timing.calendars import Weekdays
from onebeat.timing.periods import Days, Months, Weeks
from onebeat.timing.rule import Rule
from onebeat.timing.triggers import Cron, Every
from tests.timing.oracle import WEEK, OracleRule, column, day_of_month, day_of_week, length

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
    """A trigger no denser than hourly, in a zone, and what it means: a rule on the wall, or an anchor and interval."""

    trigger: Rule
    zone: str
    rule: OracleRule | None = None
    dst: str = "vixie"
    anchored: tuple[datetime, timedelta] | None = None
    others: tuple[Plan, ...] = ()  # a union: what else it fires at
    no_weekends: bool = False


def plans(count: int, seed: int) -> list[Plan]:
    """Mixed: cron rules (daily, several times a day, hourly, by day, with wildcards), months, weeks and intervals."""
    rng = random.Random(seed)
    found: list[Plan] = []
    while len(found) < count:
        zone = ZONES[len(found) % len(ZONES)]
        make = rng.choice([*[a_cron] * 7, some_months, some_weeks, some_days, an_interval])
        plan = make(rng, zone)
        if plan is not None and rng.random() < 0.1:
            other = rng.choice([some_months, some_weeks, some_days])(rng, rng.choice(ZONES))
            plan = replace(plan, trigger=AnyOf(plan.trigger, other.trigger), others=(other,))
        if plan is not None and rng.random() < 0.2:
            without = plan.trigger.excluding(Weekdays("sat", "sun"), zone)
            plan = replace(plan, trigger=without, no_weekends=True)
        if plan is not None:
            found.append(plan)
    return found


def a_cron(rng: random.Random, zone: str) -> Plan | None:
    minute = rng.randint(0, 59)
    hour, hours = rng.choice([("*", frozenset(range(24))), column(rng, 0, 23, around=rng.choice([0, 1, 2, 3, 23]))])
    dom, of_month = day_of_month(rng) if rng.random() < 0.3 else ("*", None)
    dow, of_week = day_of_week(rng) if rng.random() < 0.3 else ("*", None)
    if len(hours) > 6 and rng.random() < 0.7:
        return None
    both = dom[0] == "*" or dow[0] == "*"

    def matches(when: date) -> bool:
        if of_month is None or of_week is None:
            return bool((of_month or of_week or (lambda _: True))(when))
        return of_month(when) and of_week(when) if both else of_month(when) or of_week(when)

    text = f"{minute} {hour} {dom} * {dow}"
    dst = some_dst(rng)
    try:
        trigger = Cron(text, zone, dst=dst)
    except InvalidCron:
        return None
    return Plan(trigger, zone, at(text, minute, hours, matches, not hour.startswith("*")), dst)


def some_months(rng: random.Random, zone: str) -> Plan:
    n, first, day = rng.choice([1, 2, 3, 4, 6, 12]), rng.randint(1, 12), rng.choice([1, 15, 29, 30, 31])
    hour, minute, dst = rng.choice([0, 1, 2, 3, 23]), rng.randint(0, 59), some_dst(rng)
    trigger = Months(n, day=day, at=f"{hour:02d}:{minute:02d}", timezone=zone, first=first, dst=dst)

    def matches(when: date) -> bool:
        return (when.month - first) % n == 0 and when.day == min(day, length(when))

    return Plan(trigger, zone, at("months", minute, frozenset({hour}), matches, True), dst)


def some_weeks(rng: random.Random, zone: str) -> Plan:
    n, on = rng.randint(1, 5), rng.sample(range(7), rng.randint(1, 3))
    first = date(rng.randint(2000, 2030), rng.randint(1, 12), rng.randint(1, 28))
    hour, minute, dst = rng.choice([0, 1, 2, 3, 23]), rng.randint(0, 59), some_dst(rng)
    names = tuple(WEEK[day] for day in on)
    trigger = Weeks(n, on=names, at=f"{hour:02d}:{minute:02d}", timezone=zone, first=first, dst=dst)
    monday = first - first.weekday() * _DAY

    def matches(when: date) -> bool:
        return when.weekday() in on and (when - monday).days // 7 % n == 0

    return Plan(trigger, zone, at("weeks", minute, frozenset({hour}), matches, True), dst)


def some_days(rng: random.Random, zone: str) -> Plan:
    n, first = rng.randint(1, 9), date(rng.randint(1960, 2030), rng.randint(1, 12), rng.randint(1, 28))
    hour, minute, dst = rng.choice([0, 1, 2, 3, 23]), rng.randint(0, 59), some_dst(rng)
    trigger = Days(n, at=f"{hour:02d}:{minute:02d}", timezone=zone, first=first, dst=dst)

    def matches(when: date) -> bool:
        return (when - first).days % n == 0

    return Plan(trigger, zone, at("days", minute, frozenset({hour}), matches, True), dst)


def an_interval(rng: random.Random, zone: str) -> Plan:
    every = timedelta(minutes=rng.choice([60, 90, 360, 1440, rng.randint(60, 5_000)]))
    anchor = datetime(rng.randint(1990, 2040), rng.randint(1, 12), 3, rng.randint(0, 23), 7, tzinfo=UTC)
    return Plan(Every(every, anchor), zone, anchored=(anchor, every))


def some_dst(rng: random.Random) -> str:
    return rng.choice(["vixie", "vixie", "skip_missing", "run_both"])


def at(text: str, minute: int, hours: frozenset[int], day: Callable[[date], bool], fixed: bool) -> OracleRule:
    return OracleRule(text, frozenset({0}), frozenset({minute}), hours, day, fixed)


def instants(plan: Plan, start: datetime, end: datetime) -> Iterator[datetime]:
    """The fires of the trigger with `start` < fire ≤ `end`, in order of time."""
    tz = ZoneInfo(plan.zone)
    found = set(_by_wall(plan, tz, start, end) if plan.anchored is None else _by_interval(*plan.anchored, start, end))
    for other in plan.others:
        found |= set(_by_wall(other, ZoneInfo(other.zone), start, end))
    if plan.no_weekends:
        found = {moment for moment in found if moment.astimezone(tz).weekday() < 5}
    return iter(sorted(moment for moment in found if start < moment <= end))


def _by_interval(anchor: datetime, every: timedelta, start: datetime, end: datetime) -> Iterator[datetime]:
    moment = anchor
    while moment > start:
        moment -= every
    while moment <= end:
        yield moment
        moment += every


def _by_wall(plan: Plan, tz: ZoneInfo, start: datetime, end: datetime) -> Iterator[datetime]:
    assert plan.rule is not None
    day = (start - 2 * _DAY).date()
    while day <= (end + 2 * _DAY).date():
        if plan.rule.day(day):
            for hour in plan.rule.hours:
                for minute in plan.rule.minutes:
                    wall = datetime(day.year, day.month, day.day, hour, minute, tzinfo=tz)
                    yield from _meant(wall, plan.rule.fixed, plan.dst)
        day += _DAY


def _meant(wall: datetime, fixed: bool, dst: str) -> list[datetime]:
    first, second = wall.astimezone(UTC), wall.replace(fold=1).astimezone(UTC)
    if first == second:
        return [first]
    if first < second:  # the wall shows this time twice
        return [first] if fixed and dst != "run_both" else [first, second]
    return [_after_gap(wall.tzinfo, second, first)] if fixed and dst != "skip_missing" else []


@lru_cache(maxsize=10_000)
def _after_gap(tz: ZoneInfo, low: datetime, high: datetime) -> datetime:
    """The instant at which the clock jumped, between the two readings of a time that does not exist."""
    before = (low - timedelta(minutes=1)).astimezone(tz).utcoffset()
    moment = low
    while moment.astimezone(tz).utcoffset() == before:
        moment += timedelta(minutes=1)
        assert moment <= high
    return moment
