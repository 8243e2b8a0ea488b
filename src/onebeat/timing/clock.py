"""The system clock, and the conversion of instants and durations to whole microseconds."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta, tzinfo

MILLISECOND = 1_000
SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ONE = timedelta(microseconds=1)
_FIRST_KEPT = (datetime(2, 1, 1, tzinfo=UTC) - EPOCH) // _ONE
_END_KEPT = (datetime(9999, 1, 1, tzinfo=UTC) - EPOCH) // _ONE
_BOOT = getattr(time, "CLOCK_BOOTTIME", None)  # Linux; elsewhere the monotonic clock, which may stop in suspend


class SystemClock:
    """This machine's clocks, behind the `Clock` protocol.

    >>> SystemClock().now() > 1_700_000_000 * SECOND
    True
    """

    __slots__ = ()

    def now(self) -> int:
        """Wall clock, UTC microseconds since 1970."""
        return time.time_ns() // 1_000

    def boot(self) -> int:
        """Microseconds on a clock that never steps and, on Linux, counts suspended time."""
        return (time.monotonic_ns() if _BOOT is None else time.clock_gettime_ns(_BOOT)) // 1_000

    def monotonic(self) -> float:
        """Seconds on a clock that never steps; for pauses and limits within one process."""
        return time.monotonic()


def to_us(moment: datetime) -> int:
    """UTC microseconds of an aware `datetime`, exactly; a naive one raises `ValueError`.

    >>> to_us(datetime(2026, 10, 25, 2, 30, tzinfo=UTC))
    1792895400000000
    """
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise ValueError(
            f"{moment.isoformat()} has no time zone; write datetime(…, tzinfo=UTC), or datetime.now(UTC) for now"
        )
    return (moment - EPOCH) // _ONE


def kept_us(moment: datetime) -> int:
    """UTC microseconds of an aware `datetime` of the years 2 to 9998; any other raises `ValueError`.

    Nearer to the ends of the calendar there are zones in which the instant is no date, so nothing that is stored may
    lie there.

    >>> kept_us(datetime(2026, 10, 25, 2, 30, tzinfo=UTC))
    1792895400000000
    """
    us = to_us(moment)
    if not _FIRST_KEPT <= us < _END_KEPT:
        raise ValueError(f"{moment.isoformat()} lies at an end of the calendar; give an instant of the years 2 to 9998")
    return us


def from_us(us: int, zone: tzinfo = UTC) -> datetime:
    """The aware `datetime` of UTC microseconds, in `zone`.

    >>> from_us(1792895400000000).isoformat()
    '2026-10-25T02:30:00+00:00'
    """
    return (EPOCH + timedelta(microseconds=us)).astimezone(zone)


def seconds_us(value: float | timedelta) -> int:
    """Microseconds of a duration given as seconds or `timedelta`; raises `ValueError` when negative or not finite.

    >>> seconds_us(0.25), seconds_us(timedelta(minutes=1))
    (250000, 60000000)
    """
    if isinstance(value, timedelta):
        us = value // _ONE
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r:.80} is no duration; give seconds as a number, or a timedelta")
    elif not math.isfinite(value):
        raise ValueError(f"{value!r} is no duration; it must be finite")
    else:
        us = value * SECOND if isinstance(value, int) else round(value * SECOND)
    if us < 0:
        raise ValueError(f"a duration of {us / SECOND:g} s is negative; durations begin at 0")
    return us
