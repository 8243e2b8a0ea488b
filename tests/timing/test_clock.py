"""Instants and durations are whole microseconds, exactly."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from onebeat.timing.clock import SECOND, SystemClock, from_us, seconds_us, to_us


def test_instants_survive_the_round_trip_to_the_microsecond() -> None:
    moment = datetime(2345, 6, 7, 8, 9, 10, 123457, tzinfo=UTC)
    assert from_us(to_us(moment)) == moment
    assert to_us(datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)) == -1


def test_the_two_passes_of_a_repeated_hour_are_an_hour_apart() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    first = datetime(2026, 10, 25, 2, 30, tzinfo=berlin)
    assert to_us(first.replace(fold=1)) - to_us(first) == 3600 * SECOND
    assert from_us(to_us(first.replace(fold=1)), berlin).fold == 1


def test_a_naive_datetime_is_refused_with_a_hint() -> None:
    with pytest.raises(ValueError, match=r"no time zone; write datetime\(…, tzinfo=UTC\)"):
        to_us(datetime(2026, 1, 1))


@pytest.mark.parametrize(
    ("value", "us"), [(1, 1_000_000), (0.1, 100_000), (0, 0), (timedelta(days=1), 86_400_000_000), (1e-7, 0)]
)
def test_durations_are_seconds_or_timedeltas(value: float | timedelta, us: int) -> None:
    assert seconds_us(value) == us


@pytest.mark.parametrize("value", [-1, timedelta(seconds=-1), float("nan"), float("inf"), True, "5", None])
def test_what_is_no_duration_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        seconds_us(value)  # type: ignore[arg-type]  # the wrong types are the point


def test_the_clocks_run_forward() -> None:
    clock = SystemClock()
    now, boot = clock.now(), clock.boot()
    assert 0 <= clock.boot() - boot < 60 * SECOND
    assert abs(clock.now() - now) < 60 * SECOND
