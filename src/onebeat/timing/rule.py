"""The base class of all triggers, and the triggers that limit another one to a time range or exclude a calendar."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any, NamedTuple, TypeVar

from onebeat.errors import InvalidTrigger
from onebeat.timing.calendars import Calendar
from onebeat.timing.clock import DAY, SECOND, from_us, kept_us, to_us
from onebeat.timing.describe import Note
from onebeat.timing.dst import Dst, Occurrence
from onebeat.timing.zones import Zone, zone, zone_name

RuleT = TypeVar("RuleT", bound="Rule")

_JUMPS = 1_000  # excluded periods that are skipped before the rule counts as over
_HORIZON = 100 * 366 * DAY  # a calendar that leaves out every fire of so long leaves out all
COUNT_LIMIT = 100_000  # fires counted one by one before `count` gives up


class DueFire(NamedTuple):
    """One instant a trigger names, UTC microseconds, with its fire key and mark ('gap', 'fold' or None)."""

    at: int
    key: str
    mark: str | None = None


class Rule:
    """The base of all triggers: values that compare, read the wall clock never, and name each instant once.

    A subclass answers `next_fire`, `previous_fire`, `summary` and `to_json`; the rest follows from these.
    """

    @property
    def timezone(self) -> str | None:
        """The zone the rule reads the wall clock in; None: none was given, UTC stands in."""
        return None

    @property
    def zones(self) -> tuple[str, ...]:
        """Every zone that the rule's fires depend on, by name."""
        return () if self.timezone is None else (self.timezone,)

    @property
    def zone(self) -> Zone:
        """The zone in force."""
        return zone(self.timezone or "UTC")

    def next_fire(self, after: int) -> DueFire | None:
        """The first fire strictly after `after` (UTC microseconds), or None."""
        raise NotImplementedError

    def previous_fire(self, before: int) -> DueFire | None:
        """The last fire strictly before `before` (UTC microseconds), or None."""
        raise NotImplementedError

    def count(self, after: int, until: int) -> int | None:
        """How many fires lie after `after` and not after `until`; None when that is too many to count."""
        total = 0
        for _ in self.fires_after(after, until):
            total += 1
            if total > COUNT_LIMIT:
                return None
        return total

    def summary(self) -> str:
        """Return the rule as a phrase in English, without notes."""
        raise NotImplementedError

    def notes(self, after: int | None = None) -> Iterable[Note]:
        """Return what may surprise about the rule; of clock changes those after `after` (UTC microseconds)."""
        return ()

    def over(self, now: int) -> str:
        """Return why a rule without a fire after `now` (UTC microseconds) has none, and what to do."""
        return f"{self.summary()} lies in the past: it would never fire; give a time after now"

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `load` makes an equal trigger."""
        raise NotImplementedError

    def with_timezone(self: RuleT, name: str | tzinfo) -> RuleT:
        """The rule with `name` as its zone where none was given, else the rule itself."""
        return self

    def bind(self: RuleT, seed: str) -> RuleT:
        """The rule with every H of a cron expression spread by `seed`; without an H the rule itself."""
        return self

    def next_after(self, moment: datetime) -> datetime | None:
        """The first instant strictly after `moment` (aware), in the rule's zone; None when there is none."""
        return self._datetime(self.next_fire(to_us(moment)))

    def previous_before(self, moment: datetime) -> datetime | None:
        """The last instant strictly before `moment` (aware), in the rule's zone; None when there is none."""
        return self._datetime(self.previous_fire(to_us(moment)))

    def upcoming(self, n: int, *, after: datetime) -> list[datetime]:
        """The next `n` instants after `after` (aware), fewer when the rule ends."""
        return [from_us(fire.at, self.zone.tz) for fire in self.upcoming_fires(n, after=to_us(after))]

    def upcoming_fires(self, n: int, *, after: int) -> list[DueFire]:
        """The next `n` fires after `after` (UTC microseconds), with keys and marks."""
        found: list[DueFire] = []
        while len(found) < n and (fire := self.next_fire(found[-1].at if found else after)) is not None:
            found.append(fire)
        return found

    def fires_after(self, after: int, until: int) -> Iterator[DueFire]:
        """Fires after `after` and not after `until` (UTC microseconds), in order of time."""
        fire = self.next_fire(after)
        while fire is not None and fire.at <= until:
            yield fire
            fire = self.next_fire(fire.at)

    def matches(self, moment: datetime) -> bool:
        """Whether the rule fires at exactly `moment` (aware); a microsecond beside it is no match.

        >>> from datetime import UTC
        >>> from onebeat.timing.triggers import Cron
        >>> Cron("0 9 * * mon-fri").matches(datetime(2027, 1, 1, 9, tzinfo=UTC))
        True
        """
        at = to_us(moment)
        fire = self.next_fire(at - 1)
        return fire is not None and fire.at == at

    def lint(self, *, after: datetime | None = None) -> tuple[str, ...]:
        """Return notes on what may surprise about the rule, one sentence each.

        The clock changes are those of the two years after `after` (aware); without it, from the year of the
        installed zone data on.
        """
        return tuple(note.text for note in self.notes(None if after is None else to_us(after)))

    def describe(self, *, after: datetime | None = None) -> str:
        """Return the rule as a phrase in English, then a line for each note about it; `after` as for `lint`."""
        return "\n".join([self.summary(), *(f"note: {note}" for note in self.lint(after=after))])

    def between(self, start: datetime | None = None, end: datetime | None = None) -> Rule:
        """The same rule from `start` up to `end` (aware, both included, None: open)."""
        return Between(self, start, end)

    def excluding(self, calendar: Calendar, timezone: str | tzinfo | None = None) -> Rule:
        """The same rule without the fires that fall, on the wall clock, on days and windows of `calendar`.

        The wall clock is that of the rule's zone; `timezone` names one for rules without (`Every`, `At`).
        """
        return Excluding(self, calendar, timezone)

    def _datetime(self, fire: DueFire | None) -> datetime | None:
        return None if fire is None else from_us(fire.at, self.zone.tz)


def wall_text(wall: int) -> str:
    """A wall time as text; seconds only where there are any, so that the key outlives a rule's sixth field.

    >>> wall_text(1792895400)
    '2026-10-25T02:30'
    """
    shown = from_us(wall * SECOND)
    return shown.strftime("%Y-%m-%dT%H:%M:%S" if shown.second else "%Y-%m-%dT%H:%M")


def fire_of(occurrence: Occurrence, fixed: bool, zone_name: str) -> DueFire:
    """The fire of an instant: keyed by its wall time for a fixed-time rule, by the instant for a wildcard one."""
    if not fixed:
        return DueFire(occurrence.at * SECOND, str(occurrence.at * SECOND), occurrence.mark)
    key = f"{wall_text(occurrence.wall)}[{zone_name}]"
    return DueFire(occurrence.at * SECOND, f"{key};2" if occurrence.second else key, occurrence.mark)


def dst_mode(value: str) -> Dst:
    """The mode of that name; raises `InvalidTrigger` naming the three."""
    try:
        return Dst(value)
    except ValueError:
        raise InvalidTrigger(f"dst={value!r:.40} is none of {', '.join(map(repr, map(str, Dst)))}") from None


def describe_duration(us: int) -> str:
    """Return a duration in English.

    >>> describe_duration(90 * SECOND), describe_duration(3600 * SECOND), describe_duration(250_000)
    ('1 minute 30 seconds', '1 hour', '0.25 seconds')
    """
    parts: list[tuple[float, str]] = []
    rest = us
    for name, size in (("day", 86_400 * SECOND), ("hour", 3_600 * SECOND), ("minute", 60 * SECOND)):
        number, rest = divmod(rest, size)
        if number:
            parts.append((number, name))
    if rest:
        parts.append((rest // SECOND if rest % SECOND == 0 else rest / SECOND, "second"))
    return " ".join(f"{number:g} {name}{'' if number == 1 else 's'}" for number, name in parts)


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
            start_us = None if start is None else kept_us(start)
            end_us = None if end is None else kept_us(end)
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

    @property
    def zones(self) -> tuple[str, ...]:
        return self.rule.zones

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

    def summary(self) -> str:
        tz = self.zone.tz
        start = "" if self.start_us is None else f", from {from_us(self.start_us, tz):%Y-%m-%d %H:%M}"
        end = "" if self.end_us is None else f", until {from_us(self.end_us, tz):%Y-%m-%d %H:%M}"
        return f"{self.rule.summary()}{start}{end}"

    def notes(self, after: int | None = None) -> Iterator[Note]:
        if self.start_us is not None:
            after = self.start_us - 1 if after is None else max(after, self.start_us - 1)
        for note in self.rule.notes(after):
            if note.at is None or self.end_us is None or note.at <= self.end_us:
                yield note

    def over(self, now: int) -> str:
        if self.end_us is not None and self.end_us > now and self.rule.next_fire(now) is not None:
            return f"{self.summary()}: the rule has no fire in that time; give another start or end"
        return super().over(now) if self.rule.next_fire(now) is not None else self.rule.over(now)

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
    >>> Cron("0 9 * * *", "Europe/Berlin").excluding(Weekdays("sat", "sun")).summary()
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
        mixed = len(read.zones) > 1  # then the calendar's own zone is the wall it is read on
        object.__setattr__(self, "timezone", own if mixed or read.timezone is None else read.timezone)

    def next_fire(self, after: int) -> DueFire | None:
        fire = self.rule.next_fire(after)
        for _ in range(_JUMPS):
            out = None if fire is None else self._excluded_period(fire.at)
            if fire is None or out is None:
                return fire
            if fire.at - after > _HORIZON:
                return None
            fire = self.rule.next_fire(max(fire.at, out[1] - 1))
        return None

    def previous_fire(self, before: int) -> DueFire | None:
        fire = self.rule.previous_fire(before)
        for _ in range(_JUMPS):
            out = None if fire is None else self._excluded_period(fire.at)
            if fire is None or out is None:
                return fire
            if before - fire.at > _HORIZON:
                return None
            fire = self.rule.previous_fire(min(fire.at, out[0]))
        return None

    @property
    def zones(self) -> tuple[str, ...]:
        return tuple(sorted({*self.rule.zones, *(() if self.timezone is None else (self.timezone,))}))

    def with_timezone(self, name: str | tzinfo) -> Excluding:
        rule = self.rule.with_timezone(name)
        if self.timezone is not None and rule == self.rule:
            return self
        return Excluding(rule, self.calendar, self.timezone or name)

    def bind(self, seed: str) -> Excluding:
        rule = self.rule.bind(seed)
        return self if rule is self.rule else Excluding(rule, self.calendar, self.timezone)

    def summary(self) -> str:
        return f"{self.rule.summary()}, except on {self.calendar.summary()}"

    def notes(self, after: int | None = None) -> Iterator[Note]:
        for note in self.rule.notes(after):
            if note.at is None or self._excluded_period(note.at) is None:
                yield note

    def over(self, now: int) -> str:
        if self.rule.next_fire(now) is None:
            return self.rule.over(now)
        return f"{self.summary()}: the calendar leaves out every fire; leave out less"

    def to_json(self) -> dict[str, Any]:
        to_json = getattr(self.calendar, "to_json", None)
        if to_json is None:
            raise InvalidTrigger(
                f"the calendar {type(self.calendar).__name__} cannot be stored; make it of Dates.of(…)"
            )
        return {"kind": "excluding", "rule": self.rule.to_json(), "calendar": to_json(), "timezone": self.timezone}

    def _excluded_period(self, at: int) -> tuple[int, int] | None:
        """Return the instants between which nothing fires; an ambiguous bound makes the period narrower."""
        tz = self.zone.tz
        excluded = self.calendar.excluded_period(from_us(at, tz).replace(tzinfo=None))
        if excluded is None:
            return None
        start, end = excluded
        starts = [to_us(start.replace(tzinfo=tz, fold=fold)) for fold in (0, 1)]
        ends = [to_us(end.replace(tzinfo=tz, fold=fold)) for fold in (0, 1)]
        return max(starts), min(ends)
