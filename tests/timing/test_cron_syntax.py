"""The dialect: what an expression means, and what is refused with the position of its fault."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from onebeat.errors import InvalidCron, InvalidTrigger
from onebeat.timing.cron_parser import parse
from onebeat.timing.triggers import Cron, load

START = datetime(2026, 1, 1, tzinfo=UTC)  # a Thursday


def days(expr: str, n: int, start: datetime = START - timedelta(seconds=1)) -> list[str]:
    return [f"{moment:%Y-%m-%d}" for moment in Cron(expr).upcoming(n, after=start)]


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        ("0 0 31 */2 *", ["2026-01-31", "2026-03-31", "2026-05-31", "2026-07-31", "2027-01-31"]),
        ("0 0 29 2 *", ["2028-02-29", "2032-02-29"]),
        ("0 0 1,15 * 1", ["2026-01-01", "2026-01-05", "2026-01-12", "2026-01-15", "2026-01-19"]),
        ("0 0 */2 * 1", ["2026-01-05", "2026-01-19", "2026-02-09"]),
        ("0 0 30 2 1", ["2026-02-02", "2026-02-09", "2026-02-16", "2026-02-23", "2027-02-01"]),
        ("59 23 L * *", ["2026-01-31", "2026-02-28", "2026-03-31"]),
        ("59 23 LW * *", ["2026-01-30", "2026-02-27", "2026-03-31"]),
        ("0 9 15W * *", ["2026-01-15", "2026-02-16", "2026-03-16", "2026-04-15", "2026-05-15"]),
        ("0 9 1W * *", ["2026-01-01", "2026-02-02", "2026-03-02", "2026-04-01", "2026-05-01", "2026-06-01",
                        "2026-07-01", "2026-08-03"]),
        ("0 9 31W * *", ["2026-01-30", "2026-03-31", "2026-05-29"]),
        ("0 9 L-3W * *", ["2026-01-28", "2026-02-25", "2026-03-27", "2026-04-27", "2026-05-28"]),
        ("0 9 L-30W * *", ["2026-01-01", "2026-03-02", "2026-05-01"]),
        ("0 9 L-0W * *\r\n", ["2026-01-30", "2026-02-27", "2026-03-31"]),
        ("@monthly\n", ["2026-01-01"]),
        ("0 9 L-3 * *", ["2026-01-28", "2026-02-25", "2026-03-28"]),
        ("0 0 * * 5L", ["2026-01-30", "2026-02-27", "2026-03-27"]),
        ("0 0 * * FRIL", ["2026-01-30", "2026-02-27"]),
        ("0 0 * * FRI#5", ["2026-01-30", "2026-05-29"]),
        ("0 0 29 2 1#1", ["2026-02-02", "2027-02-01", "2028-02-07", "2028-02-29"]),
        ("0 0 ? * MON", ["2026-01-05", "2026-01-12"]),
        ("0 0 * JAN-JAN *", ["2026-01-01", "2026-01-02"]),
        ("0 0 1 nov-FEB *", ["2026-01-01", "2026-02-01", "2026-11-01", "2026-12-01", "2027-01-01"]),
        ("0 0 * * 6-1", ["2026-01-03", "2026-01-04", "2026-01-05", "2026-01-10"]),
        ("0 0 * * 5-7", ["2026-01-02", "2026-01-03", "2026-01-04", "2026-01-09"]),
        ("0 0 * * 7-1", ["2026-01-04", "2026-01-05", "2026-01-11"]),
        ("0 0 * * fri-sun", ["2026-01-02", "2026-01-03", "2026-01-04", "2026-01-09"]),
        ("0 0 * * 0", ["2026-01-04", "2026-01-11"]),
        ("0 0 * * 7", ["2026-01-04", "2026-01-11"]),
        ("@daily", ["2026-01-01", "2026-01-02"]),
        ("@Weekly", ["2026-01-04", "2026-01-11"]),
        ("@monthly", ["2026-01-01", "2026-02-01"]),
        ("@yearly", ["2026-01-01", "2027-01-01"]),
        ("@annually", ["2026-01-01", "2027-01-01"]),
        ("@midnight", ["2026-01-01", "2026-01-02"]),
    ],
)  # fmt: skip
def test_days(expr: str, expected: list[str]) -> None:
    assert days(expr, len(expected)) == expected


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        ("*/5 * * * * *", ["00:00:05", "00:00:10"]),
        ("0-0 * * * *", ["01:00:00", "02:00:00"]),
        ("0 22-2 * * *", ["01:00:00", "02:00:00", "22:00:00", "23:00:00", "00:00:00"]),
        ("0 22-2/2 * * *", ["02:00:00", "22:00:00", "00:00:00"]),
        ("10-50/20 9 * * *", ["09:10:00", "09:30:00", "09:50:00"]),
        ("@hourly", ["01:00:00"]),
        ("\t 5   4\t* * * ", ["04:05:00"]),
        ("30,0 0 * * *", ["00:30:00", "00:00:00"]),
    ],
)
def test_times(expr: str, expected: list[str]) -> None:
    assert [f"{moment:%H:%M:%S}" for moment in Cron(expr).upcoming(len(expected), after=START)] == expected


def test_far_leap_days_are_found() -> None:
    assert days("0 0 29 2 *", 1, datetime(2097, 1, 1, tzinfo=UTC)) == ["2104-02-29"]


REFUSED = [
    ("0 0 30 2 *", 4, "never run"),
    ("0 0 31 2,4,6 *", 4, "never run"),
    ("0 0 */30 2 MON#5", None, "never run"),
    ("*/90 * * * *", 0, "step 90"),
    ("0 */25 * * *", 2, "step 25"),
    ("*/0 * * * *", 0, "step of 0"),
    ("59/15 * * * *", 0, "step needs a range"),
    ("10-5 * * * *", 0, "backward"),
    ("0 0 9-3 * *", 4, "backward"),
    ("60 * * * *", 0, "minute 60 is not within 0-59"),
    ("0 24 * * *", 2, "hour 24"),
    ("0 0 0 * *", 4, "day of the month 0"),
    ("0 0 * 13 *", 6, "month 13"),
    ("0 0 * * 8", 8, "day of the week 8"),
    ("0 0 * * L", 8, "5L or FRIL"),
    ("0 0 * * L5", 8, "5L or FRIL"),
    ("0 0 5L * *", 4, "day of the week"),
    ("0 0 * * 15W", 8, "belong to the day of the month"),
    ("0 0 * * 1#6", 8, "#1 to #5"),
    ("0 0 L-31 * *", 4, "at most 30"),
    ("? 0 * * *", 0, "day fields"),
    ("0 0 ?/2 * *", 4, "stands alone"),
    ("0 0 * FOO *", 6, "month"),
    ("0 0 * * MONDAY", 8, "day of the week"),
    ("R R * * *", 0, "H spreads"),
    ("R(0-5) * * * *", 0, "H spreads"),
    ("@reboot", 0, "when the application starts"),
    ("@every 5m", 0, "Every"),
    ("@fortnightly", 0, "@hourly"),
    ("@daily *", 0, "not one of"),
    ("", 0, "empty"),
    ("   ", 0, "empty"),
    ("* * * *", 6, "4 fields"),
    ("0 0 1 1 * 2099 2", 15, "seven fields"),
    ("0 0 1 1 * 2099", 10, "day of the week 2099"),
    ("1,,2 * * * *", 2, "empty list item"),
    (",1 * * * *", 0, "empty list item"),
    ("1-2-3 * * * *", 0, "nothing a minute"),
    ("-1 * * * *", 0, "nothing a minute"),
    ("1.5 * * * *", 1, "only ASCII"),
    ("00000 * * * *", 0, "four digits"),
    ("０ 0 * * *", 0, "only ASCII"),
    ("0 ٣ * * *", 2, "only ASCII"),
    ("0\u00a00 * * *", 1, "only ASCII"),
    ("0 0\u2028* * *", 3, "only ASCII"),
    ("0 0\n* * *", 3, "only ASCII"),
    ("0 0 * * *\x00", 9, "only ASCII"),
    ("H(9-3) * * * *", 0, "backward"),
    ("H(0-99) * * * *", 0, "minute 99"),
    ("H/0 * * * *", 0, "step of 0"),
    ("H/61 * * * *", 0, "step 61"),
]


@pytest.mark.parametrize(("expr", "position", "why"), REFUSED, ids=[repr(each[0]) for each in REFUSED])
def test_what_cannot_work_is_refused_with_its_position(expr: str, position: int | None, why: str) -> None:
    with pytest.raises(InvalidCron) as caught:
        Cron(expr)
    assert why in str(caught.value)
    if position is not None:
        assert caught.value.position == position


# ── H ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_h_must_be_bound_before_it_can_be_asked() -> None:
    cron = Cron("H H * * *")
    with pytest.raises(InvalidCron, match=r"bind"):
        cron.next_after(START)
    with pytest.raises(InvalidCron, match=r"bind"):
        cron.previous_before(START)
    assert cron.bind("report").next_after(START) is not None


def test_h_is_frozen_for_dialect_1() -> None:
    """These values are stored with schedules all over the world: a change here is a new dialect."""
    shown = [
        Cron(expr).bind("report").upcoming(1, after=START)[0]
        for expr in ("H H * * *", "H H H H *", "H(0-29)/10 H * * H")
    ]
    assert [f"{moment:%m-%d %H:%M}" for moment in shown] == ["01-01 11:30", "04-22 11:30", "01-07 11:00"]


def test_h_spreads_over_all_minutes_of_the_day() -> None:
    pairs = set()
    for n in range(20_000):
        columns = parse.__wrapped__("H H * * *", f"schedule-{n}")
        pairs.add((columns.minutes, columns.hours))
    assert len(pairs) == 1440


def test_h_with_a_step_keeps_the_step_and_moves_the_start() -> None:
    starts = set()
    for n in range(100):
        minutes = parse("H/15 * * * *", f"{n}").minutes
        values = [m for m in range(60) if minutes >> m & 1]
        assert [b - a for a, b in pairwise(values)] == [15, 15, 15]
        starts.add(values[0])
    assert starts == set(range(15))


def test_h_in_a_range_stays_in_it() -> None:
    for n in range(200):
        columns = parse("H(10-19) H(22-23) H(29-31) * *", f"{n}")
        assert columns.minutes & ~(((1 << 10) - 1) << 10) == 0
        assert columns.hours in (1 << 22, 1 << 23)


def test_bare_h_in_the_day_of_the_month_exists_in_every_month() -> None:
    assert {parse("0 0 H * *", f"{n}").days for n in range(500)} == {1 << day for day in range(1, 29)}


@pytest.mark.parametrize("seed", [5, b"x", ["x"]])
def test_a_seed_is_a_text(seed: Any) -> None:
    with pytest.raises(InvalidTrigger, match="name that spreads H"):
        Cron("H 9 * * *", seed=seed)
    with pytest.raises(InvalidTrigger, match="name that spreads H"):
        Cron("H 9 * * *").bind(seed)


def test_binding_survives_json_and_does_not_touch_other_rules() -> None:
    plain = Cron("0 9 * * *")
    assert plain.bind("x") is plain
    assert "seed" not in plain.to_json()
    bound = Cron("H 9 * * *", "Europe/Berlin").bind("a")
    assert bound.to_json()["seed"] == "a"
    assert load(bound.to_json()) == bound != Cron("H 9 * * *", "Europe/Berlin").bind("b")
    assert load(bound.to_json()).next_after(START) == bound.next_after(START)


def test_a_bound_rule_that_became_impossible_is_refused() -> None:
    assert {fault_of_bound(f"{n}") for n in range(50)} == {None, "never run"}


def fault_of_bound(seed: str) -> str | None:
    try:
        Cron("0 0 H(29-31) 2 *").bind(seed)
    except InvalidCron as error:
        return "never run" if "never run" in str(error) else str(error)
    return None


# ── zones and modes ───────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("zone", "hint"),
    [
        ("Europe/Berln", "Europe/Berlin"),
        ("berlin", "Europe/Berlin"),
        ("new york", "America/New_York"),
        ("../../etc/passwd", "IANA name"),
        ("/etc/localtime", "IANA name"),
        ("localtime", "there is no time zone"),
        ("posix/Europe/Berlin", "Europe/Berlin"),
        ("Europe", "there is no time zone"),
        ("", "IANA name"),
        ("x" * 10_000, "IANA name"),
        ("Europe/Berlin\x00", "there is no time zone"),
    ],
)
def test_unknown_zones_are_refused_with_the_nearest_name(zone: str, hint: str) -> None:
    with pytest.raises(InvalidTrigger, match=hint) as caught:
        Cron("0 9 * * *", zone)
    assert len(str(caught.value)) < 300


def test_an_unknown_mode_names_the_three() -> None:
    with pytest.raises(InvalidTrigger, match="'vixie', 'skip_missing', 'run_both'"):
        Cron("0 9 * * *", dst="both")
