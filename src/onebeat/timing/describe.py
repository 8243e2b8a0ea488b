"""English summaries of cron rules, and notes on what may surprise about a rule."""

from __future__ import annotations

import calendar
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import NamedTuple

from onebeat.timing.calendars import join_with_and
from onebeat.timing.clock import SECOND, from_us, to_us
from onebeat.timing.cron import Expression, shortest_month, unrestricted
from onebeat.timing.cron_parser import MAX_LENGTH, Special
from onebeat.timing.dst import Dst, WallRule, next_occurrence
from onebeat.timing.zones import FIRST, LAST, OffsetPeriod, Zone, data_year

_DAY_NAMES = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_NTH = {-1: "last", 1: "first", 2: "second", 3: "third", 4: "fourth", 5: "fifth"}
_ALL = {"second": (1 << 60) - 1, "minute": (1 << 60) - 1, "hour": (1 << 24) - 1}
_MONTHS = 0x1FFE
_EVERY_DAY = 0xFFFFFFFE  # bits 1 to 31
_EVERY_WEEKDAY = 0b1111111
_SHOWN = 6  # times of the day a sentence lists one by one
_YEARS = 2  # how far notes look ahead for clock changes


class Note(NamedTuple):
    """One sentence on what may surprise about a rule; `at` is the instant it speaks of (UTC microseconds), if one."""

    text: str
    at: int | None = None


def cron_summary(made: Expression, zone: Zone) -> str:
    """Return the rule as a phrase in English.

    >>> from onebeat.timing.cron import expression
    >>> from onebeat.timing.zones import zone
    >>> cron_summary(expression("30 2 * * 1-5"), zone("Europe/Berlin"))
    'at 02:30 on Monday to Friday, in Europe/Berlin'
    """
    time, day = _time(made), _date(made)
    return f"{time if day == 'every day' and time.startswith('every') else f'{time} {day}'}, in {zone.name}"


def cron_notes(made: Expression, zone: Zone, dst: Dst, after: int | None = None) -> Iterator[Note]:
    """Yield the notes on a cron rule. What is written in backticks can be written instead."""
    for text in (*_field_notes(made), *_day_notes(made), *_short_month_notes(made)):
        yield Note(text)
    if made.columns.hashed is None and (made.fixed or made.columns.hours != _ALL["hour"]):
        yield from change_notes(made, zone, dst, after)


def change_notes(rule: WallRule, zone: Zone, dst: Dst, after: int | None = None) -> Iterator[Note]:
    """Yield what happens to the rule's first time in the next gap and in the next fold that contain one.

    The changes are those of the two years from `after` on (UTC microseconds); None: from the zone data's year on.
    """
    start = to_us(datetime(data_year(), 1, 1, tzinfo=UTC)) if after is None else after
    if rule.next_wall(start // SECOND) is not None and next_occurrence(rule, zone, dst, start // SECOND) is None:
        yield Note(only_skipped_times(rule, zone))
        return
    forward = backward = False
    for period in _changes(zone, start // SECOND + 1):
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
            yield Note(f"{then} does not exist on {day}, when clocks go forward; {what}", period.start * SECOND)
        elif period.wall_before > shown and not backward:
            backward = True
            what = "both times" if not rule.fixed or dst is Dst.RUN_BOTH else "only the first time"
            yield Note(f"{then} comes twice on {day}, when clocks go back; it runs {what}", period.start * SECOND)


def only_skipped_times(rule: WallRule, zone: Zone) -> str:
    """Say that a rule names only times that no clock of the zone will show again."""
    remedy = "give another time, or dst='vixie'" if rule.fixed else "give another time"
    return f"it never fires: each of its times is skipped when clocks go forward in {zone.name}; {remedy}"


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
    elif not parts[-1].startswith("every"):
        parts.append("of every minute")
    if c.hours != _ALL["hour"]:
        parts.append(f"of {'hour' if len(hours) == 1 else 'hours'} {_ranges(hours)}")
    elif not parts[-1].startswith(("every", "of every")):
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
    of_month = None if c.days == _EVERY_DAY else _month_days(made)
    of_week = None if c.weekdays == _EVERY_WEEKDAY else _week_days(made)
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
    if kind == "W":
        return f"the working day nearest to day {a}"
    if kind == "LW":
        return "the last working day" if a == 0 else f"the working day nearest to the day {a} before the last"
    return "the last day" if a == 0 else f"the day {a} before the last"


def _field_notes(made: Expression) -> Iterator[str]:
    c = made.columns
    six = c.seconds != 1
    if six and c.minutes == _ALL["minute"] and c.hours == _ALL["hour"]:
        minutes = _rewritten(made, second="", minute=c.text.split()[0])
        yield f"six fields begin with the seconds{minutes and f'; if minutes were meant write `{minutes}`'}"
    for what, mask, size in (("second", c.seconds, 60), ("minute", c.minutes, 60), ("hour", c.hours, 24)):
        values = _values(mask)
        gaps = {b - a for a, b in pairwise(values)}
        around = size - values[-1] + values[0]
        if len(values) > 2 and len(gaps) == 1 and values[0] == 0 and around < min(gaps):
            yield f"the step of {min(gaps)} {what}s is uneven: the last one is {around} before it begins again"
    if c.minutes == _ALL["minute"] and c.hours != _ALL["hour"] and not six:
        hourly = _rewritten(made, minute="0")
        yield f"this is every minute of the hour{hourly and f'; for once an hour write `{hourly}`'}"


def _day_notes(made: Expression) -> Iterator[str]:
    c = made.columns
    of_month, of_week = c.days != _EVERY_DAY, c.weekdays != _EVERY_WEEKDAY  # whether the field leaves days out
    if c.day_star or c.weekday_star:
        if of_month and of_week:
            yield "both day fields are given and one begins with *: it runs only when both match"
    elif of_month and of_week:
        yield f"both day fields are given: it runs when either matches{_both_instead(made)}"
        if not any(made.month_days_alone(month) for month in _values(c.months)):
            yield "no month given has such a day of the month; only the weekdays count"
    elif of_month or of_week:
        full, other = ("week", "month") if of_month else ("month", "week")
        alone = _rewritten(made, weekday="*") if of_month else _rewritten(made, day="*")
        yield (
            f"the day of the {full} covers every day, and either day field is enough: it runs every day"
            f"{alone and f'; for the day of the {other} alone write `{alone}`'}"
        )


def _both_instead(made: Expression) -> str:
    """Say how to ask for days that both day fields name; empty where it takes more than the weekdays."""
    c = made.columns
    weekdays = _values(c.weekdays)
    if c.weekday_specials:
        return ""
    if len(weekdays) == 1 and not c.day_specials:
        for nth in (1, 2, 3, 4):
            if c.days == 0b1111111 << (7 * nth - 6):
                both = _rewritten(made, day="*", weekday=f"{_DAY_NAMES[weekdays[0]][:3].upper()}#{nth}")
                return both and f"; for both write `{both}`"
    out = ", ".join(f'"{_DAY_NAMES[day][:3].lower()}"' for day in range(7) if day not in weekdays)
    days = _rewritten(made, weekday="*")
    return days and f"; for both write `{days}` and add `.excluding(Weekdays({out}))`"


def _short_month_notes(made: Expression) -> Iterator[str]:
    """Yield a note for the smallest day that some of the months do not have, where it names the only day."""
    c = made.columns
    plain = _values(c.days)
    if (c.day_specials and plain) or len(c.day_specials) > 1 or c.day_star or not c.weekday_star:
        return
    if c.weekdays != _EVERY_WEEKDAY:
        return
    kind, a, _ = c.day_specials[0] if c.day_specials else Special("", plain[0])
    day = a + 1 if kind in ("L", "LW") else a
    if day <= min(shortest_month(month) for month in _values(c.months)):
        return
    if kind in ("L", "LW"):
        yield f"months of fewer than {day} days are left out"
        return
    letter, what = ("LW", "the last working day") if kind == "W" else ("L", "the last day")
    last = _rewritten(made, day=letter)
    yield f"months without a day {day} are left out; {letter} is {what}{last and f': `{last}`'}"


def _rewritten(made: Expression, **fields: str) -> str:
    """Return the expression with other fields ("" drops the seconds); "" where it would be too long to be read."""
    words = made.columns.text.split()
    names = ("second", "minute", "hour", "day", "month", "weekday")[-len(words) :]
    changed = {**dict(zip(names, words, strict=True)), **fields}
    text = " ".join(word for word in changed.values() if word)
    return text if len(text) <= MAX_LENGTH else ""


def _changes(zone: Zone, at: int) -> Iterator[OffsetPeriod]:
    """Yield the periods that begin with a clock change, in the two years from `at` on (UTC seconds)."""
    at = max(at, FIRST)
    end = min(at + _YEARS * 366 * 86_400, LAST)
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
