"""Retry says when and how often; Snooze and Cancel carry what they mean."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, strategies as st

from onebeat.errors import ConfigurationError
from onebeat.timing.backoff import Cancel, Retry, Snooze
from onebeat.timing.clock import SECOND


def test_delays_double_up_to_the_cap() -> None:
    retry = Retry(base=5, factor=2, cap=30, jitter=False)
    assert [retry.delay_us(n, 0.5) // SECOND for n in (1, 2, 3, 4, 5000)] == [5, 10, 20, 30, 30]


@given(st.integers(1, 10_000), st.floats(0, 1), st.floats(0, 1e6), st.floats(1, 1000), st.floats(0, 1e6))
def test_jitter_stays_between_half_the_delay_and_all_of_it(
    number: int, random: float, base: float, factor: float, cap: float
) -> None:
    plain = Retry(base=base, factor=factor, cap=cap, jitter=False).delay_us(number, random)
    spread = Retry(base=base, factor=factor, cap=cap).delay_us(number, random)
    assert plain // 2 <= spread <= plain <= cap * SECOND + 1


def test_equal_numbers_are_equal_values_and_survive_json() -> None:
    retry = Retry(5, base=timedelta(seconds=2), cap=60, jitter=False, on=(OSError,))
    assert retry == Retry(5, base=2.0, cap=60, jitter=False, on=(OSError,))
    assert Retry.from_json(retry.to_json(), on=(OSError,)) == retry
    assert hash(retry) == hash(Retry.from_json(retry.to_json(), on=(OSError,)))


def test_exceptions_decide_whether_to_try_again() -> None:
    retry = Retry(on=(OSError, LookupError), give_up_on=(KeyError,))
    assert retry.wants(ConnectionError())
    assert retry.wants(IndexError())
    assert not retry.wants(KeyError())
    assert not retry.wants(ValueError())


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"attempts": True},
        {"attempts": 2.5},
        {"attempts": 10**9},
        {"base": -1},
        {"base": "5"},
        {"base": 10**12},
        {"cap": float("nan")},
        {"factor": 0.5},
        {"factor": float("nan")},
        {"jitter": 1},
        {"on": ("ValueError",)},
        {"give_up_on": 5},
    ],
)
def test_numbers_that_cannot_work_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Retry(**wrong)


@pytest.mark.parametrize("stored", [[], 5, "x"])
def test_a_foreign_stored_retry_is_refused(stored: Any) -> None:
    with pytest.raises(ConfigurationError, match="no stored Retry"):
        Retry.from_json(stored)


def test_a_stored_retry_of_a_newer_version_is_read_without_what_it_added() -> None:
    assert Retry.from_json({"attempts": 4, "on": ["builtins.Exception"]}) == Retry(4)


def test_snooze_and_cancel_carry_what_they_mean() -> None:
    assert Snooze(timedelta(minutes=1)).delay_us == 60 * SECOND
    assert Cancel("gone").reason == "gone"
    with pytest.raises(ValueError, match="negative"):
        Snooze(-1)
