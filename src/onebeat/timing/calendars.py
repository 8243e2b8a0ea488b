"""Calendars of excluded days and times of day, for `excluding()` of any trigger."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any, Protocol, runtime_checkable

from onebeat.errors import InvalidTrigger

_DAY = timedelta(days=1)
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MAX_DATES = 10_000  # dates in one calendar: 27 years of every day


WallPeriod = tuple[datetime, datetime]


@runtime_checkable
class Calendar(Protocol):
    """Excluded periods on the wall clock of the trigger's zone.

    Any object with these methods works within one process. A calendar that is stored with a schedule must consist of
    the classes of this module.
    """

    def excluded_period(self, wall: datetime) -> WallPeriod | None:
        """Return start and end (naive wall times, end exclusive) of the exclusion at `wall`; None if there is none."""

    def summary(self) -> str:
        """Return the excluded days or times as a phrase in English."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `load_calendar` makes an equal calendar."""


class _Combinable:
    """The operator `a | b`: a calendar that excludes what either excludes."""

    def __or__(self, other: Calendar) -> Combined:
        mine = self.parts if isinstance(self, Combined) else (self,)
        theirs = other.parts if isinstance(other, Combined) else (other,)
        return Combined((*mine, *theirs))


@dataclass(frozen=True, init=False)
class Weekdays(_Combinable):
    """Leaves out whole weekdays: `Weekdays("sat", "sun")`.

    >>> Weekdays("sat", "sun").summary()
    'Saturdays and Sundays'
    """

    days: frozenset[int]  # 0: Monday

    def __init__(self, *days: str) -> None:
        found = frozenset(weekday(day) for day in days)
        if not found or len(found) == 7:
            raise InvalidTrigger("Weekdays(…) names one to six weekdays to leave out")
        object.__setattr__(self, "days", found)

    def excluded_period(self, wall: datetime) -> WallPeriod | None:
        midnight = datetime.combine(wall.date(), time())
        return (midnight, midnight + _DAY) if wall.weekday() in self.days else None

    def summary(self) -> str:
        return join_with_and([f"{weekday_name(day)}s" for day in sorted(self.days)])

    def to_json(self) -> dict[str, Any]:
        return {"kind": "weekdays", "days": [_WEEKDAYS[day] for day in sorted(self.days)]}


@dataclass(frozen=True, init=False)
class Dates(_Combinable):
    """Leaves out single dates and ranges of dates, both ends included.

    `Dates(date(2026, 12, 24), (date(2026, 12, 27), date(2026, 12, 31)))`; `Dates.of(holidays.DE(), years=…)` takes the
    dates of a `holidays` object, or of anything that answers `date in it`, for the years named.
    """

    ranges: tuple[tuple[date, date], ...]

    def __init__(self, *dates: date | tuple[date, date]) -> None:
        found = sorted(_date_range(each) for each in dates)
        if not 0 < len(found) <= _MAX_DATES:
            raise InvalidTrigger(f"Dates(…) takes 1 to {_MAX_DATES} dates or ranges, not {len(found)}")
        merged = [found[0]]
        for start, end in found[1:]:
            if start <= merged[-1][1] + _DAY:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        object.__setattr__(self, "ranges", tuple(merged))

    @classmethod
    def of(cls, days: _Days, *, years: Iterable[int]) -> Dates:
        """The dates of `years` that are in `days`, copied now: the stored rule does not change with a package."""
        found = [day for year in years for day in _year(year) if day in days]
        if not found:
            raise InvalidTrigger("Dates.of(…): none of these years' days is in the calendar")
        return cls(*found)

    def excluded_period(self, wall: datetime) -> WallPeriod | None:
        day = wall.date()
        low, high = 0, len(self.ranges)
        while low < high:
            middle = (low + high) // 2
            if self.ranges[middle][1] < day:
                low = middle + 1
            else:
                high = middle
        if low == len(self.ranges) or self.ranges[low][0] > day:
            return None
        start, end = self.ranges[low]
        return datetime.combine(start, time()), datetime.combine(end, time()) + _DAY

    def summary(self) -> str:
        shown = [f"{a}" if a == b else f"{a} to {b}" for a, b in self.ranges[:3]]
        more = len(self.ranges) - 3
        return join_with_and(shown) if more <= 0 else f"{', '.join(shown)} and {more} more up to {self.ranges[-1][1]}"

    def to_json(self) -> dict[str, Any]:
        return {"kind": "dates", "ranges": [[a.isoformat(), b.isoformat()] for a, b in self.ranges]}


@dataclass(frozen=True, init=False)
class Daily(_Combinable):
    """Leaves out a window of every day, from `start` up to, not including, `end`; past midnight if `end` is earlier.

    >>> Daily("22:00", "06:00").excluded_period(datetime(2026, 1, 1, 23, 0))[1].isoformat()
    '2026-01-02T06:00:00'
    """

    start: time
    end: time

    def __init__(self, start: str | time, end: str | time) -> None:
        object.__setattr__(self, "start", time_of_day(start))
        object.__setattr__(self, "end", time_of_day(end))
        if self.start == self.end:
            raise InvalidTrigger("Daily(start, end) would leave out nothing or everything; the two must differ")

    def excluded_period(self, wall: datetime) -> WallPeriod | None:
        over_midnight = self.end < self.start
        start = datetime.combine(wall.date(), self.start)
        if over_midnight and wall.time() < self.end:
            start -= _DAY
        end = datetime.combine(start.date(), self.end) + (_DAY if over_midnight else timedelta())
        return (start, end) if start <= wall < end else None

    def summary(self) -> str:
        return f"{self.start:%H:%M} to {self.end:%H:%M}"

    def to_json(self) -> dict[str, Any]:
        return {"kind": "daily", "start": self.start.isoformat(), "end": self.end.isoformat()}


@dataclass(frozen=True)
class Combined(_Combinable):
    """Leaves out what any of its parts leaves out; written `a | b`."""

    parts: tuple[Calendar, ...]

    def excluded_period(self, wall: datetime) -> WallPeriod | None:
        found = [each for part in self.parts if (each := part.excluded_period(wall)) is not None]
        return (min(start for start, _ in found), max(end for _, end in found)) if found else None

    def summary(self) -> str:
        return "; ".join(part.summary() for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "any", "parts": [part.to_json() for part in self.parts]}


def load_calendar(value: dict[str, Any]) -> Calendar:
    """The calendar of a stored JSON object; raises `InvalidTrigger` when it is none this version knows."""
    kind = value.get("kind") if isinstance(value, dict) else None
    loader = _KINDS.get(kind) if isinstance(kind, str) else None
    if loader is None:
        raise InvalidTrigger(f"a stored calendar of kind {kind!r:.40} is unknown here; known: {', '.join(_KINDS)}")
    try:
        return loader(value)
    except (LookupError, TypeError, ValueError) as error:
        raise InvalidTrigger(f"the stored calendar {value!r:.120} cannot be read: {error!r:.80}") from None


def weekday(name: str) -> int:
    """0 (Monday) to 6 of an English weekday's name or its first three letters."""
    short = name.lower()[:3] if isinstance(name, str) else ""
    if short not in _WEEKDAYS or not weekday_name(_WEEKDAYS.index(short)).lower().startswith(name.lower()):
        raise InvalidTrigger(f"{name!r:.40} is no weekday; write 'mon' to 'sun'")
    return _WEEKDAYS.index(short)


def weekday_name(number: int) -> str:
    """The English name of a weekday, 0: Monday."""
    return ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")[number]


def time_of_day(value: str | time) -> time:
    """A time of the day given as "HH:MM", "HH:MM:SS" or `datetime.time`; whole seconds, no zone."""
    refusal = InvalidTrigger(f"{value!r:.40} is no time of the day; write 'HH:MM' or 'HH:MM:SS', without a zone")
    try:
        found = time.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise refusal from None
    if not isinstance(found, time) or found.tzinfo is not None or found.microsecond:
        raise refusal
    return found


def join_with_and(items: list[str]) -> str:
    """Join texts with commas and a final "and"."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


class _Days(Protocol):
    def __contains__(self, day: Any, /) -> bool: ...


def _date_range(value: object) -> tuple[date, date]:
    both = value if isinstance(value, tuple) and len(value) == 2 else (value, value)
    start, end = (_date(each) for each in both)
    if start > end or end.year > 9990:
        raise InvalidTrigger(f"the range {start} to {end} runs backward, or too far")
    return start, end


def _date(value: object) -> date:
    if not isinstance(value, date) or isinstance(value, datetime):
        raise InvalidTrigger(f"Dates(…) takes dates and pairs of dates, not {value!r:.60}")
    return value


def _year(year: int) -> Iterator[date]:
    if isinstance(year, bool) or not isinstance(year, int) or not 1900 <= year <= 2400:
        raise InvalidTrigger(f"Dates.of(…, years=…) takes years from 1900 to 2400, not {year!r:.40}")
    day = date(year, 1, 1)
    while day.year == year:
        yield day
        day += _DAY


def _load_dates(value: Mapping[str, Any]) -> Calendar:
    return Dates(*((date.fromisoformat(a), date.fromisoformat(b)) for a, b in value["ranges"]))


_KINDS: dict[str, Callable[[dict[str, Any]], Calendar]] = {
    "weekdays": lambda value: Weekdays(*value["days"]),
    "dates": _load_dates,
    "daily": lambda value: Daily(value["start"], value["end"]),
    "any": lambda value: Combined(tuple(load_calendar(part) for part in value["parts"])),
}
