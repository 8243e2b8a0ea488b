"""The triggers `Days`, `Weeks` and `Months`: every n days, weeks or months, at a wall time."""

from __future__ import annotations

import calendar
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, time, tzinfo
from typing import Any, Literal

from onebeat.errors import InvalidTrigger
from onebeat.timing.calendars import join_with_and, time_of_day, weekday, weekday_name
from onebeat.timing.clock import SECOND
from onebeat.timing.describe import Note, change_notes, only_skipped_times
from onebeat.timing.dst import Dst, next_occurrence, previous_occurrence
from onebeat.timing.rule import DueFire, Rule, dst_mode, fire_of
from onebeat.timing.zones import data_year, zone_name

_EPOCH = date(1970, 1, 1).toordinal()
_MONDAY = date(1970, 1, 5).toordinal() - _EPOCH  # weeks are counted from the first Monday of 1970
_MAX_PERIOD = 1_200
_END = 9_999 * 12  # months


class _AtWallTime(Rule):
    """A rule that names days, each with one time; a subclass answers `_next_day` and `_previous_day`."""

    fixed = True
    at: time
    dst: Dst

    def next_fire(self, after: int) -> DueFire | None:
        occurrence = next_occurrence(self, self.zone, self.dst, after // SECOND)
        return None if occurrence is None else fire_of(occurrence, True, self.zone.name)

    def previous_fire(self, before: int) -> DueFire | None:
        occurrence = previous_occurrence(self, self.zone, self.dst, -(-before // SECOND))
        return None if occurrence is None else fire_of(occurrence, True, self.zone.name)

    def notes(self, after: int | None = None) -> Iterable[Note]:
        return change_notes(self, self.zone, self.dst, after)

    def over(self, now: int) -> str:
        if self.next_wall(now // SECOND) is None:
            return super().over(now)
        return f"{self.summary()}: {only_skipped_times(self, self.zone)}"

    def next_wall(self, wall: int) -> int | None:
        """The first matching wall time at or after `wall`."""
        second = _second(self.at)
        day = self._next_day(-((second - wall) // 86_400))
        return None if day is None else day * 86_400 + second

    def previous_wall(self, wall: int) -> int | None:
        """The last matching wall time at or before `wall`."""
        second = _second(self.at)
        day = self._previous_day((wall - second) // 86_400)
        return None if day is None else day * 86_400 + second

    def _next_day(self, day: int) -> int | None:
        raise NotImplementedError

    def _previous_day(self, day: int) -> int | None:
        raise NotImplementedError


@dataclass(frozen=True, init=False)
class Days(_AtWallTime):
    """Every `n` days at a wall time, whatever clocks do: `Every(days=1)` counts 24 hours instead.

    Days are counted from 1 January 1970, or from the date `first`. Raises `InvalidTrigger`.

    >>> print(Days(at="09:00", timezone="Europe/Berlin").describe())
    every day at 09:00 in Europe/Berlin
    """

    n: int
    at: time
    phase: int
    dst: Dst
    timezone: str | None = None

    def __init__(
        self,
        n: int = 1,
        *,
        at: str | time = "00:00",
        timezone: str | tzinfo | None = None,
        first: date | None = None,
        dst: str = "vixie",
    ) -> None:
        if first is not None and not isinstance(first, date):
            raise InvalidTrigger(f"Days(first={first!r:.40}) is the date to count from")
        period = _period("Days", n)
        put = object.__setattr__
        put(self, "n", period)
        put(self, "at", time_of_day(at))
        put(self, "timezone", None if timezone is None else zone_name(timezone))
        put(self, "phase", 0 if first is None else (first.toordinal() - _EPOCH) % period)
        put(self, "dst", dst_mode(dst))

    def with_timezone(self, name: str | tzinfo) -> Days:
        if self.timezone is not None:
            return self
        first = date.fromordinal(_EPOCH + self.phase)
        return Days(self.n, at=self.at, timezone=name, first=first, dst=self.dst)

    def summary(self) -> str:
        year = date(data_year(), 1, 1).toordinal() - _EPOCH
        day = date.fromordinal(_EPOCH + self._next_day(year))
        since = f", counted from {day}," if self.n > 1 else ""
        return f"every {_number(self.n, 'day')}{since} at {_clock(self.at)} in {self.zone.name}"

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "days",
            "n": self.n,
            "at": self.at.isoformat(),
            "timezone": self.timezone,
            "phase": self.phase,
            "dst": str(self.dst),
        }

    def _next_day(self, day: int) -> int:
        return day + (self.phase - day) % self.n

    def _previous_day(self, day: int) -> int:
        return day - (day - self.phase) % self.n


@dataclass(frozen=True, init=False)
class Months(_AtWallTime):
    """Every `n` months on a `day` ("last", or 1 to 31) at a wall time.

    A month without that day fires on its last one. Months are counted from January: `Months(3)` is January, April,
    July, October; `first` names another month to count from, or a date in it where the year matters:
    `Months(24, first=date(2027, 4, 1))` is April of 2027, 2029 and, backward, 2025. Raises `InvalidTrigger`.

    >>> print(Months(day=31, at="09:00", timezone="Europe/Berlin").describe())
    every month on day 31 (or the month's last day) at 09:00 in Europe/Berlin
    """

    n: int
    day: int | Literal["last"]
    at: time
    first: int  # 1: January of the year 0, to n
    dst: Dst
    timezone: str | None = None

    def __init__(
        self,
        n: int = 1,
        *,
        day: int | Literal["last"] = 1,
        at: str | time = "00:00",
        timezone: str | tzinfo | None = None,
        first: int | date = 1,
        dst: str = "vixie",
    ) -> None:
        if day != "last" and (isinstance(day, bool) or not isinstance(day, int) or not 1 <= day <= 31):
            raise InvalidTrigger(f"Months(day={day!r:.40}) is a day from 1 to 31, or 'last'")
        month = first.year * 12 + first.month if isinstance(first, date) else first
        if isinstance(first, bool) or not isinstance(month, int) or not (isinstance(first, date) or 1 <= month <= 12):
            raise InvalidTrigger(f"Months(first={first!r:.40}) is the month to count from, 1 to 12, or a date in it")
        period = _period("Months", n)
        put = object.__setattr__
        put(self, "n", period)
        put(self, "day", day)
        put(self, "at", time_of_day(at))
        put(self, "timezone", None if timezone is None else zone_name(timezone))
        put(self, "first", (month - 1) % period + 1)
        put(self, "dst", dst_mode(dst))

    def with_timezone(self, name: str | tzinfo) -> Months:
        if self.timezone is not None:
            return self
        first = _month(self.first, self.n)
        return Months(self.n, day=self.day, at=self.at, timezone=name, first=first, dst=self.dst)

    def summary(self) -> str:
        on = {"last": "the last day"}.get(str(self.day), f"day {self.day}")
        short = " (or the month's last day)" if isinstance(self.day, int) and self.day > 28 else ""
        month = _month(self.first, self.n, data_year())
        year = "" if 12 % self.n == 0 else f" {month.year}"
        since = f", counted from {calendar.month_name[month.month]}{year}," if self.n > 1 else ""
        return f"every {_number(self.n, 'month')}{since} on {on}{short} at {_clock(self.at)} in {self.zone.name}"

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "months",
            "n": self.n,
            "day": self.day,
            "at": self.at.isoformat(),
            "timezone": self.timezone,
            "first": self.first,
            "dst": str(self.dst),
        }

    def _next_day(self, day: int) -> int | None:
        month = _month_of(day)
        month += -(month - self.first + 1) % self.n
        if month < _END and self._day(month) < day:
            month += self.n
        return self._day(month) if month < _END else None

    def _previous_day(self, day: int) -> int | None:
        month = _month_of(day)
        month -= (month - self.first + 1) % self.n
        if month >= 12 and self._day(month) > day:
            month -= self.n
        return self._day(month) if month >= 12 else None

    def _day(self, month: int) -> int:
        year, number = divmod(month, 12)
        last = calendar.monthrange(year, number + 1)[1]
        day = last if self.day == "last" else min(int(self.day), last)
        return date(year, number + 1, day).toordinal() - _EPOCH


@dataclass(frozen=True, init=False)
class Weeks(_AtWallTime):
    """Every `n` weeks on one or several weekdays at a wall time.

    Weeks begin on Monday and are counted from the first Monday of 1970, or from the week of the date `first`.
    Raises `InvalidTrigger`.

    >>> Weeks(2, on=("mon", "thu"), at="09:30").summary()
    'every 2 weeks on Monday and Thursday at 09:30 in UTC'
    """

    n: int
    on: tuple[int, ...]
    at: time
    phase: int
    dst: Dst
    timezone: str | None = None

    def __init__(
        self,
        n: int = 1,
        *,
        on: str | tuple[str, ...] = "mon",
        at: str | time = "00:00",
        timezone: str | tzinfo | None = None,
        first: date | None = None,
        dst: str = "vixie",
    ) -> None:
        days = (on,) if isinstance(on, str) else on
        if not isinstance(days, (tuple, list)) or not days:
            raise InvalidTrigger("Weeks(on=…) names one weekday, or a tuple of them: 'mon' to 'sun'")
        if first is not None and not isinstance(first, date):
            raise InvalidTrigger(f"Weeks(first={first!r:.40}) is a date in the week to count from")
        period = _period("Weeks", n)
        week = 0 if first is None else (first.toordinal() - _EPOCH - _MONDAY) // 7
        put = object.__setattr__
        put(self, "n", period)
        put(self, "on", tuple(sorted({weekday(day) for day in days})))
        put(self, "at", time_of_day(at))
        put(self, "timezone", None if timezone is None else zone_name(timezone))
        put(self, "phase", week % period)
        put(self, "dst", dst_mode(dst))

    def with_timezone(self, name: str | tzinfo) -> Weeks:
        if self.timezone is not None:
            return self
        return _weeks(self.n, self.on, self.at, zone_name(name), self.phase, self.dst)

    def summary(self) -> str:
        days = join_with_and([weekday_name(day) for day in self.on])
        return f"every {_number(self.n, 'week')} on {days} at {_clock(self.at)} in {self.zone.name}"

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "weeks",
            "n": self.n,
            "on": list(self.on),
            "at": self.at.isoformat(),
            "timezone": self.timezone,
            "phase": self.phase,
            "dst": str(self.dst),
        }

    def _next_day(self, day: int) -> int | None:
        week, number = divmod(day - _MONDAY, 7)
        wait = (self.phase - week) % self.n
        if wait == 0:
            for each in self.on:
                if each >= number:
                    return _MONDAY + week * 7 + each
            wait = self.n
        return _MONDAY + (week + wait) * 7 + self.on[0]

    def _previous_day(self, day: int) -> int | None:
        week, number = divmod(day - _MONDAY, 7)
        back = (week - self.phase) % self.n
        if back == 0:
            for each in reversed(self.on):
                if each <= number:
                    return _MONDAY + week * 7 + each
            back = self.n
        return _MONDAY + (week - back) * 7 + self.on[-1]


def load_months(value: dict[str, Any]) -> Rule:
    """The `Months` of a stored JSON object."""
    return Months(
        value["n"],
        day=value["day"],
        at=value["at"],
        timezone=value["timezone"],
        first=_month(value["first"], _period("Months", value["n"])),
        dst=value["dst"],
    )


def load_days(value: dict[str, Any]) -> Rule:
    """The `Days` of a stored JSON object."""
    first = date.fromordinal(_EPOCH + _period("Days", value["phase"] + 1) - 1)
    return Days(value["n"], at=value["at"], timezone=value["timezone"], first=first, dst=value["dst"])


def load_weeks(value: dict[str, Any]) -> Rule:
    """The `Weeks` of a stored JSON object."""
    on = tuple(int(day) for day in value["on"])
    name = None if value["timezone"] is None else zone_name(value["timezone"])
    n, at, dst = _period("Weeks", value["n"]), time_of_day(value["at"]), dst_mode(value["dst"])
    return _weeks(n, on, at, name, value["phase"], dst)


def _weeks(n: int, on: tuple[int, ...], at: time, timezone: str | None, phase: int, dst: Dst) -> Weeks:
    week = date.fromordinal(_EPOCH + _MONDAY + 7 * phase)
    names = tuple(weekday_name(day) for day in on)
    return Weeks(n, on=names, at=at, timezone=timezone, first=week, dst=dst)


def _month(first: int, n: int, year: int = 1) -> date:
    """The first day of the first month from `year` on that `Months(n)` with this `first` counts."""
    if isinstance(first, bool) or not isinstance(first, int) or not 1 <= first <= max(n, 12):
        raise InvalidTrigger(f"the stored month to count from is {first!r:.40}, not 1 to {max(n, 12)}")
    month = year * 12 + (first - 1 - year * 12) % n
    return date(month // 12, month % 12 + 1, 1)


def _period(kind: str, n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= _MAX_PERIOD:
        raise InvalidTrigger(f"{kind}({n!r:.40}) counts {kind.lower()}; give a whole number, 1 to {_MAX_PERIOD}")
    return n


def _month_of(day: int) -> int:
    when = date.fromordinal(min(max(day + _EPOCH, 1), date.max.toordinal()))
    return when.year * 12 + when.month - 1


def _second(at: time) -> int:
    return at.hour * 3_600 + at.minute * 60 + at.second


def _clock(at: time) -> str:
    return f"{at:%H:%M:%S}" if at.second else f"{at:%H:%M}"


def _number(n: int, what: str) -> str:
    return what if n == 1 else f"{n} {what}s"
