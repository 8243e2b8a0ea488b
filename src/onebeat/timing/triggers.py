"""The triggers `Cron`, `Every` and `At`, and `load`, which restores any trigger from its stored form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from typing import Any

from onebeat.errors import InvalidCron, InvalidTrigger
from onebeat.timing.any_of import AnyOf
from onebeat.timing.calendars import load_calendar
from onebeat.timing.clock import MILLISECOND, SECOND, from_us, kept_us, seconds_us
from onebeat.timing.cron import Expression, expression, require_bound
from onebeat.timing.cron_parser import DIALECT
from onebeat.timing.describe import Note, cron_notes, cron_summary, only_skipped_times
from onebeat.timing.dst import Dst, Occurrence, count_occurrences, next_occurrence, previous_occurrence
from onebeat.timing.periods import load_days, load_months, load_weeks
from onebeat.timing.rule import Between, DueFire, Excluding, Rule, describe_duration, dst_mode, fire_of
from onebeat.timing.zones import FIRST, LAST, Zone, zone, zone_name

MIN_INTERVAL = 100 * MILLISECOND  # each fire is a transaction; below this the rule is a loop
MAX_INTERVAL = 100 * 366 * 86_400 * SECOND


@dataclass(frozen=True, init=False)
class Cron(Rule):
    """Fires by a cron expression, read on the wall of `timezone`.

    Five fields (minute, hour, day of the month, month, day of the week), or six with seconds first; names, ranges,
    steps, lists, `L`, `5L`, `FRI#2`, `?`, `W`, `LW`, `L-3`, `H`, `@daily` and its kin. `dst` says what a fixed-time
    rule does when clocks change. Raises `InvalidCron` with the position of the fault, or `InvalidTrigger`.

    >>> from datetime import UTC
    >>> Cron("30 2 * * *", "Europe/Berlin").next_after(datetime(2026, 3, 28, 12, tzinfo=UTC)).isoformat()
    '2026-03-29T03:00:00+02:00'
    """

    expr: str
    timezone: str | None = None
    dst: Dst = Dst.VIXIE
    seed: str | None = None
    _compiled: Expression = field(init=False, repr=False, compare=False)
    _zone: Zone = field(init=False, repr=False, compare=False)

    def __init__(
        self, expr: str, timezone: str | tzinfo | None = None, *, dst: str = "vixie", seed: str | None = None
    ) -> None:
        if not isinstance(expr, str):
            raise InvalidCron(f"a cron expression is text, not {type(expr).__name__}", position=0)
        if seed is not None and not isinstance(seed, str):
            raise InvalidTrigger(f"Cron(…, seed=…) is the name that spreads H, a text, not {seed!r:.40}")
        compiled = expression(expr, seed)
        name = None if timezone is None else zone_name(timezone)
        put = object.__setattr__
        put(self, "expr", compiled.columns.text)
        put(self, "timezone", name)
        put(self, "dst", dst_mode(dst))
        put(self, "seed", seed)
        put(self, "_compiled", compiled)
        put(self, "_zone", zone(name or "UTC"))

    def next_fire(self, after: int) -> DueFire | None:
        if self._compiled.columns.hashed is not None:
            require_bound(self._compiled)
        return self._fire(next_occurrence(self._compiled, self._zone, self.dst, after // SECOND))

    def previous_fire(self, before: int) -> DueFire | None:
        if self._compiled.columns.hashed is not None:
            require_bound(self._compiled)
        return self._fire(previous_occurrence(self._compiled, self._zone, self.dst, -(-before // SECOND)))

    def count(self, after: int, until: int) -> int | None:
        require_bound(self._compiled)
        return count_occurrences(self._compiled, self._zone, self.dst, after // SECOND, until // SECOND)

    def with_timezone(self, name: str | tzinfo) -> Cron:
        return self if self.timezone is not None else Cron(self.expr, name, dst=self.dst, seed=self.seed)

    def bind(self, seed: str) -> Cron:
        """The rule with every `H` spread by `seed` (a schedule binds its id); bound rules stay as they are."""
        if self._compiled.columns.hashed is None:
            return self
        return Cron(self.expr, self.timezone, dst=self.dst, seed=seed)

    def summary(self) -> str:
        return cron_summary(self._compiled, self._zone)

    def notes(self, after: int | None = None) -> Iterable[Note]:
        return cron_notes(self._compiled, self._zone, self.dst, after)

    def over(self, now: int) -> str:
        if self._compiled.next_wall(now // SECOND) is None:
            return super().over(now)
        return f"{self.summary()}: {only_skipped_times(self._compiled, self._zone)}"

    def to_json(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "kind": "cron",
            "dialect": DIALECT,
            "expr": self.expr,
            "timezone": self.timezone,
            "dst": str(self.dst),
        }
        if self.seed is not None:
            body["seed"] = self.seed
        return body

    def _fire(self, occurrence: Occurrence | None) -> DueFire | None:
        return None if occurrence is None else fire_of(occurrence, self._compiled.fixed, self._zone.name)


@dataclass(frozen=True, init=False)
class Every(Rule):
    """Fires at `anchor` and each `interval` from it, in both directions, on real time: no drift, no clock changes.

    `interval` is seconds or a `timedelta`; or give `seconds`, `minutes`, `hours`, `days`. Without `anchor` the rule is
    aligned to the Unix epoch, so that every process and every deploy agrees. Raises `InvalidTrigger` under 0.1 s.

    >>> Every(minutes=5).to_json()["interval_us"]
    300000000
    """

    interval_us: int
    anchor_us: int

    def __init__(
        self,
        interval: float | timedelta | None = None,
        anchor: datetime | None = None,
        *,
        seconds: float = 0,
        minutes: float = 0,
        hours: float = 0,
        days: float = 0,
    ) -> None:
        try:
            parts = [seconds_us(seconds), seconds_us(minutes) * 60, seconds_us(hours) * 3600, seconds_us(days) * 86_400]
            us = sum(parts) + (0 if interval is None else seconds_us(interval))
            at = 0 if anchor is None else kept_us(anchor)
        except ValueError as error:
            raise InvalidTrigger(f"Every(…): {error}") from None
        if interval is not None and any(parts):
            raise InvalidTrigger("Every(…) takes an interval, or seconds, minutes, hours and days, not both")
        if not MIN_INTERVAL <= us <= MAX_INTERVAL:
            raise InvalidTrigger(f"Every({us / SECOND:g} s) cannot work; give {MIN_INTERVAL / SECOND:g} s to 100 years")
        object.__setattr__(self, "interval_us", us)
        object.__setattr__(self, "anchor_us", at)

    @property
    def interval(self) -> timedelta:
        """The time between two fires."""
        return timedelta(microseconds=self.interval_us)

    @property
    def anchor(self) -> datetime:
        """One of the instants; the others follow from it."""
        return from_us(self.anchor_us)

    def next_fire(self, after: int) -> DueFire | None:
        after = max(after, FIRST * SECOND)
        at = after + self.interval_us - (after - self.anchor_us) % self.interval_us
        return DueFire(at, str(at)) if at <= LAST * SECOND else None

    def previous_fire(self, before: int) -> DueFire | None:
        before = min(before, LAST * SECOND)
        at = before - 1 - (before - 1 - self.anchor_us) % self.interval_us
        return DueFire(at, str(at)) if at >= FIRST * SECOND else None

    def count(self, after: int, until: int) -> int | None:
        if until <= after:
            return 0
        return (until - self.anchor_us) // self.interval_us - (after - self.anchor_us) // self.interval_us

    def summary(self) -> str:
        duration = describe_duration(self.interval_us)
        return f"every {duration[2:] if duration.count(' ') == 1 and duration.startswith('1 ') else duration}"

    def to_json(self) -> dict[str, Any]:
        return {"kind": "every", "interval_us": self.interval_us, "anchor_us": self.anchor_us}


@dataclass(frozen=True, init=False)
class At(Rule):
    """Fires once, at `moment` (aware). Raises `InvalidTrigger` for a naive one.

    >>> from datetime import UTC
    >>> At(datetime(2027, 1, 1, tzinfo=UTC)).next_after(datetime(2027, 1, 1, tzinfo=UTC)) is None
    True
    """

    at_us: int

    def __init__(self, moment: datetime) -> None:
        if not isinstance(moment, datetime):
            raise InvalidTrigger(f"At(…) takes an aware datetime, not {moment!r:.60}")
        try:
            object.__setattr__(self, "at_us", kept_us(moment))
        except ValueError as error:
            raise InvalidTrigger(f"At(…): {error}") from None

    @property
    def moment(self) -> datetime:
        """The one instant, in UTC."""
        return from_us(self.at_us)

    def next_fire(self, after: int) -> DueFire | None:
        return DueFire(self.at_us, str(self.at_us)) if self.at_us > after else None

    def previous_fire(self, before: int) -> DueFire | None:
        return DueFire(self.at_us, str(self.at_us)) if self.at_us < before else None

    def summary(self) -> str:
        return f"once, at {self.moment:%Y-%m-%d %H:%M:%S} UTC"

    def to_json(self) -> dict[str, Any]:
        return {"kind": "at", "at_us": self.at_us}


def load(value: dict[str, Any]) -> Rule:
    """The trigger of a stored JSON object; raises `InvalidTrigger` when it is none this version knows.

    >>> load({"kind": "every", "interval_us": 1000000, "anchor_us": 0}) == Every(1)
    True
    """
    kind = value.get("kind") if isinstance(value, dict) else None
    loader = _KINDS.get(kind) if isinstance(kind, str) else None
    if loader is None:
        known = ", ".join(sorted(_KINDS))
        raise InvalidTrigger(f"a stored trigger of kind {kind!r:.40} is unknown here; known: {known}")
    try:
        return loader(value)
    except RecursionError:
        raise InvalidTrigger("the stored trigger is nested too deeply") from None
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise InvalidTrigger(f"the stored trigger {value!r:.120} cannot be read: {error!r:.80}") from None


def _load_cron(value: dict[str, Any]) -> Rule:
    if value["dialect"] != DIALECT:
        raise InvalidTrigger(f"cron dialect {value['dialect']!r:.20} is not {DIALECT}; a newer onebeat wrote this rule")
    return Cron(value["expr"], value["timezone"], dst=value["dst"], seed=value.get("seed"))


def _load_every(value: dict[str, Any]) -> Rule:
    return Every(timedelta(microseconds=value["interval_us"]), from_us(value["anchor_us"]))


def _load_at(value: dict[str, Any]) -> Rule:
    return At(from_us(value["at_us"]))


def _load_between(value: dict[str, Any]) -> Rule:
    start, end = (None if value[name] is None else from_us(value[name]) for name in ("start_us", "end_us"))
    return Between(load(value["rule"]), start, end)


def _load_excluding(value: dict[str, Any]) -> Rule:
    return Excluding(load(value["rule"]), load_calendar(value["calendar"]), value["timezone"])


def _load_any_of(value: dict[str, Any]) -> Rule:
    return AnyOf(*(load(part) for part in value["parts"]))


_KINDS: dict[str, Callable[[dict[str, Any]], Rule]] = {
    "cron": _load_cron,
    "every": _load_every,
    "at": _load_at,
    "any_of": _load_any_of,
    "days": load_days,
    "months": load_months,
    "weeks": load_weeks,
    "between": _load_between,
    "excluding": _load_excluding,
}
