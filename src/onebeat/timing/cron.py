"""Cron expressions: the next and the previous matching wall time, computed with bit masks."""

from __future__ import annotations

from datetime import date
from functools import lru_cache

from onebeat.errors import InvalidCron
from onebeat.timing.cron_parser import Columns, Special, parse, refuse

_EPOCH = date(1970, 1, 1).toordinal()
_LENGTHS = (0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_FIRST_DAY = date(1, 1, 1).toordinal() - _EPOCH
_LAST_DAY = date(9999, 12, 31).toordinal() - _EPOCH
_EVERY_WEEK = 1 | 1 << 7 | 1 << 14 | 1 << 21 | 1 << 28
_DAYS = 0xFFFFFFFE  # bits 1 to 31
_MONTHS = 0x1FFE  # bits 1 to 12
_WEEKDAYS = 0b1111111


class Expression:
    """An expression that can be satisfied, ready to be asked; `expression(text, seed)` makes it.

    Wall times are seconds since 1970 as if the wall showed UTC.
    """

    __slots__ = ("_daily", "_months", "columns", "fixed")

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.fixed = columns.fixed
        self._daily = columns.months == _MONTHS and unrestricted(columns)
        self._months: dict[tuple[int, int], int] = {}

    def next_wall(self, wall: int) -> int | None:
        """The first matching wall time at or after `wall`."""
        day, second = divmod(wall, 86_400)
        found = day if self._daily else self.next_day(day)
        if found is None:
            return None
        if found == day:
            time = self._next_time(second)
            if time is not None:
                return day * 86_400 + time
            found = day + 1 if self._daily else self.next_day(day + 1)
            if found is None:
                return None
        return found * 86_400 + self.first_time

    def previous_wall(self, wall: int) -> int | None:
        """The last matching wall time at or before `wall`."""
        day, second = divmod(wall, 86_400)
        found = day if self._daily else self.previous_day(day)
        if found is None:
            return None
        if found == day:
            time = self._previous_time(second)
            if time is not None:
                return day * 86_400 + time
            found = day - 1 if self._daily else self.previous_day(day - 1)
            if found is None:
                return None
        return found * 86_400 + self.last_time

    @property
    def first_time(self) -> int:
        """The first second of a matching day."""
        c = self.columns
        return _low(c.hours) * 3_600 + _low(c.minutes) * 60 + _low(c.seconds)

    @property
    def last_time(self) -> int:
        """The last second of a matching day."""
        c = self.columns
        return _high(c.hours) * 3_600 + _high(c.minutes) * 60 + _high(c.seconds)

    def next_day(self, day: int) -> int | None:
        """The first matching day (since 1970) at or after `day`."""
        if not _FIRST_DAY <= day <= _LAST_DAY:
            return None if day > _LAST_DAY else self.next_day(_FIRST_DAY)
        then = date.fromordinal(day + _EPOCH)
        year, month, number = then.year, then.month, then.day
        first = day - number + 1
        months = self.columns.months
        while year <= 9999:
            length = _length(year, month)
            if months >> month & 1:
                mask = self.month((first + 4) % 7, length) >> number
                if mask:
                    return first - 1 + number + _low(mask)
            first += length
            number = 1
            month += 1
            if month == 13:
                year, month = year + 1, 1
        return None

    def previous_day(self, day: int) -> int | None:
        """The last matching day (since 1970) at or before `day`."""
        if not _FIRST_DAY <= day <= _LAST_DAY:
            return None if day < _FIRST_DAY else self.previous_day(_LAST_DAY)
        then = date.fromordinal(day + _EPOCH)
        year, month, number = then.year, then.month, then.day
        first = day - number + 1
        months = self.columns.months
        while True:
            if months >> month & 1:
                mask = self.month((first + 4) % 7, _length(year, month)) & ((2 << number) - 1)
                if mask:
                    return first - 1 + _high(mask)
            month -= 1
            if month == 0:
                year, month = year - 1, 12
            if year < 1:
                return None
            number = _length(year, month)
            first -= number

    def count_walls(self, low: int, high: int) -> int:
        """How many wall times match from `low` up to, not including, `high`; by arithmetic, a month at a time."""
        c = self.columns
        first, start = divmod(low, 86_400)
        last, end = divmod(high, 86_400)
        each = c.hours.bit_count() * c.minutes.bit_count() * c.seconds.bit_count()
        total = self._count_days(first, last) * each
        if self.next_day(first) == first:
            total -= self._count_times(start)
        if self.next_day(last) == last:
            total += self._count_times(end)
        return total

    def month(self, weekday: int, length: int) -> int:
        """The matching days of a month of `length` days that begins on `weekday` (0: Sunday), a bit for each."""
        mask = self._months.get((weekday, length))
        if mask is None:
            mask = self._months[weekday, length] = _month(self.columns, weekday, length)
        return mask

    def month_days_alone(self, month: int) -> bool:
        """Whether the day-of-month field by itself has a day in this month."""
        c = self.columns
        return any(
            c.days & ((2 << length) - 2) or any(_special(each, 0, length) for each in c.day_specials)
            for length in _lengths(month)
        )

    def _count_days(self, first: int, last: int) -> int:
        """Matching days from `first` up to, not including, `last`."""
        total = 0
        while first < last:
            then = date.fromordinal(first + _EPOCH)
            begins = first - then.day + 1
            length = _length(then.year, then.month)
            if self.columns.months >> then.month & 1:
                mask = self.month((begins + 4) % 7, length) >> then.day
                total += (mask & ((1 << min(last - first, 32)) - 1)).bit_count()
            first = begins + length
        return total

    def _count_times(self, second: int) -> int:
        """Matching times of a day before `second`."""
        c = self.columns
        hour, rest = divmod(second, 3_600)
        minute, second = divmod(rest, 60)
        seconds = (c.seconds & ((1 << second) - 1)).bit_count() if c.minutes >> minute & 1 else 0
        minutes = (c.minutes & ((1 << minute) - 1)).bit_count() * c.seconds.bit_count() + seconds
        hours = (c.hours & ((1 << hour) - 1)).bit_count() * c.minutes.bit_count() * c.seconds.bit_count()
        return hours + (minutes if c.hours >> hour & 1 else 0)

    def _next_time(self, second: int) -> int | None:
        c = self.columns
        hour, rest = divmod(second, 3_600)
        minute, second = divmod(rest, 60)
        if c.hours >> hour & 1:
            if c.minutes >> minute & 1:
                seconds = c.seconds >> second
                if seconds:
                    return hour * 3_600 + minute * 60 + second + _low(seconds)
            minutes = c.minutes >> (minute + 1)
            if minutes:
                return hour * 3_600 + (minute + 1 + _low(minutes)) * 60 + _low(c.seconds)
        hours = c.hours >> (hour + 1)
        if hours:
            return (hour + 1 + _low(hours)) * 3_600 + _low(c.minutes) * 60 + _low(c.seconds)
        return None

    def _previous_time(self, second: int) -> int | None:
        c = self.columns
        hour, rest = divmod(second, 3_600)
        minute, second = divmod(rest, 60)
        if c.hours >> hour & 1:
            if c.minutes >> minute & 1:
                seconds = c.seconds & ((2 << second) - 1)
                if seconds:
                    return hour * 3_600 + minute * 60 + _high(seconds)
            minutes = c.minutes & ((1 << minute) - 1)
            if minutes:
                return hour * 3_600 + _high(minutes) * 60 + _high(c.seconds)
        hours = c.hours & ((1 << hour) - 1)
        if hours:
            return _high(hours) * 3_600 + _high(c.minutes) * 60 + _high(c.seconds)
        return None


@lru_cache(maxsize=1_024)
def expression(text: str, seed: str | None = None) -> Expression:
    """Parse and check; raises `InvalidCron` for what cannot be read and for what can never happen.

    >>> expression("30 2 * * *").next_wall(0)
    9000
    """
    made = Expression(parse(text, seed))
    if not _satisfiable(made):
        day = made.columns.text.split()[-3]
        refuse(text, max(0, text.upper().rfind(day)), "no calendar has such a day; it would never run")
    return made


def require_bound(made: Expression) -> None:
    """Raise `InvalidCron` when the expression holds an H that no seed has settled."""
    at = made.columns.hashed
    if at is not None:
        raise InvalidCron(
            f"cron {made.columns.text!r}, at {at}: H is spread by a name; call .bind(name) (a schedule binds its id)",
            position=at,
        )


def _satisfiable(made: Expression) -> bool:
    """Whether any of the 14 calendars has a matching day: exact, and independent of today."""
    columns = made.columns
    if columns.hashed is not None:
        return True  # asked again when it is bound
    if unrestricted(columns):
        return True
    lengths = {length for month in range(1, 13) if columns.months >> month & 1 for length in _lengths(month)}
    return any(made.month(weekday, length) for length in lengths for weekday in range(7))


def unrestricted(columns: Columns) -> bool:
    """Whether every day of a matching month matches: one day field is enough where either of the two decides."""
    of_month, of_week = columns.days == _DAYS, columns.weekdays == _WEEKDAYS
    if columns.day_star or columns.weekday_star:
        return of_month and of_week
    return of_month or of_week


def _month(columns: Columns, weekday: int, length: int) -> int:
    full = (2 << length) - 2
    of_month = columns.days & full
    for special in columns.day_specials:
        of_month |= _special(special, weekday, length)
    of_week = 0
    for number in range(7):
        if columns.weekdays >> number & 1:
            of_week |= _EVERY_WEEK << (1 + (number - weekday) % 7)
    for special in columns.weekday_specials:
        of_week |= _special(special, weekday, length)
    both = columns.day_star or columns.weekday_star
    return (of_month & of_week if both else of_month | of_week) & full


def _special(special: Special, weekday: int, length: int) -> int:
    kind, a, b = special
    if kind == "L":
        return 1 << (length - a) if length > a else 0
    if kind == "#":
        first = 1 + (a - weekday) % 7
        day = first + 7 * (b - 1) if b > 0 else first + 7 * ((length - first) // 7)
        return 1 << day if day <= length else 0
    day = length - a if kind == "LW" else a
    if not 1 <= day <= length:
        return 0
    falls = (weekday + day - 1) % 7
    if falls == 6:
        day += -1 if day > 1 else 2
    elif falls == 0:
        day += 1 if day < length else -2
    return 1 << day


def shortest_month(month: int) -> int:
    """How many days the month (1 to 12) has at least."""
    return _LENGTHS[month]


def _lengths(month: int) -> tuple[int, ...]:
    return (28, 29) if month == 2 else (_LENGTHS[month],)


def _length(year: int, month: int) -> int:
    if month == 2 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0):
        return 29
    return _LENGTHS[month]


def _low(mask: int) -> int:
    return (mask & -mask).bit_length() - 1


def _high(mask: int) -> int:
    return mask.bit_length() - 1
