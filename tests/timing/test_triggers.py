"""What holds for every trigger: strictly after, memoryless, the same forward and backward, equal after JSON."""

from __future__ import annotations

import json
import random
import re
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st

from onebeat.errors import InvalidCron, InvalidTrigger
from onebeat.model.changes import first_fire
from onebeat.timing.any_of import AnyOf
from onebeat.timing.calendars import Calendar, Combined, Daily, Dates, Weekdays
from onebeat.timing.clock import DAY, SECOND, from_us, to_us
from onebeat.timing.periods import Days, Months, Weeks
from onebeat.timing.rule import Between, Excluding, Rule
from onebeat.timing.triggers import At, Cron, Every, load
from tests.timing.oracle import random_rule

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Africa/Casablanca",
    "Asia/Gaza",
]
MOMENTS = st.datetimes(datetime(2000, 1, 1), datetime(2037, 12, 31), timezones=st.just(UTC))
DSTS = st.sampled_from(["vixie", "skip_missing", "run_both"])
pytestmark = pytest.mark.timeout(600)  # a few seconds each, on a machine that may be busy
PROPERTY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])


@st.composite
def crons(draw: st.DrawFn) -> Rule:
    rule = random_rule(random.Random(draw(st.integers(0, 1 << 32))))
    try:
        return Cron(rule.text, draw(st.sampled_from(ZONES)), dst=draw(DSTS))
    except InvalidCron:
        assume(False)
        raise


CALENDARS: st.SearchStrategy[Calendar] = st.sampled_from(
    [
        Weekdays("sat", "sun"),
        Dates(date(2026, 12, 24), (date(2026, 12, 27), date(2027, 1, 2))),
        Daily("22:00", "06:00"),
        Weekdays("sun") | Daily("12:00", "13:00"),
    ]
)


@st.composite
def plain(draw: st.DrawFn) -> Rule:
    kind = draw(st.integers(0, 5))
    zone = draw(st.sampled_from(ZONES))
    at = draw(st.sampled_from(["00:00", "02:30", "09:00:30", "23:59"]))
    if kind == 0:
        return Every(draw(st.integers(1, 10**6)), draw(st.none() | MOMENTS))
    if kind == 1:
        return At(draw(MOMENTS))
    if kind == 2:
        day: Any = draw(st.sampled_from([1, 15, 29, 30, 31, "last"]))
        n = draw(st.sampled_from([1, 2, 3, 5, 6, 12, 18]))
        month = draw(st.integers(1, 12) | st.dates(date(1960, 1, 1), date(2040, 1, 1)))
        return Months(n, day=day, at=at, timezone=zone, first=month, dst=draw(DSTS))
    if kind == 3:
        on = draw(st.sampled_from([("mon",), ("fri", "tue"), ("sat", "sun", "wed")]))
        first = draw(st.none() | st.dates(date(1960, 1, 1), date(2040, 1, 1)))
        return Weeks(draw(st.integers(1, 9)), on=on, at=at, timezone=zone, first=first, dst=draw(DSTS))
    if kind == 4:
        day_one = draw(st.none() | st.dates(date(1960, 1, 1), date(2040, 1, 1)))
        return Days(draw(st.integers(1, 40)), at=at, timezone=zone, first=day_one, dst=draw(DSTS))
    return draw(crons())


@st.composite
def triggers(draw: st.DrawFn) -> Rule:
    rule = draw(plain())
    if draw(st.integers(0, 2)) == 0:
        rule = AnyOf(rule, *draw(st.lists(plain(), min_size=1, max_size=3)))
    if draw(st.booleans()):
        a, b = sorted([draw(MOMENTS), draw(MOMENTS)])
        rule = rule.between(a, b) if draw(st.booleans()) else rule.between(end=b)
    if draw(st.booleans()):
        rule = rule.excluding(draw(CALENDARS), draw(st.sampled_from(ZONES)))
    return rule


@PROPERTY
@given(triggers(), MOMENTS)
def test_the_next_instant_lies_strictly_after(trigger: Rule, moment: datetime) -> None:
    following = trigger.next_after(moment)
    assert following is None or following.astimezone(UTC) > moment


@PROPERTY
@given(triggers(), MOMENTS, st.floats(0, 1))
def test_the_next_instant_does_not_depend_on_when_between_it_was_asked(
    trigger: Rule, moment: datetime, part: float
) -> None:
    at = to_us(moment)
    following = trigger.next_fire(at)
    assume(following is not None)
    assert following is not None
    between = at + int((following.at - 1 - at) * part)
    assert trigger.next_fire(between) == following


@PROPERTY
@given(triggers(), MOMENTS)
def test_backward_and_forward_are_the_same_road(trigger: Rule, moment: datetime) -> None:
    at = to_us(moment)
    following, back = trigger.next_fire(at), trigger.previous_fire(at)
    if following is not None:
        before = trigger.previous_fire(following.at)
        assert before is None or before.at <= at
        assert trigger.previous_fire(following.at + 1) == following
    if back is not None:
        assert back.at < at
        assert trigger.next_fire(back.at - 1) == back
        after = trigger.next_fire(back.at)
        assert after is None or after.at >= at


@PROPERTY
@given(triggers(), MOMENTS)
def test_upcoming_is_repeated_next_after_and_keys_never_repeat(trigger: Rule, moment: datetime) -> None:
    listed = trigger.upcoming(5, after=moment)
    walked: list[datetime] = []
    here: datetime | None = moment
    while len(walked) < 5 and (here := trigger.next_after(here or moment)) is not None:
        walked.append(here)
    assert [to_us(m) for m in listed] == [to_us(m) for m in walked]
    keys = [fire.key for fire in trigger.upcoming_fires(5, after=to_us(moment))]
    assert len(set(keys)) == len(keys)


@PROPERTY
@given(triggers(), MOMENTS)
def test_json_brings_back_an_equal_trigger(trigger: Rule, moment: datetime) -> None:
    text = json.dumps(trigger.to_json(), sort_keys=True)
    loaded = load(json.loads(text))
    assert loaded == trigger
    assert json.dumps(loaded.to_json(), sort_keys=True) == text
    assert hash(loaded) == hash(trigger)
    assert loaded.next_fire(to_us(moment)) == trigger.next_fire(to_us(moment))
    assert loaded.describe() == trigger.describe()


@PROPERTY
@given(st.lists(triggers(), min_size=1, max_size=4), MOMENTS)
def test_a_union_has_each_fire_of_its_parts_once(parts: list[Rule], moment: datetime) -> None:
    at, until = to_us(moment), to_us(moment) + 300 * DAY
    union = AnyOf(*parts)
    ends = [fires[-1].at for part in parts if len(fires := part.upcoming_fires(30, after=at)) == 30]
    until = min([*ends, until])
    keys: dict[int, list[str]] = {}
    for part in union.parts:
        for fire in part.fires_after(at, until):
            keys.setdefault(fire.at, []).append(fire.key)
    expected = [(instant, min(found)) for instant, found in sorted(keys.items())]
    assert [fire[:2] for fire in union.fires_after(at, until)] == expected
    assert [fire[:2] for fire in union.upcoming_fires(len(expected), after=at)] == expected
    assert union.count(at, until) == len(expected)
    back, found = until + 1, []
    while (last := union.previous_fire(back)) is not None and last.at > at:
        found.append(last[:2])
        back = last.at
    assert found[::-1] == expected


@PROPERTY
@given(plain(), MOMENTS, st.integers(0, 40 * 86_400))
def test_counting_agrees_with_visiting_each(trigger: Rule, moment: datetime, seconds: int) -> None:
    at = to_us(moment)
    following = trigger.upcoming_fires(2, after=at)
    if len(following) == 2 and (following[1].at - following[0].at) < 600 * SECOND:
        seconds //= 40
    until = at + seconds * SECOND
    assert trigger.count(at, until) == sum(1 for _ in trigger.fires_after(at, until))


# ── one by one ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_every_is_anchored_and_does_not_drift() -> None:
    assert Every(7).next_fire(0) == Every(7, datetime(1970, 1, 1, tzinfo=UTC)).next_fire(0)
    anchored = Every(hours=2, anchor=datetime(2026, 1, 1, 0, 5, tzinfo=UTC))
    found = anchored.upcoming(2, after=datetime(2025, 12, 31, 23, 0, tzinfo=UTC))
    assert [f"{moment:%H:%M}" for moment in found] == ["00:05", "02:05"]
    assert Every(0.5).next_fire(SECOND) == (1_500_000, "1500000", None)
    assert Every(timedelta(minutes=5)) == Every(minutes=5) == Every(300)


@pytest.mark.parametrize("wrong", [0, -1, 0.01, float("nan"), float("inf"), True, "5", 10**12, None])
def test_an_interval_that_cannot_work_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidTrigger, match="Every"):
        Every(wrong)


def test_an_interval_is_given_in_one_way() -> None:
    with pytest.raises(InvalidTrigger, match="not both"):
        Every(5, minutes=1)


@pytest.mark.parametrize("wrong", [datetime(2026, 1, 1), "2026-01-01", None, 5])
def test_at_takes_an_aware_moment(wrong: Any) -> None:
    with pytest.raises(InvalidTrigger, match="At"):
        At(wrong)


def test_the_end_of_time_is_none_and_no_error() -> None:
    edge = datetime(9999, 12, 31, 23, 59, tzinfo=UTC)
    dawn = datetime(1, 1, 1, tzinfo=UTC)
    for rule in (Cron("0 0 29 2 *", "Europe/Berlin"), Every(days=30), Months(12), Weeks(5), Cron("* * * * * *")):
        assert rule.next_after(edge) is None
        assert rule.previous_before(dawn) is None
        assert rule.next_after(dawn) is not None
        assert rule.previous_before(edge) is not None


@PROPERTY
@given(triggers(), MOMENTS)
def test_a_trigger_matches_its_fires_and_nothing_beside_them(trigger: Rule, moment: datetime) -> None:
    following = trigger.next_after(moment)
    assert trigger.matches(moment) == (trigger.previous_before(moment + timedelta(microseconds=1)) == moment)
    if following is not None:
        assert trigger.matches(following)
        assert not trigger.matches(following + timedelta(microseconds=1))


def test_naive_moments_are_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        Cron("* * * * *").next_after(datetime(2026, 1, 1))


def test_months_end_on_their_last_day_and_say_so() -> None:
    rule = Months(day=31, at="09:00", timezone="Europe/Berlin")
    found = rule.upcoming(4, after=datetime(2026, 1, 1, tzinfo=UTC))
    assert [f"{moment:%m-%d %H:%M}" for moment in found] == ["01-31 09:00", "02-28 09:00", "03-31 09:00", "04-30 09:00"]
    assert "last day" in rule.describe()
    assert Months(day="last").upcoming(2, after=datetime(2028, 2, 1, tzinfo=UTC))[0].day == 29


def test_months_are_counted_from_january_or_from_the_month_named() -> None:
    start = datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert [m.month for m in Months(3).upcoming(4, after=start)] == [4, 7, 10, 1]
    assert [m.month for m in Months(3, first=2).upcoming(4, after=start)] == [2, 5, 8, 11]
    assert Months(3, first=2) == Months(3, first=11)


def test_months_count_from_the_year_named_and_say_so() -> None:
    start = datetime(2026, 1, 1, 12, tzinfo=UTC)
    rule = Months(24, first=date(2027, 4, 9))
    assert [f"{m:%Y-%m}" for m in rule.upcoming(2, after=start)] == ["2027-04", "2029-04"]
    assert rule.previous_before(start) == datetime(2025, 4, 1, tzinfo=UTC)
    assert rule == Months(24, first=date(2001, 4, 1)) != Months(24, first=date(2028, 4, 1))
    for n in (1, 2, 3, 5, 7, 18, 24):
        rule = Months(n, first=date(2027, 4, 1), day=3)
        named = re.search(r"counted from (\w+ \d{4})", rule.summary())
        assert (named is None) == (12 % n == 0)
        if named is not None:
            assert rule.matches(datetime.strptime(f"3 {named[1]}", "%d %B %Y").replace(tzinfo=UTC))
        assert rule.matches(datetime(2027, 4, 3, tzinfo=UTC))
        assert rule.with_timezone("Asia/Tokyo").with_timezone("UTC").summary() == rule.summary().replace(
            "UTC", "Asia/Tokyo"
        )


def test_a_month_with_its_year_is_not_misread_by_a_version_that_knows_only_months() -> None:
    stored = Months(24, first=date(2027, 4, 1)).to_json()
    assert stored["first"] > 12  # which such a version refuses
    assert Months(24, first=date(2028, 4, 1)).to_json()["first"] == 4  # and this it reads as it is meant
    with pytest.raises(InvalidTrigger, match="not 1 to 24"):
        load(stored | {"first": 25})


def test_days_are_counted_from_the_date_named_on_the_wall() -> None:
    start = datetime(2026, 3, 27, 12, tzinfo=UTC)
    rule = Days(2, at="02:30", timezone="Europe/Berlin", first=date(2026, 3, 29))
    found = [m.isoformat(timespec="minutes") for m in rule.upcoming(2, after=start)]
    assert found == ["2026-03-29T03:00+02:00", "2026-03-31T02:30+02:00"]
    assert rule.next_fire(to_us(start)).key == "2026-03-29T02:30[Europe/Berlin]"  # type: ignore[union-attr]  # it has one
    assert rule == Days(2, at=time(2, 30), timezone="Europe/Berlin", first=date(2026, 4, 2))
    named = re.search(r"counted from (\S+), at 02:30", rule.summary())
    assert named is not None
    assert (date.fromisoformat(named[1]) - date(2026, 3, 29)).days % 2 == 0
    assert Days(at="09:00").summary() == "every day at 09:00 in UTC"
    assert Days(at="09:00").upcoming_fires(9, after=0) == Cron("0 9 * * *").upcoming_fires(9, after=0)


def test_a_union_is_a_value_of_parts_each_with_its_own_zone() -> None:
    berlin, york = Cron("30 2 * * *", "Europe/Berlin"), Cron("30 2 * * *", "America/New_York", dst="run_both")
    both = AnyOf(berlin, york)
    assert AnyOf(berlin, AnyOf(york, berlin)) == both
    assert (both.timezone, AnyOf(berlin, Every(60)).timezone) == (None, "Europe/Berlin")
    notes = both.lint(after=datetime(2026, 3, 1, tzinfo=UTC))
    assert [note.split(", in ")[1].split(":")[0] for note in notes] == ["Europe/Berlin", "Europe/Berlin", york.timezone]
    open_part = AnyOf(berlin, Cron("H 9 * * *")).excluding(Weekdays("sun"))
    settled = open_part.with_timezone("Asia/Tokyo").bind("report")
    assert settled.with_timezone("UTC") == settled
    assert isinstance(settled, Excluding)
    assert settled.rule == AnyOf(berlin, Cron("H 9 * * *", "Asia/Tokyo", seed="report"))
    assert settled.zones == ("Asia/Tokyo", "Europe/Berlin")
    with pytest.raises(InvalidTrigger, match=r"lies in the past.*lies in the past"):
        first_fire(AnyOf(At(from_us(0)), At(from_us(1))), 100 * DAY)
    assert first_fire(AnyOf(Every(3600), At(from_us(90 * SECOND))), 100 * SECOND) == 90 * SECOND


def test_weeks_are_counted_from_the_week_named() -> None:
    rule = Weeks(2, on=("thu", "Monday"), at="09:30", first=date(2026, 1, 7))
    found = rule.upcoming(4, after=datetime(2026, 1, 1, tzinfo=UTC))
    assert [f"{m:%m-%d}" for m in found] == ["01-05", "01-08", "01-19", "01-22"]
    assert rule == Weeks(2, on=("mon", "thu"), at=time(9, 30), first=date(2026, 1, 19))


def test_wall_times_of_months_and_weeks_meet_clock_changes_as_cron_does() -> None:
    start = datetime(2026, 3, 28, 12, tzinfo=UTC)
    weekly = Weeks(on="sun", at="02:30", timezone="Europe/Berlin")
    assert weekly.next_after(start) == Cron("30 2 * * 0", "Europe/Berlin").next_after(start)
    assert weekly.next_fire(to_us(start)) == Cron("30 2 * * 0", "Europe/Berlin").next_fire(to_us(start))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Months(0),
        lambda: Months(day=32),
        lambda: Months(day="first"),  # type: ignore[arg-type]
        lambda: Months(at="25:00"),
        lambda: Months(at="09:00+02:00"),
        lambda: Months(first=13),
        lambda: Months(first=True),
        lambda: Months(first="2027"),  # type: ignore[arg-type]
        lambda: Days(0),
        lambda: Days(first=3),  # type: ignore[arg-type]
        lambda: Days(at="24:00"),
        lambda: AnyOf(),
        lambda: AnyOf("0 9 * * *"),  # type: ignore[arg-type]
        lambda: AnyOf(*(Every(n) for n in range(1, 66))),
        lambda: Weeks(1, on="someday"),
        lambda: Weeks(1, on="m"),
        lambda: Weeks(1, on=()),
        lambda: Weeks(True),
        lambda: Weekdays(),
        lambda: Weekdays("mon", "tue", "wed", "thu", "fri", "sat", "sun"),
        lambda: Daily("09:00", "09:00"),
        lambda: Dates(),
        lambda: Dates((date(2026, 2, 1), date(2026, 1, 1))),
        lambda: Dates(datetime(2026, 1, 1)),
        lambda: Every(5).between(datetime(2026, 1, 1)),
        lambda: Every(5).between(datetime(2027, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)),
        lambda: Every(5).excluding({date(2026, 1, 1)}),  # type: ignore[arg-type]
        lambda: Every(5).excluding(Weekdays("sun"), "Mars/Olympus"),
    ],
)
def test_rules_that_cannot_work_are_refused(make: Any) -> None:
    with pytest.raises(InvalidTrigger):
        make()


@pytest.mark.parametrize(
    "stored",
    [
        None,
        [],
        {},
        {"kind": "os.system"},
        {"kind": ["cron"]},
        {"kind": "cron"},
        {"kind": "cron", "dialect": 2, "expr": "* * * * *", "timezone": None, "dst": "vixie"},
        {"kind": "every", "interval_us": "x", "anchor_us": 0},
        {"kind": "at", "at_us": 10**30},
        {"kind": "months", "n": 1},
        {"kind": "any_of", "parts": []},
        {"kind": "any_of", "parts": [{"kind": "moon"}]},
        {"kind": "any_of"},
        Days(2).to_json() | {"phase": -1},
        Days(2).to_json() | {"phase": "1"},
        {"kind": "weeks", "n": 1, "on": [9], "at": "00:00", "timezone": None, "phase": 0, "dst": "vixie"},
        {"kind": "between", "rule": {"kind": "x"}, "start_us": None, "end_us": None},
        {"kind": "excluding", "rule": Every(5).to_json(), "calendar": {"kind": "dates", "ranges": 5}, "timezone": None},
    ],
)
def test_a_stored_form_that_is_foreign_or_broken_is_refused(stored: Any) -> None:
    with pytest.raises(InvalidTrigger):
        load(stored)


def test_a_stored_form_that_is_nested_without_end_is_refused() -> None:
    stored: dict[str, Any] = Every(5).to_json()
    calendar: dict[str, Any] = Weekdays("sun").to_json()
    for _ in range(5_000):
        stored = {"kind": "between", "rule": stored, "start_us": None, "end_us": None}
        calendar = {"kind": "any", "parts": [calendar]}
    with pytest.raises(InvalidTrigger, match="too deeply"):
        load(stored)
    with pytest.raises(InvalidTrigger, match="too deeply"):
        load({"kind": "excluding", "rule": Every(5).to_json(), "calendar": calendar, "timezone": None})


# ── calendars ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_business_days_leave_out_weekends_and_holidays_of_the_package() -> None:
    import holidays

    german = Dates.of(holidays.country_holidays("DE", subdiv="BE"), years=range(2026, 2029))
    rule = Cron("0 9 * * *", "Europe/Berlin").excluding(Weekdays("sat", "sun") | german)
    found = rule.upcoming(4, after=datetime(2026, 12, 23, 12, tzinfo=UTC))
    assert [f"{moment:%m-%d}" for moment in found] == ["12-24", "12-28", "12-29", "12-30"]
    assert load(rule.to_json()) == rule


def test_a_calendar_of_ones_own_works_and_says_that_it_cannot_be_stored() -> None:
    class FirstOfMonth:
        def excluded_period(self, wall: datetime) -> tuple[datetime, datetime] | None:
            midnight = wall.replace(hour=0, minute=0, second=0, microsecond=0)
            return (midnight, midnight + timedelta(days=1)) if wall.day == 1 else None

        def summary(self) -> str:
            return "the first of each month"

        def to_json(self) -> dict[str, Any]:
            raise InvalidTrigger("this calendar cannot be stored")

    rule = Cron("0 9 * * *").excluding(FirstOfMonth())
    assert rule.upcoming(1, after=datetime(2026, 1, 31, 12, tzinfo=UTC))[0].day == 2
    with pytest.raises(InvalidTrigger, match="cannot be stored"):
        rule.to_json()


def test_a_calendar_reads_the_wall_of_the_rules_zone() -> None:
    weekend = Weekdays("sat", "sun")
    sunday_evening = datetime(2026, 1, 4, 22, 30, tzinfo=UTC)  # 23:30 in Berlin
    assert Every(hours=1).excluding(weekend, "Europe/Berlin").next_after(sunday_evening) == datetime(
        2026, 1, 5, 0, 0, tzinfo=ZoneInfo("Europe/Berlin")
    )
    filled_in = Every(hours=1).excluding(weekend).with_timezone("Europe/Berlin")
    assert filled_in == Every(hours=1).excluding(weekend, "Europe/Berlin")
    assert Every(hours=1).excluding(weekend).next_after(sunday_evening) == datetime(2026, 1, 5, 0, 0, tzinfo=UTC)


@PROPERTY
@given(CALENDARS, st.sampled_from(ZONES), MOMENTS)
def test_excluding_equals_leaving_out_one_by_one(calendar: Any, zone: str, moment: datetime) -> None:
    rule = Every(minutes=37)
    excluding = rule.excluding(calendar, zone)
    tz = ZoneInfo(zone)
    until = to_us(moment) + 4 * DAY
    expected = [
        fire.at
        for fire in rule.fires_after(to_us(moment), until)
        if calendar.excluded_period(from_us(fire.at, tz).replace(tzinfo=None)) is None
    ]
    assert [fire.at for fire in excluding.fires_after(to_us(moment), until)] == expected
    backward = []
    back = excluding.previous_fire(until + 1)
    while back is not None and back.at > to_us(moment):
        backward.append(back.at)
        back = excluding.previous_fire(back.at)
    assert backward[::-1] == expected


def test_a_window_that_begins_or_ends_in_a_change_of_clocks_hides_nothing_beyond_it() -> None:
    quarters = Every(minutes=15)
    ends_in_gap = quarters.excluding(Daily("01:00", "02:30"), "Europe/Berlin")
    assert ends_in_gap.next_after(datetime(2026, 3, 29, 0, 0, tzinfo=UTC)) == datetime(2026, 3, 29, 1, 0, tzinfo=UTC)
    begins_in_fold = quarters.excluding(Daily("02:30", "04:00"), "Europe/Berlin")
    second_pass = datetime(2026, 10, 25, 1, 15, tzinfo=UTC)  # 02:15 for the second time
    back = begins_in_fold.previous_before(datetime(2026, 10, 25, 2, 0, tzinfo=UTC))
    assert back is not None
    assert to_us(back) == to_us(second_pass)  # a repeated wall time equals nothing in another zone, says PEP 495


def test_a_far_fire_is_found_where_the_calendar_leaves_it_in() -> None:
    """Leap days on a Monday lie up to forty years apart; a one-off may lie further away."""
    but_monday = Weekdays("tue", "wed", "thu", "fri", "sat", "sun")
    leap_days = Cron("0 9 29 2 *").excluding(but_monday)
    found = leap_days.next_after(datetime(2072, 3, 1, tzinfo=UTC))
    assert found == datetime(2112, 2, 29, 9, tzinfo=UTC)
    assert leap_days.previous_before(found) == datetime(2072, 2, 29, 9, tzinfo=UTC)
    far = datetime(2090, 1, 2, tzinfo=UTC)  # a Monday
    assert At(far).excluding(Weekdays("sun")).next_after(datetime(2026, 1, 1, tzinfo=UTC)) == far


def test_the_zone_of_excluding_is_the_zone_of_the_rule() -> None:
    rule = Cron("0 9 * * *").excluding(Weekdays("sun"), "Europe/Berlin")
    assert rule == Cron("0 9 * * *", "Europe/Berlin").excluding(Weekdays("sun"))
    assert rule.with_timezone("UTC") is rule
    kept = Cron("0 9 * * *", "America/New_York").excluding(Weekdays("sun"), "Europe/Berlin")
    assert kept.timezone == "America/New_York"


def test_a_calendar_that_leaves_out_everything_ends_the_rule() -> None:
    nothing = Cron("0 12 * * *").excluding(Daily("11:00", "13:00"))
    assert nothing.next_after(datetime(2026, 1, 1, tzinfo=UTC)) is None
    assert nothing.previous_before(datetime(2026, 1, 1, tzinfo=UTC)) is None
    assert isinstance(Weekdays("sat") | Weekdays("sun") | Daily("1:00".zfill(5), "02:00"), Combined)


def test_zones_and_seeds_reach_through_to_the_inner_rule() -> None:
    rule = Cron("H 9 * * *").between(datetime(2026, 1, 1, tzinfo=UTC)).excluding(Weekdays("sun"))
    settled = rule.with_timezone("Europe/Berlin").bind("report")
    assert settled.timezone == "Europe/Berlin"
    assert isinstance(settled, Excluding)
    assert isinstance(settled.rule, Between)
    assert settled.rule.rule == Cron("H 9 * * *", "Europe/Berlin", seed="report")
    assert settled.with_timezone("UTC") is settled
    assert settled.bind("other") is settled
    assert settled.next_after(datetime(2026, 1, 2, tzinfo=UTC)) is not None


# ── words ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Cron("30 2 * * *"), "at 02:30 every day, in UTC"),
        (Cron("*/15 * * * *"), "every 15 minutes, in UTC"),
        (Cron("* * * * * *"), "every second, in UTC"),
        (Cron("0 9-17 * * 1-5"), "at minute 0 of hours 9 to 17 on Monday to Friday, in UTC"),
        (Cron("0 0 1,15 * 1"), "at 00:00 on days 1 and 15 and also on Monday, in UTC"),
        (Cron("0 0 */10 * 1"), "at 00:00 on days 1, 11, 21 and 31 if it is also Monday, in UTC"),
        (Cron("0 9 15W JAN,JUL *"), "at 09:00 on the working day nearest to day 15 in January and July, in UTC"),
        (Cron("0 0 * * FRI#2"), "at 00:00 on the second Friday of the month, in UTC"),
        (Cron("0 0 L-3 * *"), "at 00:00 on the day 3 before the last, in UTC"),
        (Every(minutes=5), "every 5 minutes"),
        (Every(60), "every minute"),
        (Weeks(2, on="mon"), "every 2 weeks on Monday at 00:00 in UTC"),
        (At(datetime(2027, 1, 1, tzinfo=UTC)), "once, at 2027-01-01 00:00:00 UTC"),
        (Every(60).between(end=datetime(2027, 1, 1, tzinfo=UTC)), "every minute, until 2027-01-01 00:00"),
        (Every(60).excluding(Weekdays("sun")), "every minute, except on Sundays"),
    ],
)
def test_rules_are_told_in_words(rule: Rule, words: str) -> None:
    assert words in rule.describe()


@pytest.mark.parametrize(
    ("expr", "note"),
    [
        ("*/7 * * * *", "uneven: the last one is 4"),
        ("0 */5 * * *", "uneven: the last one is 4"),
        ("* 9 * * *", "every minute of the hour"),
        ("*/5 * * * * *", "begin with the seconds"),
        ("0 0 1,15 * 1", "either matches"),
        ("0 0 */2 * 1", "only when both match"),
        ("0 0 30 2 1", "only the weekdays count"),
        ("0 0 31 * *", "L is the last day"),
        ("30 2 * * *", "02:30 does not exist on 2"),
        ("30 2 * * *", "it runs at 03:00 instead"),
        ("30 2 * * *", "comes twice on 2"),
        ("*/15 2 * * *", "it is left out"),
    ],
)
def test_what_may_surprise_is_noted(expr: str, note: str) -> None:
    assert note in " ".join(Cron(expr, "Europe/Berlin").lint())


@pytest.mark.parametrize("expr", ["0 9 * * *", "*/5 * * * *", "0 */6 * * *", "@weekly", "0 4 L * *", "0 9 * * 1-5"])
def test_ordinary_rules_have_nothing_to_note(expr: str) -> None:
    assert Cron(expr, "Europe/Berlin").lint() == ()


@pytest.mark.parametrize(
    "rule",
    [
        Weeks(on="sun", at="02:30", timezone="Europe/Berlin"),
        Months(day="last", at="02:30", timezone="Europe/Berlin", dst="skip_missing").between(end=None),
        Weeks(on="sun", at="02:30", timezone="Europe/Berlin").excluding(Weekdays("mon")),
    ],
)
def test_months_and_weeks_note_changes_of_clocks_too(rule: Rule) -> None:
    assert "comes twice on 2" in rule.describe() or "does not exist on 2" in rule.describe()
    assert Weeks(on="sun", at="04:30", timezone="Europe/Berlin").lint() == ()


def test_the_mode_changes_the_note() -> None:
    assert "both times" in Weeks(on="sun", at="02:30", timezone="Europe/Berlin", dst="run_both").describe()
    assert "left out" in " ".join(Cron("30 2 * * *", "Europe/Berlin", dst="skip_missing").lint())
    assert "both times" in " ".join(Cron("30 2 * * *", "Europe/Berlin", dst="run_both").lint())
