"""A trigger within bounds of time, and a trigger without the days of a calendar."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any

from onebeat.errors import InvalidTrigger
from onebeat.timing.calendars import Calendar
from onebeat.timing.clock import DAY, from_us, to_us
from onebeat.timing.rule import DueFire, Rule
from onebeat.timing.zones import zone_name

_JUMPS = 1_000  # stretches of a calendar looked past before the rule counts as over
_HORIZON = 100 * 366 * DAY  # a calendar that leaves out every fire of so long leaves out all


@dataclass(frozen=True, init=False)
class Between(Rule):
    """`rule` from `start` up to `end`, both included; written `rule.between(start, end)`.

    >>> from datetime import UTC
    >>> from onebeat.timing.triggers import Every
    >>> rule = Every(days=1).between(end=datetime(2027, 1, 1, tzinfo=UTC))
    >>> rule.next_after(datetime(2027, 1, 1, tzinfo=UTC)) is None
    True
    """

    rule: Rule
    start_us: int | None
    end_us: int | None

    def __init__(self, rule: Rule, start: datetime | None = None, end: datetime | None = None) -> None:
        try:
            start_us = None if start is None else to_us(start)
            end_us = None if end is None else to_us(end)
        except (ValueError, AttributeError) as error:
            raise InvalidTrigger(f"between(start, end) takes aware datetimes: {error}") from None
        if start_us is not None and end_us is not None and start_us > end_us:
            raise InvalidTrigger("between(start, end): the end lies before the start")
        object.__setattr__(self, "rule", rule)
        object.__setattr__(self, "start_us", start_us)
        object.__setattr__(self, "end_us", end_us)

    @property
    def timezone(self) -> str | None:
        return self.rule.timezone

    def next_fire(self, after: int) -> DueFire | None:
        if self.start_us is not None and after < self.start_us:
            after = self.start_us - 1
        fire = self.rule.next_fire(after)
        return None if fire is None or (self.end_us is not None and fire.at > self.end_us) else fire

    def previous_fire(self, before: int) -> DueFire | None:
        if self.end_us is not None and before > self.end_us:
            before = self.end_us + 1
        fire = self.rule.previous_fire(before)
        return None if fire is None or (self.start_us is not None and fire.at < self.start_us) else fire

    def count(self, after: int, until: int) -> int | None:
        after = after if self.start_us is None else max(after, self.start_us - 1)
        until = until if self.end_us is None else min(until, self.end_us)
        return self.rule.count(after, until) if until > after else 0

    def with_timezone(self, name: str | tzinfo) -> Between:
        return self._of(self.rule.with_timezone(name))

    def bind(self, seed: str) -> Between:
        return self._of(self.rule.bind(seed))

    def words(self) -> str:
        tz = self.zone.tz
        start = "" if self.start_us is None else f", from {from_us(self.start_us, tz):%Y-%m-%d %H:%M}"
        end = "" if self.end_us is None else f", until {from_us(self.end_us, tz):%Y-%m-%d %H:%M}"
        return f"{self.rule.words()}{start}{end}"

    def lint(self) -> tuple[str, ...]:
        return self.rule.lint()

    def to_json(self) -> dict[str, Any]:
        return {"kind": "between", "rule": self.rule.to_json(), "start_us": self.start_us, "end_us": self.end_us}

    def _of(self, rule: Rule) -> Between:
        if rule is self.rule:
            return self
        start, end = (None if us is None else from_us(us) for us in (self.start_us, self.end_us))
        return Between(rule, start, end)


@dataclass(frozen=True, init=False)
class Excluding(Rule):
    """`rule` without the fires a calendar leaves out; written `rule.excluding(calendar)`.

    >>> from onebeat.timing.calendars import Weekdays
    >>> from onebeat.timing.triggers import Cron
    >>> Cron("0 9 * * *", "Europe/Berlin").excluding(Weekdays("sat", "sun")).words()
    'at 09:00 every day, in Europe/Berlin, except on Saturdays and Sundays'
    """

    rule: Rule
    calendar: Calendar
    timezone: str | None = None

    def __init__(self, rule: Rule, calendar: Calendar, timezone: str | tzinfo | None = None) -> None:
        if not isinstance(calendar, Calendar):
            raise InvalidTrigger(
                f"excluding(…) takes a calendar: Weekdays, Dates, Daily, joined by |; not {type(calendar).__name__}."
                " A holidays object goes in as Dates.of(object, years=…)"
            )
        own = None if timezone is None else zone_name(timezone)
        read = rule if own is None else rule.with_timezone(own)  # one wall clock for the rule and what it leaves out
        object.__setattr__(self, "rule", read)
        object.__setattr__(self, "calendar", calendar)
        object.__setattr__(self, "timezone", read.timezone if read.timezone is not None else own)

    def next_fire(self, after: int) -> DueFire | None:
        fire = self.rule.next_fire(after)
        for _ in range(_JUMPS):
            out = None if fire is None else self._left_out(fire)
            if fire is None or out is None:
                return fire
            if fire.at - after > _HORIZON:
                return None
            fire = self.rule.next_fire(max(fire.at, out[1] - 1))
        return None

    def previous_fire(self, before: int) -> DueFire | None:
        fire = self.rule.previous_fire(before)
        for _ in range(_JUMPS):
            out = None if fire is None else self._left_out(fire)
            if fire is None or out is None:
                return fire
            if before - fire.at > _HORIZON:
                return None
            fire = self.rule.previous_fire(min(fire.at, out[0]))
        return None

    def with_timezone(self, name: str | tzinfo) -> Excluding:
        if self.timezone is not None:
            return self
        return Excluding(self.rule.with_timezone(name), self.calendar, name)

    def bind(self, seed: str) -> Excluding:
        rule = self.rule.bind(seed)
        return self if rule is self.rule else Excluding(rule, self.calendar, self.timezone)

    def words(self) -> str:
        return f"{self.rule.words()}, except on {self.calendar.words()}"

    def lint(self) -> tuple[str, ...]:
        return self.rule.lint()

    def to_json(self) -> dict[str, Any]:
        to_json = getattr(self.calendar, "to_json", None)
        if to_json is None:
            raise InvalidTrigger(
                f"the calendar {type(self.calendar).__name__} cannot be stored; make it of Dates.of(…)"
            )
        return {"kind": "excluding", "rule": self.rule.to_json(), "calendar": to_json(), "timezone": self.timezone}

    def _left_out(self, fire: DueFire) -> tuple[int, int] | None:
        """The instants between which nothing fires; where the wall shows one twice or never, the narrower reading."""
        tz = self.zone.tz
        stretch = self.calendar.stretch(from_us(fire.at, tz).replace(tzinfo=None))
        if stretch is None:
            return None
        start, end = stretch
        starts = [to_us(start.replace(tzinfo=tz, fold=fold)) for fold in (0, 1)]
        ends = [to_us(end.replace(tzinfo=tz, fold=fold)) for fold in (0, 1)]
        return max(starts), min(ends)
