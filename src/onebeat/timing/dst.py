"""From wall times to instants: what a rule on the wall means in a zone whose clocks jump."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, Protocol

from onebeat.timing.zones import FIRST, LAST, Piece, Zone

_SAFE = 2 * 86_400  # seconds; offsets differ by at most 26 h, so a wall time this far away lies in no nearer piece


class Dst(StrEnum):
    """What a fixed-time rule does when clocks change. Wildcard rules follow real time in every mode.

    `vixie`: a skipped time runs once right after the jump, a repeated one runs once, in the first pass.
    `skip_missing`: a skipped time is left out. `run_both`: as `vixie`, and a repeated time runs in both passes.
    """

    VIXIE = "vixie"
    SKIP_MISSING = "skip_missing"
    RUN_BOTH = "run_both"


class WallRule(Protocol):
    """A rule on the wall clock alone. A wall time is counted in seconds as if the wall showed UTC."""

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


class Hit(NamedTuple):
    """One instant of a wall rule, UTC seconds, with the wall time it stands for."""

    at: int
    wall: int  # in a gap the first of the skipped times
    second: bool  # the second pass of a repeated time
    mark: str | None  # "gap", "fold"


def next_hit(rule: WallRule, zone: Zone, dst: Dst, after: int) -> Hit | None:
    """The first instant strictly after `after` (UTC seconds)."""
    at = max(after + 1, FIRST)
    fixed = rule.fixed
    once = fixed and dst is not Dst.RUN_BOTH
    while at <= LAST:
        piece = zone.piece(at)
        start, end, offset, carried, _ = piece
        if fixed and at <= start:
            made_up = _made_up(rule, dst, piece)
            if made_up is not None:
                return made_up
        low = max(at, start) + offset
        if once and carried > low:
            low = carried
        wall = rule.next_wall(low)
        if wall is None:
            return None
        found = wall - offset
        if found < end:
            return _hit(zone, found, wall, piece)
        at = end if _folds(zone.piece(end)) else max(end, found - _SAFE)
    return None


def previous_hit(rule: WallRule, zone: Zone, dst: Dst, before: int) -> Hit | None:
    """The last instant strictly before `before` (UTC seconds)."""
    at = min(before - 1, LAST)
    fixed = rule.fixed
    once = fixed and dst is not Dst.RUN_BOTH
    while at >= FIRST:
        piece = zone.piece(at)
        start, end, offset, carried, _ = piece
        low = start + offset
        if once and carried > low:
            low = carried
        wall = rule.previous_wall(min(at, end - 1) + offset)
        if wall is not None and wall >= low:
            if fixed and wall - offset == start:
                return _made_up(rule, dst, piece) or _hit(zone, start, wall, piece)
            return _hit(zone, wall - offset, wall, piece)
        if fixed:
            made_up = _made_up(rule, dst, piece)
            if made_up is not None:
                return made_up
        if wall is None:
            return None
        at = start - 1 if _folds(piece) else min(start - 1, wall - offset + _SAFE)
    return None


def count_hits(rule: CountedRule, zone: Zone, dst: Dst, after: int, until: int) -> int:
    """How many instants lie strictly after `after` and not after `until` (UTC seconds), without visiting each."""
    at, end = max(after + 1, FIRST), min(until, LAST) + 1
    once = rule.fixed and dst is not Dst.RUN_BOTH
    total = 0
    while at < end:
        piece = zone.piece(at)
        shown = piece.start + piece.offset
        low, high = at + piece.offset, min(end, piece.end) + piece.offset
        if once and piece.carried > low:
            low = piece.carried
        if low < high:
            total += rule.count_walls(low, high)
        if rule.fixed and at == piece.start:
            made_up = _made_up(rule, dst, piece)
            total += made_up is not None and made_up.wall != shown
        at = piece.end
    return total


def _folds(piece: Piece) -> bool:
    """Whether the wall went back where this piece begins, so that times already looked past come again."""
    return piece.carried > piece.start + piece.offset


def _made_up(rule: WallRule, dst: Dst, piece: Piece) -> Hit | None:
    """The one instant for all skipped times: the first after the gap that this piece begins with."""
    shown = piece.start + piece.offset
    if piece.carried >= shown or dst is Dst.SKIP_MISSING:
        return None
    wall = rule.next_wall(piece.carried)
    if wall is None or wall >= shown:
        return None
    if rule.next_wall(shown) == shown:
        wall = shown  # it would run now in any case, under its own name
    return Hit(piece.start, wall, False, "gap")


def _hit(zone: Zone, at: int, wall: int, piece: Piece) -> Hit:
    second = wall < piece.carried
    folded = second or wall >= zone.piece(at).repeats
    return Hit(at, wall, second, "fold" if folded else None)
