"""What every trigger can do: next and previous fire, previews, words, the JSON form."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, tzinfo
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from onebeat.errors import InvalidTrigger
from onebeat.timing.clock import SECOND, from_us, to_us
from onebeat.timing.walls import Dst, Hit
from onebeat.timing.zones import Zone, zone

if TYPE_CHECKING:
    from onebeat.timing.calendars import Calendar

RuleT = TypeVar("RuleT", bound="Rule")

COUNT_LIMIT = 100_000  # fires counted one by one before `count` gives up


class DueFire(NamedTuple):
    """One instant a trigger names, UTC microseconds, with its fire key and mark ('gap', 'fold' or None)."""

    at: int
    key: str
    mark: str | None = None


class Rule:
    """The base of all triggers: values that compare, read the wall clock never, and name each instant once.

    A subclass answers `next_fire`, `previous_fire`, `words` and `to_json`; the rest follows from these.
    """

    @property
    def timezone(self) -> str | None:
        """The zone the rule reads the wall clock in; None: none was given, UTC stands in."""
        return None

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

    def words(self) -> str:
        """The rule in one sentence part, without notes."""
        raise NotImplementedError

    def lint(self) -> tuple[str, ...]:
        """What may surprise about the rule, a sentence each."""
        return ()

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

    def describe(self) -> str:
        """The rule in words, then a line for each thing that may surprise about it."""
        return "\n".join([self.words(), *(f"note: {note}" for note in self.lint())])

    def between(self, start: datetime | None = None, end: datetime | None = None) -> Rule:
        """The same rule from `start` up to `end` (aware, both included, None: open)."""
        from onebeat.timing.narrowed import Between  # it is built on this class

        return Between(self, start, end)

    def excluding(self, calendar: Calendar, timezone: str | tzinfo | None = None) -> Rule:
        """The same rule without the fires that fall, on the wall clock, on days and windows of `calendar`.

        The wall clock is that of the rule's zone; `timezone` names one for rules without (`Every`, `At`).
        """
        from onebeat.timing.narrowed import Excluding  # it is built on this class

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


def fire_of(hit: Hit, fixed: bool, zone_name: str) -> DueFire:
    """The fire of an instant: keyed by its wall time for a fixed-time rule, by the instant for a wildcard one."""
    if not fixed:
        return DueFire(hit.at * SECOND, str(hit.at * SECOND), hit.mark)
    key = f"{wall_text(hit.wall)}[{zone_name}]"
    return DueFire(hit.at * SECOND, f"{key};2" if hit.second else key, hit.mark)


def dst_mode(value: str) -> Dst:
    """The mode of that name; raises `InvalidTrigger` naming the three."""
    try:
        return Dst(value)
    except ValueError:
        raise InvalidTrigger(f"dst={value!r:.40} is none of {', '.join(map(repr, map(str, Dst)))}") from None


def span(us: int) -> str:
    """A duration in words.

    >>> span(90 * SECOND), span(3600 * SECOND), span(250_000)
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
