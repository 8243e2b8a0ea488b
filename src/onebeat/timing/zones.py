"""Time zones: checked names, periods of constant offset, and fingerprints of the zone data."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from difflib import get_close_matches
from functools import lru_cache
from hashlib import blake2b
from importlib.resources import files
from typing import NamedTuple
from zoneinfo import ZoneInfo

import tzdata

from onebeat.errors import InvalidTrigger
from onebeat.timing.clock import DAY, EPOCH, SECOND

# Seconds since 1970 between which rules are evaluated: a year inside what `datetime` holds, so that no zone overflows.
FIRST = int((datetime(2, 1, 1, tzinfo=UTC) - EPOCH).total_seconds())
LAST = int((datetime(9998, 12, 31, tzinfo=UTC) - EPOCH).total_seconds())

_BLOCK = 32 * 86_400  # a zone is looked at in blocks of this many seconds, each once
_MARGIN = 3 * 86_400  # more than any shift (24 h, Apia 2011), so that a block knows what happened just outside it
_STEP = 6 * 3_600  # two changes of one zone are never closer: the tests compare with the zone files themselves
_KEPT = 4_096  # blocks kept for each zone before starting over: about 350 years
_NAME = re.compile(r"[A-Za-z0-9_+\-]{1,32}(/[A-Za-z0-9_+\-]{1,32}){0,2}")
_LOCAL = {"localtime", "posixrules", "Factory", "posix", "right"}  # mean something else on each machine
_FINGERPRINT_DAYS = 400  # how far ahead a stored fingerprint looks


class OffsetPeriod(NamedTuple):
    """A period of constant offset, in seconds; its wall times are `start + offset` to `end + offset`."""

    start: int
    end: int
    offset: int
    wall_before: int  # end of the wall times shown before; above this period's first one: a fold, below it: a gap
    repeats: int  # from here on, this period's wall times will be shown a second time


class Zone:
    """One time zone as a sequence of periods; `zone(name)` makes it."""

    __slots__ = ("_blocks", "name", "tz")

    def __init__(self, name: str, tz: tzinfo) -> None:
        self.name = name
        self.tz = tz
        self._blocks: dict[int, tuple[OffsetPeriod, ...]] = {}

    def period(self, at: int) -> OffsetPeriod:
        """Return the period that contains the instant `at` (UTC seconds)."""
        block = at // _BLOCK
        periods = self._blocks.get(block)
        if periods is None:
            if len(self._blocks) >= _KEPT:
                self._blocks.clear()
            periods = self._blocks[block] = self._compute_periods(block)
        for period in periods:
            if at < period.end:
                return period
        raise AssertionError("a block's periods cover it")

    def offset(self, at: int) -> int:
        """Seconds east of UTC at an instant."""
        delta = (EPOCH + timedelta(seconds=at)).astimezone(self.tz).utcoffset()
        assert delta is not None
        return delta.days * 86_400 + delta.seconds

    def spans(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """Maximal (start, end, offset) from `start` to `end`."""
        found: list[tuple[int, int, int]] = []
        begin, offset, at = start, self.offset(start), start
        while at < end:
            following = min(at + _STEP, end)
            there = self.offset(following)
            if there != offset:
                low, high = at, following
                while high - low > 1:
                    middle = (low + high) // 2
                    if self.offset(middle) == offset:
                        low = middle
                    else:
                        high = middle
                found.append((begin, high, offset))
                begin, offset, at = high, self.offset(high), high
            else:
                at = following
        if begin < end:
            found.append((begin, end, offset))
        return found

    def _compute_periods(self, block: int) -> tuple[OffsetPeriod, ...]:
        spans = self.spans(block * _BLOCK - _MARGIN, (block + 1) * _BLOCK + _MARGIN)
        periods = []
        wall_before = spans[0][0] + spans[0][2]
        for index, (start, end, offset) in enumerate(spans):
            over = end + offset
            later = spans[index + 1] if index + 1 < len(spans) else None
            repeats = min(over, later[0] + later[2]) if later else over
            periods.append(OffsetPeriod(start, end, offset, wall_before, repeats))
            wall_before = max(wall_before, over)
        return tuple(periods)


@lru_cache(maxsize=1_024)
def zone(name: str) -> Zone:
    """The zone of an IANA name; raises `InvalidTrigger` with the nearest names when there is none.

    >>> zone("Europe/Berlin").offset(0)
    3600
    """
    tz: tzinfo | None = UTC if name == "UTC" else None
    if tz is None and _NAME.fullmatch(name) and name.partition("/")[0] not in _LOCAL:
        try:
            tz = ZoneInfo(name)
        except (OSError, ValueError, LookupError):
            tz = None
    if tz is None:
        raise InvalidTrigger(f"there is no time zone {name[:64]!r}{_suggestions(name)}")
    return Zone(name, tz)


def zone_name(value: str | tzinfo) -> str:
    """The checked name of a zone given as a name, as `ZoneInfo` or as `datetime.UTC`."""
    name = getattr(value, "key", None) if isinstance(value, tzinfo) else value
    if value is UTC:
        name = "UTC"
    if not isinstance(name, str):
        raise InvalidTrigger(
            f"{value!r:.80} is no time zone by name; give an IANA name such as 'Europe/Berlin', or a ZoneInfo"
        )
    return zone(name).name


def fingerprint(name: str, now_us: int) -> str:
    """What the zone's data says about the 400 days from now's day on: that day and a hash.

    Store it with a rule; `changed(name, stored)` tells later whether other data has come in.
    """
    return _fingerprint(name, now_us // DAY)


def changed(name: str, stored: str) -> bool:
    """Whether today's data says otherwise about the days the stored fingerprint covers."""
    day = stored.partition(":")[0]
    return not day.isdigit() or _fingerprint(name, int(day)) != stored


def stale(stored: str, now_us: int) -> bool:
    """Whether less than half of the stored fingerprint's days lie ahead, so that a new one should be stored."""
    day = stored.partition(":")[0]
    return not day.isdigit() or now_us // DAY - int(day) > _FINGERPRINT_DAYS // 2


def data_year() -> int:
    """The year of the installed zone data, as it names itself."""
    return int(tzdata.IANA_VERSION[:4])


@lru_cache(maxsize=1_024)
def _fingerprint(name: str, day: int) -> str:
    spans = zone(name).spans(day * DAY // SECOND, (day + _FINGERPRINT_DAYS) * DAY // SECOND)
    digest = blake2b(";".join(f"{start}{offset:+d}" for start, _, offset in spans).encode(), digest_size=12)
    return f"{day}:{digest.hexdigest()}"


def _suggestions(name: str) -> str:
    known = (files("tzdata") / "zones").read_text("utf-8").split()
    by_city = {each.rpartition("/")[2].lower(): each for each in known}
    close = get_close_matches(name[:64], known, n=3, cutoff=0.75)
    city = get_close_matches(name[:64].rpartition("/")[2].lower().replace(" ", "_"), by_city, n=1, cutoff=0.85)
    meant = list(dict.fromkeys([*close, *(by_city[each] for each in city)]))
    if meant:
        return f"; did you mean {' or '.join(meant)}?"
    return "; give an IANA name such as 'Europe/Berlin'"
