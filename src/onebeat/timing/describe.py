"""English summaries of cron rules, and notes on what may surprise about a rule."""

from __future__ import annotations

import calendar
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise

from onebeat.timing.calendars import join_with_and
from onebeat.timing.clock import SECOND, from_us, to_us
from onebeat.timing.cron import Expression, unrestricted
from onebeat.timing.cron_parser import Special
from onebeat.timing.dst import Dst, WallRule
from onebeat.timing.zones import OffsetPeriod, Zone, data_year

_DAY_NAMES = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_NTH = {-1: "last", 1: "first", 2: "second", 3: "third", 4: "fourth", 5: "fifth"}
_ALL = {"second": (1 << 60) - 1, "minute": (1 << 60) - 1, "hour": (1 << 24) - 1}
_MONTHS = 0x1FFE
_SHOWN = 6  # times of the day a sentence lists one by one


def cron_summary(made: Expression, zone: Zone) -> str:
    """Return the rule as a phrase in English.

    >>> from onebeat.timing.cron import expression
    >>> from onebeat.timing.zones import zone
    >>> cron_summary(expression("30 2 * * 1-5"), zone("Europe/Berlin"))
    'at 02:30 on Monday to Friday, in Europe/Berlin'
    """
    time, day = _time(made), _date(made)
    return f"{time if day == 'every day' and time.startswith('every') else f'{time} {day}'}, in {zone.name}"


def lint(made: Expression, zone: Zone, dst: Dst) -> tuple[str, ...]:
    """Return the notes on a rule, one sentence each; clock changes are those of the zone data's year and the next."""
    hourly = not made.fixed and made.columns.hours == _ALL["hour"]
    changes = () if hourly or made.columns.hashed is not None else change_notes(made, zone, dst)
    return (*_field_notes(made), *_day_notes(made), *changes)


def change_notes(rule: WallRule, zone: Zone, dst: Dst) -> Iterator[str]:
    """Yield what happens to the rule's first time in the next gap and in the next fold that contain one."""
    forward = backward = False
    for period in _changes(zone):
        shown = period.start + period.offset
        first = rule.next_wall(min(period.wall_before, shown))
        if first is None or first >= max(period.wall_before, shown):
            continue
        day, then = f"{from_us(first * SECOND):%Y-%m-%d}", f"{from_us(first * SECOND):%H:%M}"
        if period.wall_before < shown and not forward:
            forward = True
            if not rule.fixed or dst is Dst.SKIP_MISSING:
                what = "it is left out"
            else:
                what = f"it runs at {from_us(shown * SECOND):%H:%M} instead"
            yield f"{then} does not exist on {day}, when clocks go forward; {what}"
        elif period.wall_before > shown and not backward:
            backward = True
            what = "both times" if not rule.fixed or dst is Dst.RUN_BOTH else "only the first time"
            yield f"{then} comes twice on {day}, when clocks go back; it runs {what}"


def _time(made: Expression) -> str:
    c = made.columns
    hours, minutes, seconds = _values(c.hours), _values(c.minutes), _values(c.seconds)
    if len(hours) * len(minutes) * len(seconds) <= _SHOWN:
        form = "{:02d}:{:02d}" if seconds == [0] else "{:02d}:{:02d}:{:02d}"
        return f"at {join_with_and([form.format(h, m, s) for h in hours for m in minutes for s in seconds])}"
    parts = []
    if seconds != [0]:
        parts.append(_every("second", c.seconds))
    if c.minutes != _ALL["minute"] or not parts:
        parts.append(_every("minute", c.minutes))
    if c.hours != _ALL["hour"]:
        parts.append(f"of {'hour' if len(hours) == 1 else 'hours'} {_ranges(hours)}")
    elif not parts[-1].startswith("every"):
        parts.append("of every hour")
    return " ".join(parts)


def _every(what: str, mask: int) -> str:
    values = _values(mask)
    if mask == _ALL[what]:
        return f"every {what}"
    step = _step(values, 60)
    return f"every {step} {what}s" if step else f"at {what}{'' if len(values) == 1 else 's'} {_ranges(values)}"


def _date(made: Expression) -> str:
    c = made.columns
    months = "" if c.months == _MONTHS else f" in {join_with_and([calendar.month_name[m] for m in _values(c.months)])}"
    if unrestricted(c):
        return f"every day{months}"
    of_month = None if c.days == 0xFFFFFFFE else _month_days(made)
    of_week = None if c.weekdays == 0b1111111 else _week_days(made)
    both = c.day_star or c.weekday_star
    join = " if it is also " if both else " and also on "
    return f"on {join.join(filter(None, [of_month, of_week]))}{months}"


def _month_days(made: Expression) -> str:
    plain = _values(made.columns.days)
    shown = [f"day{'' if len(plain) == 1 else 's'} {_ranges(plain)}"] if plain else []
    return join_with_and([*shown, *(_special(each) for each in made.columns.day_specials)])


def _week_days(made: Expression) -> str:
    numbers = _values(made.columns.weekdays)
    run = len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1))
    names = [_DAY_NAMES[n] for n in numbers]
    shown = [f"{names[0]} to {names[-1]}"] if run else names
    return join_with_and([*shown, *(_special(each) for each in made.columns.weekday_specials)])


def _special(special: Special) -> str:
    kind, a, b = special
    if kind == "#":
        return f"the {_NTH[b]} {_DAY_NAMES[a]} of the month"
    if kind == "LW":
        return "the last working day"
    if kind == "W":
        return f"the working day nearest to day {a}"
    return "the last day" if a == 0 else f"the day {a} before the last"


def _field_notes(made: Expression) -> Iterator[str]:
    c = made.columns
    six = c.seconds != 1
    if six and c.minutes == _ALL["minute"] and c.hours == _ALL["hour"]:
        yield "six fields begin with the seconds; leave the first out if minutes were meant"
    for what, mask, size in (("second", c.seconds, 60), ("minute", c.minutes, 60), ("hour", c.hours, 24)):
        values = _values(mask)
        gaps = {b - a for a, b in pairwise(values)}
        around = size - values[-1] + values[0]
        if len(values) > 2 and len(gaps) == 1 and values[0] == 0 and around < min(gaps):
            yield f"the step of {min(gaps)} {what}s is uneven: the last one is {around} before it begins again"
    if c.minutes == _ALL["minute"] and c.hours != _ALL["hour"] and not six:
        yield "this is every minute of the hour; for once an hour write 0 in the minute field"


def _day_notes(made: Expression) -> Iterator[str]:
    c = made.columns
    restricted = not (c.day_star and c.days == 0xFFFFFFFE) and not (c.weekday_star and c.weekdays == 0b1111111)
    if restricted and not (c.day_star or c.weekday_star):
        yield "both day fields are given: it runs when either matches; for both, begin one of them with *"
        if not any(made.month_days_alone(month) for month in _values(c.months)):
            yield "no month given has such a day of the month; only the weekdays count"
    elif restricted:
        yield "both day fields are given and one begins with *: it runs only when both match"
    days = _values(c.days)
    if not c.day_specials and not c.day_star and days[0] > 28 and c.weekday_star:
        yield f"months without a day {days[0]} are left out; L is the last day"


def _changes(zone: Zone) -> Iterator[OffsetPeriod]:
    """Yield the periods that begin with a clock change, in the zone data's year and the next."""
    year = data_year()
    at = to_us(datetime(year, 1, 1, tzinfo=UTC)) // SECOND
    end = to_us(datetime(year + 2, 1, 1, tzinfo=UTC)) // SECOND
    while at < end:
        period = zone.period(at)
        if period.wall_before != period.start + period.offset and period.start >= at:
            yield period
        at = period.end


def _values(mask: int) -> list[int]:
    return [n for n in range(mask.bit_length()) if mask >> n & 1]


def _step(values: list[int], size: int) -> int | None:
    """The step, when the values are 0, n, 2n … around the whole size."""
    if len(values) < 2 or values[0] != 0:
        return None
    step = values[1]
    return step if size % step == 0 and values == list(range(0, size, step)) else None


def _ranges(values: list[int]) -> str:
    """Numbers with runs of three and more as ranges: 0, 5 and 9 to 17."""
    runs: list[list[int]] = []
    for value in values:
        if runs and runs[-1][-1] == value - 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    shown = []
    for run in runs:
        shown += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(value) for value in run]
    return join_with_and(shown)
