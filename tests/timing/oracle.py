"""The brute-force oracle: random rules with a meaning of their own, and a scan of every minute around a change."""

from __future__ import annotations

import calendar
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
DAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
WEEK = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def zones() -> list[str]:
    """Every zone there is, but for the machine's own."""
    return sorted(z for z in available_timezones() if z not in {"localtime", "posixrules", "Factory"})


@lru_cache(maxsize=4_096)
def changes(zone: str, year: int) -> tuple[datetime, ...]:
    """The instants (UTC, to the minute) at which the zone's offset changes in a year, found hour by hour."""
    tz = ZoneInfo(zone)
    found = []
    moment = datetime(year, 1, 1, tzinfo=UTC)
    offset = moment.astimezone(tz).utcoffset()
    while moment.year == year:
        following = moment + HOUR
        there = following.astimezone(tz).utcoffset()
        if there != offset:
            exact = moment
            while exact.astimezone(tz).utcoffset() == offset:
                exact += MINUTE
            found.append(exact)
        moment, offset = following, there
    return tuple(found)


@dataclass(frozen=True)
class OracleRule:
    """A rule as text, and what it means, said a second time without the code under test."""

    text: str
    seconds: frozenset[int]
    minutes: frozenset[int]
    hours: frozenset[int]
    day: Callable[[date], bool]
    fixed: bool

    def minute(self, wall: datetime) -> bool:
        return wall.minute in self.minutes and wall.hour in self.hours and self.day(wall.date())


@lru_cache(maxsize=64)
def timeline(zone: str, start: datetime, minutes: int) -> list[tuple[datetime, datetime, datetime | None]]:
    """(instant, naive wall time, first skipped wall time or None) minute by minute."""
    tz = ZoneInfo(zone)
    rows: list[tuple[datetime, datetime, datetime | None]] = []
    expected = None
    for n in range(minutes):
        instant = start + n * MINUTE
        wall = instant.astimezone(tz).replace(tzinfo=None)
        rows.append((instant, wall, expected if expected is not None and wall > expected else None))
        expected = wall + MINUTE
    return rows


def scan(rule: OracleRule, zone: str, dst: str, start: datetime, minutes: int) -> list[datetime]:
    """Every instant of the rule in a stretch of time, by looking at every minute."""
    found: list[datetime] = []
    seen: set[datetime] = set()
    for instant, wall, skipped in timeline(zone, start, minutes):
        made_up = False
        if rule.fixed and skipped is not None:
            missing = skipped
            while missing < wall:
                if missing not in seen and rule.minute(missing):
                    made_up = True
                seen.add(missing)
                missing += MINUTE
        if made_up and dst != "skip_missing":
            found.append(instant)
        repeated = wall in seen
        seen.add(wall)
        if rule.minute(wall) and not (rule.fixed and repeated and dst != "run_both"):
            for second in sorted(rule.seconds):
                moment = instant + timedelta(seconds=second)
                if not found or found[-1] != moment:
                    found.append(moment)
    return found


def random_rule(rng: random.Random) -> OracleRule:
    """A rule of the whole dialect but H, biased to the hours in which clocks change."""
    seconds = ("", frozenset({0}))
    if rng.random() < 0.15:
        seconds = column(rng, 0, 59)
    minute, minutes = column(rng, 0, 59)
    hour, hours = column(rng, 0, 23, around=rng.choice([0, 1, 2, 3, 23]))
    month, months = ("*", frozenset(range(1, 13))) if rng.random() < 0.8 else column(rng, 1, 12, names=MONTHS)
    dom, of_month = day_of_month(rng) if rng.random() < 0.3 else (rng.choice("**?"), None)
    dow, of_week = day_of_week(rng) if rng.random() < 0.3 else (rng.choice("**?"), None)
    both = dom[0] in "*?" or dow[0] in "*?"

    def day(when: date) -> bool:
        if when.month not in months:
            return False
        if of_month is None:
            return of_week is None or of_week(when)
        if of_week is None:
            return of_month(when)
        return of_month(when) and of_week(when) if both else of_month(when) or of_week(when)

    text = " ".join(part for part in (seconds[0], minute, hour, dom, month, dow) if part)
    fixed = not (minute.startswith("*") or hour.startswith("*"))
    return OracleRule(text, seconds[1], minutes, hours, day, fixed)


def column(
    rng: random.Random, low: int, high: int, *, around: int | None = None, names: list[str] | None = None
) -> tuple[str, frozenset[int]]:
    """A list, range, step or star of one column."""

    def show(value: int) -> str:
        name = names[value - low] if names and rng.random() < 0.5 else str(value)
        return rng.choice([name, name.lower()])

    def one() -> tuple[str, set[int]]:
        kind = rng.random()
        value = around if around is not None and rng.random() < 0.6 else rng.randint(low, high)
        if kind < 0.25:
            return "*", set(range(low, high + 1))
        if kind < 0.45:
            step = rng.randint(1, high - low)
            return f"*/{step}", set(range(low, high + 1, step))
        if kind < 0.6:
            other = rng.randint(value, high)
            return f"{show(value)}-{show(other)}", set(range(value, other + 1))
        if kind < 0.7 and high > value:
            other = rng.randint(value + 1, high)
            step = rng.randint(1, other - value)
            return f"{show(value)}-{show(other)}/{step}", set(range(value, other + 1, step))
        if kind < 0.75 and high not in (31, 59):
            other = rng.randint(low, high)
            size = high - low + 1
            values = [(n - low) % size + low for n in range(value, value + 1 + (other - value) % size)]
            return f"{show(value)}-{show(other)}", set(values)
        return show(value), {value}

    items = [one() for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    return ",".join(text for text, _ in items), frozenset().union(*(values for _, values in items))


def day_of_month(rng: random.Random) -> tuple[str, Callable[[date], bool] | None]:
    kind = rng.random()
    if kind < 0.05:
        return "1-31", lambda _: True
    if kind < 0.5:
        text, values = column(rng, 1, 31)
        return text, (None if text == "*" else lambda when: when.day in values)
    if kind < 0.6:
        return "L", lambda when: when.day == length(when)
    if kind < 0.7:
        back = rng.randint(1, 30)
        return f"L-{back}", lambda when: when.day == length(when) - back
    if kind < 0.75:
        back = rng.randint(1, 30)
        return f"L-{back}W", lambda when: back < length(when) and when == nearest(when, length(when) - back)
    if kind < 0.8:
        return "LW", lambda when: when == nearest(when, length(when))
    target = rng.randint(1, 31)
    return f"{target}W", lambda when: target <= length(when) and when == nearest(when, target)


def day_of_week(rng: random.Random) -> tuple[str, Callable[[date], bool] | None]:
    weekday = rng.randint(0, 6)
    shown = rng.choice([str(weekday), DAYS[weekday], "7" if weekday == 0 else str(weekday)])
    kind = rng.random()
    if kind < 0.05:
        return rng.choice(["1-7", "0-6", "SUN-SAT"]), lambda _: True
    if kind < 0.5:
        text, values = column(rng, 0, 6, names=DAYS)
        return text, (None if text == "*" else lambda when: sunday_first(when) in values)
    if kind < 0.7:
        return f"{shown}L", lambda when: sunday_first(when) == weekday and when.day + 7 > length(when)
    nth = rng.randint(1, 5)
    return f"{shown}#{nth}", lambda when: sunday_first(when) == weekday and (when.day - 1) // 7 + 1 == nth


def sunday_first(when: date) -> int:
    return when.isoweekday() % 7


def length(when: date) -> int:
    return calendar.monthrange(when.year, when.month)[1]


def nearest(when: date, target: int) -> date:
    """The working day of the month nearest to a day of it."""
    working = [d for d in range(1, length(when) + 1) if when.replace(day=d).weekday() < 5]
    return when.replace(day=min(working, key=lambda d: (abs(d - target), d > target)))
