"""What happens when clocks change, probe by probe: other schedulers get one or the other of these wrong."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from onebeat.timing.clock import to_us
from onebeat.timing.triggers import Cron

BERLIN, NEW_YORK, LORD_HOWE, APIA = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia"

# name, rule, zone, just after, the next fires (local, with offset)
PROBES = [
    ("gap", "30 2 * * *", BERLIN, "2026-03-29T00:00+01:00", ["2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"]),
    ("gap-two-times", "0,30 2 * * *", BERLIN, "2026-03-29T00:00+01:00",
     ["2026-03-29T03:00+02:00", "2026-03-30T02:00+02:00"]),
    ("gap-wildcard-none", "*/15 2 * * *", BERLIN, "2026-03-29T00:00+01:00", ["2026-03-30T02:00+02:00"]),
    ("gap-every-two-hours", "0 */2 * * *", BERLIN, "2026-03-29T00:00+01:00", ["2026-03-29T04:00+02:00"]),
    ("fold-once", "30 2 * * *", BERLIN, "2026-10-25T00:00+02:00",
     ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]),
    ("fold-asked-in-the-second-pass", "30 2 * * *", BERLIN, "2026-10-25T02:10+01:00", ["2026-10-26T02:30+01:00"]),
    ("fold-half-hours", "*/30 * * * *", BERLIN, "2026-10-25T01:45+02:00",
     ["2026-10-25T02:00+02:00", "2026-10-25T02:30+02:00", "2026-10-25T02:00+01:00", "2026-10-25T02:30+01:00",
      "2026-10-25T03:00+01:00"]),
    ("fold-hours", "0 * * * *", BERLIN, "2026-10-25T01:45+02:00",
     ["2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00", "2026-10-25T03:00+01:00"]),
    ("new-york-gap", "30 2 * * *", NEW_YORK, "2026-03-08T00:00-05:00",
     ["2026-03-08T03:00-04:00", "2026-03-09T02:30-04:00"]),
    ("new-york-fold", "30 1 * * *", NEW_YORK, "2026-11-01T00:00-04:00",
     ["2026-11-01T01:30-04:00", "2026-11-02T01:30-05:00"]),
    ("new-york-second-pass", "30 1 * * *", NEW_YORK, "2026-11-01T01:05-05:00", ["2026-11-02T01:30-05:00"]),
    ("lord-howe-half-hour-gap", "15 2 * * *", LORD_HOWE, "2026-10-04T00:00+10:30",
     ["2026-10-04T02:30+11:00", "2026-10-05T02:15+11:00"]),
    ("lord-howe-half-hour-fold", "45 1 * * *", LORD_HOWE, "2026-04-05T00:00+11:00",
     ["2026-04-05T01:45+11:00", "2026-04-06T01:45+10:30"]),
    ("lord-howe-fold-wildcard", "30 * * * *", LORD_HOWE, "2026-04-05T01:00+11:00",
     ["2026-04-05T01:30+11:00", "2026-04-05T01:30+10:30", "2026-04-05T02:30+10:30"]),
    ("lord-howe-none-lost", "6 */6 * * *", LORD_HOWE, "2026-10-04T01:22+10:30", ["2026-10-04T06:06+11:00"]),
    ("apia-lost-day-is-made-up", "0 12 * * *", APIA, "2011-12-29T00:00-10:00",
     ["2011-12-29T12:00-10:00", "2011-12-31T00:00+14:00", "2011-12-31T12:00+14:00"]),
    ("apia-date-that-was-not", "0 12 30 12 *", APIA, "2011-12-29T00:00-10:00",
     ["2011-12-31T00:00+14:00", "2012-12-30T12:00+14:00"]),
    ("apia-half-hours", "*/30 * * * *", APIA, "2011-12-29T23:15-10:00",
     ["2011-12-29T23:30-10:00", "2011-12-31T00:00+14:00", "2011-12-31T00:30+14:00"]),
    ("casablanca-fold", "30 2 * * *", "Africa/Casablanca", "2026-02-15T00:00+01:00",
     ["2026-02-15T02:30+01:00", "2026-02-16T02:30+00:00"]),
    ("casablanca-gap", "30 2 * * *", "Africa/Casablanca", "2026-03-22T00:00+00:00",
     ["2026-03-22T03:00+01:00", "2026-03-23T02:30+01:00"]),
    ("cairo-midnight-gap-keeps-the-day", "0 0 * * *", "Africa/Cairo", "2026-04-23T12:00+02:00",
     ["2026-04-24T01:00+03:00", "2026-04-25T00:00+03:00"]),
    ("beirut-midnight-gap-keeps-the-day", "30 0 * * *", "Asia/Beirut", "2026-03-28T12:00+02:00",
     ["2026-03-29T01:00+03:00", "2026-03-30T00:30+03:00"]),
    ("santiago-fold-before-midnight", "30 23 * * *", "America/Santiago", "2026-04-04T12:00-03:00",
     ["2026-04-04T23:30-03:00", "2026-04-05T23:30-04:00"]),
    ("troll-two-hours-gap", "30 1 * * *", "Antarctica/Troll", "2026-03-29T00:00+00:00",
     ["2026-03-29T03:00+02:00", "2026-03-30T01:30+02:00"]),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "zone", "after", "expected"), [p[1:] for p in PROBES], ids=[p[0] for p in PROBES])
def test_fires_around_a_change_of_clocks(rule: str, zone: str, after: str, expected: list[str]) -> None:
    cron = Cron(rule, zone)
    found = cron.upcoming(len(expected), after=datetime.fromisoformat(after))
    assert [moment.isoformat(timespec="minutes") for moment in found] == expected


@pytest.mark.parametrize(("rule", "zone", "after", "expected"), [p[1:] for p in PROBES], ids=[p[0] for p in PROBES])
def test_looking_back_finds_the_same_fires(rule: str, zone: str, after: str, expected: list[str]) -> None:
    cron = Cron(rule, zone)
    moment = datetime.fromisoformat(expected[-1]) + timedelta(microseconds=1)
    found = []
    for _ in expected:
        back = cron.previous_before(moment)
        assert back is not None
        found.append(back.isoformat(timespec="minutes"))
        moment = back
    assert found[::-1] == expected


@pytest.mark.parametrize(
    ("dst", "expected"),
    [
        ("vixie", ["2026-03-28T02:30+01:00", "2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"]),
        ("skip_missing", ["2026-03-28T02:30+01:00", "2026-03-30T02:30+02:00", "2026-03-31T02:30+02:00"]),
        ("run_both", ["2026-03-28T02:30+01:00", "2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"]),
    ],
)
def test_each_mode_has_its_answer_to_a_gap(dst: str, expected: list[str]) -> None:
    found = Cron("30 2 * * *", BERLIN, dst=dst).upcoming(3, after=datetime.fromisoformat("2026-03-28T00:00+01:00"))
    assert [moment.isoformat(timespec="minutes") for moment in found] == expected


@pytest.mark.parametrize(
    ("dst", "expected"),
    [
        ("vixie", ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]),
        ("skip_missing", ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]),
        ("run_both", ["2026-10-25T02:30+02:00", "2026-10-25T02:30+01:00", "2026-10-26T02:30+01:00"]),
    ],
)
def test_each_mode_has_its_answer_to_a_fold(dst: str, expected: list[str]) -> None:
    start = datetime.fromisoformat("2026-10-25T00:00+02:00")
    found = Cron("30 2 * * *", BERLIN, dst=dst).upcoming(len(expected), after=start)
    assert [moment.isoformat(timespec="minutes") for moment in found] == expected


def test_keys_are_wall_times_for_fixed_rules_and_instants_for_wildcards() -> None:
    before_fold = to_us(datetime.fromisoformat("2026-10-25T00:00+02:00"))
    both = Cron("30 2 * * *", BERLIN, dst="run_both").upcoming_fires(2, after=before_fold)
    assert [fire.key for fire in both] == ["2026-10-25T02:30[Europe/Berlin]", "2026-10-25T02:30[Europe/Berlin];2"]
    wild = Cron("0 * * * *", BERLIN).upcoming_fires(1, after=before_fold)[0]
    assert wild.key == str(wild.at)
    with_seconds = Cron("15 30 2 * * *", BERLIN).upcoming_fires(1, after=before_fold)[0]
    assert with_seconds.key == "2026-10-25T02:30:15[Europe/Berlin]"
    assert Cron("0 30 2 * * *", BERLIN).upcoming_fires(1, after=before_fold)[0].key == both[0].key


def test_a_made_up_fire_keeps_the_name_of_the_time_that_was_skipped() -> None:
    """Two workers with different zone data, one with the gap and one without, then name the same fire."""
    before_gap = to_us(datetime.fromisoformat("2026-03-29T00:00+01:00"))
    assert Cron("30 2 * * *", BERLIN).upcoming_fires(1, after=before_gap)[0].key == "2026-03-29T02:30[Europe/Berlin]"
    assert Cron("0 2,3 * * *", BERLIN).upcoming_fires(1, after=before_gap)[0].key == "2026-03-29T03:00[Europe/Berlin]"


def test_the_preview_marks_gap_and_fold_fires() -> None:
    before_gap = to_us(datetime.fromisoformat("2026-03-28T12:00+01:00"))
    assert [fire.mark for fire in Cron("30 2 * * *", BERLIN).upcoming_fires(2, after=before_gap)] == ["gap", None]
    before_fold = to_us(datetime.fromisoformat("2026-10-25T01:00+02:00"))
    hours = Cron("30 * * * *", BERLIN).upcoming_fires(4, after=before_fold)
    assert [fire.mark for fire in hours] == [None, "fold", "fold", None]
    assert Cron("30 2 * * *", BERLIN).upcoming_fires(1, after=before_fold)[0].mark == "fold"
