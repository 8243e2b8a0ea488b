"""Daylight saving time: the instants of a wall-time rule in a zone whose clock jumps."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, Protocol

from onebeat.timing.zones import FIRST, LAST, OffsetPeriod, Zone

_LOOKS = 300  # stretches of time in a row without a fire: 80 years of a rule that meets one clock change a year
_SAFE = 2 * 86_400  # seconds; offsets differ by at most 26 h, so a wall time this far away lies in no nearer period


class Dst(StrEnum):
    """What a fixed-time rule does when clocks change. Wildcard rules follow real time in every mode.

    `vixie`: a skipped time runs once right after the jump, a repeated one runs once, in the first pass.
    `skip_missing`: a skipped time is left out. `run_both`: as `vixie`, and a repeated time runs in both passes.
    """

    VIXIE = "vixie"
    SKIP_MISSING = "skip_missing"
    RUN_BOTH = "run_both"


class WallRule(Protocol):
    """A rule on wall times alone. A wall time is a number of seconds, as if the wall clock showed UTC."""

    @property
    def fixed(self) -> bool:
        """Whether the rule names times of the day (True), or repeats through the hours (False, a wildcard rule)."""

    def next_wall(self, wall: int) -> int | None:
        """The first matching wall time at or after `wall`."""

    def previous_wall(self, wall: int) -> int | None:
        """The last matching wall time at or before `wall`."""


class CountedRule(WallRule, Protocol):
    """A wall rule that counts by arithmetic."""

    def count_walls(self, low: int, high: int) -> int:
        """How many wall times match from `low` up to, not including, `high`."""


class Occurrence(NamedTuple):
    """One instant of a wall rule in UTC seconds, with its wall time."""

    at: int
    wall: int  # in a gap the first of the skipped times
    second: bool  # the second pass of a repeated time
    mark: str | None  # "gap", "fold"


def next_occurrence(rule: WallRule, zone: Zone, dst: Dst, after: int) -> Occurrence | None:
    """Return the first occurrence strictly after `after` (UTC seconds).

    None, where every wall time of many decades is skipped or was shown before: weekdays and leap years come round
    within 40 years, so there is none later either.
    """
    at = max(after + 1, FIRST)
    fixed = rule.fixed
    once = fixed and dst is not Dst.RUN_BOTH
    for _ in range(_LOOKS):
        if at > LAST:
            return None
        period = zone.period(at)
        start, end, offset, wall_before, _ = period
        if fixed and at <= start:
            after_gap = _after_gap(rule, dst, period)
            if after_gap is not None:
                return after_gap
        low = max(at, start) + offset
        if once and wall_before > low:
            low = wall_before
        wall = rule.next_wall(low)
        if wall is None:
            return None
        found = wall - offset
        if found < end:
            return _occurrence(zone, found, wall, period)
        at = end if _starts_with_fold(zone.period(end)) else max(end, found - _SAFE)
    return None


def previous_occurrence(rule: WallRule, zone: Zone, dst: Dst, before: int) -> Occurrence | None:
    """Return the last occurrence strictly before `before` (UTC seconds); None as `next_occurrence` says."""
    at = min(before - 1, LAST)
    fixed = rule.fixed
    once = fixed and dst is not Dst.RUN_BOTH
    for _ in range(_LOOKS):
        if at < FIRST:
            return None
        period = zone.period(at)
        start, end, offset, wall_before, _ = period
        low = start + offset
        if once and wall_before > low:
            low = wall_before
        wall = rule.previous_wall(min(at, end - 1) + offset)
        if wall is not None and wall >= low:
            if fixed and wall - offset == start:
                return _after_gap(rule, dst, period) or _occurrence(zone, start, wall, period)
            return _occurrence(zone, wall - offset, wall, period)
        if fixed:
            after_gap = _after_gap(rule, dst, period)
            if after_gap is not None:
                return after_gap
        if wall is None:
            return None
        at = start - 1 if _starts_with_fold(period) else min(start - 1, wall - offset + _SAFE)
    return None


def count_occurrences(rule: CountedRule, zone: Zone, dst: Dst, after: int, until: int) -> int:
    """Return how many occurrences lie after `after` and not after `until` (UTC seconds), without visiting each."""
    at, end = max(after + 1, FIRST), min(until, LAST) + 1
    once = rule.fixed and dst is not Dst.RUN_BOTH
    total = 0
    while at < end:
        period = zone.period(at)
        shown = period.start + period.offset
        low, high = at + period.offset, min(end, period.end) + period.offset
        if once and period.wall_before > low:
            low = period.wall_before
        if low < high:
            total += rule.count_walls(low, high)
        if rule.fixed and at == period.start:
            after_gap = _after_gap(rule, dst, period)
            total += after_gap is not None and after_gap.wall != shown
        at = period.end
    return total


def _starts_with_fold(period: OffsetPeriod) -> bool:
    """Return whether the clock goes back at the start of this period, so that wall times repeat."""
    return period.wall_before > period.start + period.offset


def _after_gap(rule: WallRule, dst: Dst, period: OffsetPeriod) -> Occurrence | None:
    """Return the occurrence after the gap before this period, which replaces all skipped wall times; or None."""
    shown = period.start + period.offset
    if period.wall_before >= shown or dst is Dst.SKIP_MISSING:
        return None
    wall = rule.next_wall(period.wall_before)
    if wall is None or wall >= shown:
        return None
    if rule.next_wall(shown) == shown:
        wall = shown  # the rule has an occurrence of its own at this wall time
    return Occurrence(period.start, wall, False, "gap")


def _occurrence(zone: Zone, at: int, wall: int, period: OffsetPeriod) -> Occurrence:
    second = wall < period.wall_before
    folded = second or wall >= zone.period(at).repeats
    return Occurrence(at, wall, second, "fold" if folded else None)
