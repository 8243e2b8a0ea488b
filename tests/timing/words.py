"""A reader of `describe()`: turns the English summary of a cron rule back into the days and times that it names."""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

from tests.timing.oracle import length, nearest

_NAMES = [*list(calendar.day_name)[6:], *list(calendar.day_name)[:6]]  # Sunday first
_WEEKDAY = "|".join(_NAMES)
_MONTH = "|".join(calendar.month_name[1:])
_NTH = {"first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5}
_ALL = {"second": frozenset(range(60)), "minute": frozenset(range(60)), "hour": frozenset(range(24))}
DayTest = Callable[[date], bool]
Times = frozenset[tuple[int, int, int]] | tuple[frozenset[int], frozenset[int], frozenset[int]]


@dataclass(frozen=True)
class Words:
    """What a summary says: which days, and their times one by one or as the hours, minutes and seconds there are."""

    times: Times
    day: DayTest


def read(summary: str) -> Words:
    """Read a summary such as `at 02:30 on Monday, in UTC`; an assertion fails where it cannot be understood."""
    sentence = summary.rpartition(", in ")[0]
    months = re.search(rf" in ((?:{_MONTH}|, | and )+)$", sentence)
    named = set(re.findall(_MONTH, months[1])) if months else set(calendar.month_name[1:])
    sentence = sentence[: months.start()] if months else sentence
    days = re.search(r" (every day|on .*)$", sentence)
    time = sentence[: days.start()] if days else sentence
    of_day = _days(days[1]) if days else lambda _: True
    return Words(_times(time), lambda when: calendar.month_name[when.month] in named and of_day(when))


def _times(text: str) -> Times:
    if re.fullmatch(r"at [\d:, and]+", text) and ":" in text:
        found = re.findall(r"(\d\d):(\d\d)(?::(\d\d))?", text)
        return frozenset((int(h), int(m), int(s or 0)) for h, m, s in found)
    values: dict[str, frozenset[int]] = {}
    pattern = r"(?:at |of )?(?:(every) )?(?:(\d+) )?(second|minute|hour)s?( [\d, and to]*\d)?(?: |$)"
    assert re.fullmatch(f"(?:{pattern})+", text), text
    for every, step, unit, ranges in re.findall(pattern, text):
        assert unit not in values, text
        values[unit] = _ALL[unit] if every else _numbers(ranges)
        if step:
            values[unit] = frozenset(range(0, 60, int(step)))
    if "minute" not in values:  # "every 5 seconds of hour 9" leaves the minutes out; "at second 5" may not
        assert re.match(r"every (\d+ )?second", text), text
        values["minute"] = _ALL["minute"]
    return values.get("hour", _ALL["hour"]), values["minute"], values.get("second", frozenset({0}))


def _days(text: str) -> DayTest:
    if text == "every day":
        return lambda _: True
    text = text.removeprefix("on ")
    if " if it is also " in text:
        a, b = map(_one_field, text.split(" if it is also "))
        return lambda when: a(when) and b(when)
    tests = [_one_field(part) for part in text.split(" and also on ")]
    return lambda when: any(test(when) for test in tests)


def _one_field(text: str) -> DayTest:
    tests: list[DayTest] = []

    def take(pattern: str, make: Callable[[re.Match[str]], DayTest]) -> None:
        nonlocal text
        for match in re.finditer(pattern, text):
            tests.append(make(match))
        text = re.sub(pattern, "", text)

    take(r"the working day nearest to the day (\d+) before the last", lambda m: _near_end(int(m[1])))
    take(r"the working day nearest to day (\d+)", lambda m: _near(int(m[1])))
    take(r"the last working day", lambda _: _near_end(0))
    take(r"the day (\d+) before the last", lambda m: lambda when: when.day == length(when) - int(m[1]))
    take(r"the last day", lambda _: lambda when: when.day == length(when))
    take(rf"the (\w+) ({_WEEKDAY}) of the month", lambda m: _nth(m[1], m[2]))
    take(rf"({_WEEKDAY}) to ({_WEEKDAY})", lambda m: _from_to(m[1], m[2]))
    take(rf"({_WEEKDAY})", lambda m: _from_to(m[1], m[1]))
    take(r"days? ([\d, andto]*\d)", lambda m: _in(_numbers(m[1])))
    assert not text.replace("and", "").strip(" ,"), text
    return lambda when: any(test(when) for test in tests)


def _near(target: int) -> DayTest:
    return lambda when: target <= length(when) and when == nearest(when, target)


def _near_end(back: int) -> DayTest:
    return lambda when: length(when) > back and when == nearest(when, length(when) - back)


def _nth(which: str, name: str) -> DayTest:
    if which == "last":
        return lambda when: _name(when) == name and when.day + 7 > length(when)
    return lambda when: _name(when) == name and (when.day - 1) // 7 + 1 == _NTH[which]


def _from_to(first: str, last: str) -> DayTest:
    return _on(frozenset(_NAMES[_NAMES.index(first) : _NAMES.index(last) + 1]))


def _on(names: frozenset[str]) -> DayTest:
    return lambda when: _name(when) in names


def _in(days: frozenset[int]) -> DayTest:
    return lambda when: when.day in days


def _name(when: date) -> str:
    return calendar.day_name[when.weekday()]


def _numbers(text: str) -> frozenset[int]:
    found = re.findall(r"(\d+)(?: to (\d+))?", text)
    return frozenset(n for low, high in found for n in range(int(low), int(high or low) + 1))
