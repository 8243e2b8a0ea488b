"""What rules and refusals say is true: summaries name the fires, and what they tell to write works as they claim."""

from __future__ import annotations

import random
import re
from datetime import UTC, date, datetime, timedelta
from time import process_time

import pytest

from onebeat.errors import InvalidCron, InvalidTrigger
from onebeat.model.changes import first_fire
from onebeat.timing.calendars import Daily, Weekdays
from onebeat.timing.clock import DAY as DAY_US, from_us, to_us
from onebeat.timing.cron_parser import FIELDS, parse
from onebeat.timing.rule import Rule
from onebeat.timing.triggers import At, Cron
from onebeat.timing.zones import zone
from tests.timing import words
from tests.timing.oracle import MONTHS, column, day_of_month, day_of_week, length, random_rule

DAY = timedelta(days=1)
MOST_COST = 1.0  # seconds of the processor for any one question; measured: 0.1
START = datetime(2026, 1, 1, tzinfo=UTC) - timedelta(microseconds=1)
YEARS = [date(2026, 1, 1) + n * DAY for n in range(3 * 365)]
SOME = [*YEARS[::13], *(day for day in YEARS if day.day > 27 and day.month in (2, 4, 5) and day.year > 2026)]


def fires(rule: Rule, until: date = date(2028, 3, 1)) -> list[date]:
    """The days of two years and a February on which a rule fires."""
    found: list[date] = []
    at = START
    while (at := rule.next_after(at) or datetime.max.replace(tzinfo=UTC)).date() < until:
        found += [] if found and found[-1] == at.date() else [at.date()]
        at = max(at, datetime.combine(at.date(), datetime.max.time(), UTC))
    return found


def compare_words(count: int, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(count):
        rule = random_rule(rng)
        try:
            told = words.read(Cron(rule.text).summary())
        except InvalidCron:
            continue
        case = f"{rule.text}: {Cron(rule.text).summary()}"
        if isinstance(told.times, tuple):
            assert told.times == (rule.hours, rule.minutes, rule.seconds), case
        else:
            assert told.times == {(h, m, s) for h in rule.hours for m in rule.minutes for s in rule.seconds}, case
        assert [day for day in SOME if told.day(day)] == [day for day in SOME if rule.day(day)], case


def test_the_words_of_random_rules_name_their_fires() -> None:
    compare_words(800, seed=15)


@pytest.mark.campaign
def test_the_words_of_thousands_of_rules_name_their_fires() -> None:
    compare_words(8_000, seed=2027)


@pytest.mark.parametrize(
    ("expr", "said"),
    [
        ("0 0 15 * 1-7", "at 00:00 every day, in UTC"),
        ("0 0 1-31 * MON", "at 00:00 every day, in UTC"),
        ("0 0 15 2 0-6,5L", "at 00:00 every day in February, in UTC"),
        ("0 0 */1 * MON", "at 00:00 on Monday, in UTC"),
        ("30 * * * * *", "at second 30 of every minute every day, in UTC"),
        ("30 * 9 * * *", "at second 30 of every minute of hour 9 every day, in UTC"),
        ("0 0 L-3W * *", "at 00:00 on the working day nearest to the day 3 before the last, in UTC"),
    ],
)
def test_words_of_rules_that_were_told_wrongly(expr: str, said: str) -> None:
    assert Cron(expr).summary() == said


# ── what to write instead ─────────────────────────────────────────────────────────────────────────────────────────────
def test_what_a_note_tells_to_write_is_read_and_fires_as_it_claims() -> None:
    rng = random.Random(16)
    claims: set[str] = set()
    for _ in range(250):
        dom, dow = day_of_month(rng)[0], day_of_week(rng)[0]
        month = "*" if rng.random() < 0.7 else column(rng, 1, 12, names=MONTHS)[0]
        kind = rng.random()
        if kind < 0.15:
            dom, dow = rng.choice(["1-7", "8-14", "15-21", "22-28"]), rng.choice(["MON", "0", "fri"])
        elif kind < 0.4:
            dow = "*"
        time = rng.choice(["0 9", "30 2", "* 9", "*/5 * *", "7 * *"])
        try:
            rule = Cron(f"{time} {dom} {month} {dow}")
        except InvalidCron:
            continue
        for note in rule.lint():
            for claim, text in re.findall(r"([^;:`]*)`([^`]*)`", note):
                claims.add(checked(claim.strip(" ,"), text, rule, month, note))
    assert claims == {"excluding", "nth", "week", "month", "minutes", "hourly", "working day", "last day"}


def checked(claim: str, text: str, rule: Cron, month: str, note: str) -> str:
    """Check one text in backticks; returns the kind of its claim."""
    of_month = Cron(" ".join([*rule.expr.split()[:-1], "*"]))
    of_week = Cron(" ".join([*rule.expr.split()[:-3], "*", month, rule.expr.split()[-1]]))
    if text.startswith(".excluding"):
        assert of_month.expr in note
        left_out = re.findall(r'"(\w+)"', text)
        assert text == f".excluding(Weekdays({', '.join(map(repr, left_out))}))".replace("'", '"')
        both = set(fires(of_month)) & set(fires(of_week))
        assert fires(of_month.excluding(Weekdays(*left_out))) == sorted(both), note
        return "excluding"
    instead = Cron(text)
    if claim == "for both write":
        if ".excluding" in note:
            return "excluding"
        assert fires(instead) == sorted(set(fires(of_month)) & set(fires(of_week))), note
        return "nth"
    if claim.endswith("alone write"):
        assert fires(rule) == fires(Cron(" ".join([*rule.expr.split()[:-3], "*", month, "*"]))), note
        assert fires(instead) == fires(of_month if "month alone" in claim else of_week), note
        return "month" if "month alone" in claim else "week"
    if claim == "if minutes were meant write":
        assert instead._compiled.columns.minutes == rule._compiled.columns.seconds
        assert fires(instead) == fires(rule)
        return "minutes"
    if claim == "for once an hour write":
        assert instead._compiled.columns.minutes == 1
        assert (instead._compiled.columns.hours, fires(instead)) == (rule._compiled.columns.hours, fires(rule))
        return "hourly"
    if "last working day" in note:
        assert all(day.weekday() < 5 and length(day) - day.day < 3 for day in fires(instead)), note
        assert {day.month for day in fires(instead)} >= {day.month for day in fires(rule)}
        return "working day"
    assert (claim, "L is the last day" in note) == ("", True), note
    assert all(day.day == length(day) for day in fires(instead)), note
    return "last day"


@pytest.mark.parametrize("place", range(6), ids=[field.name for field in FIELDS])
def test_what_a_refusal_tells_to_write_is_read(place: int) -> None:
    rng = random.Random(17)
    name, low, _, top, *_ = FIELDS[place]
    suggested = 0
    for _ in range(400):
        a, b, step = rng.randint(low, top), rng.randint(low, top), rng.randint(0, top + 3)
        fault = rng.choice([f"{a}/{step}", f"{a}-{b}", "MONDAY", "JULY", f"{a}-{b}/{step}"])
        text = ["0", "0", "0", "*", "*", "*"]
        text[place] = fault
        try:
            Cron(" ".join(text))
        except InvalidCron as error:
            told = re.findall(r"`([^`]*)`", str(error))
            for instead in told:
                suggested += 1
                read = parse(" ".join([*text[:place], instead, *text[place + 1 :]]))
                mask = (read.seconds, read.minutes, read.hours, read.days, read.months, read.weekdays)[place]
                if fault == f"{a}/{step}":
                    start = low if instead.startswith("*") else a
                    assert mask == sum(1 << n for n in range(start, top + 1, step)), (fault, instead)
                elif fault == f"{a}-{b}":
                    assert mask == sum(1 << n for n in [*range(a, top + 1), *range(low, b + 1)]), (fault, instead)
    assert suggested > 20, name


@pytest.mark.parametrize("name", ["Europe/Berln", "new york", "Londn", "Factry", "America/Argentina/Buenos"])
def test_zones_that_a_refusal_names_exist(name: str) -> None:
    with pytest.raises(InvalidTrigger) as caught:
        zone(name)
    for told in re.findall(r"[A-Z]\w+(?:/\w+)+", str(caught.value).partition("did you mean")[2]):
        assert zone(told).name == told


# ── clock changes ─────────────────────────────────────────────────────────────────────────────────────────────────────
def test_notes_after_a_moment_speak_of_clock_changes_still_to_come() -> None:
    rule = Cron("30 2 * * *", "Europe/Berlin")
    late = datetime(2026, 11, 28, tzinfo=UTC)
    assert [re.findall(r"\d{4}-\d\d-\d\d", note) for note in rule.lint(after=late)] == [["2027-03-28"], ["2027-10-31"]]
    assert rule.describe(after=late).count("note:") == 2
    assert rule.between(late).lint() == rule.lint(after=late)
    assert rule.between(end=late).lint(after=late) == ()
    assert rule.excluding(Weekdays("sun")).lint(after=late) == ()
    assert len(rule.excluding(Weekdays("mon")).lint(after=late)) == 2


@pytest.mark.parametrize(("expr", "dst"), [("*/15 2 * 3 0L", "vixie"), ("30 2 * 3 0L", "skip_missing")])
def test_a_rule_whose_times_are_all_skipped_costs_little_and_says_why(expr: str, dst: str) -> None:
    rule = Cron(expr, "Europe/Berlin", dst=dst)
    zone.cache_clear()
    now = to_us(datetime(2026, 11, 28, tzinfo=UTC))
    started = process_time()
    assert rule.next_fire(now) is None
    assert process_time() - started < MOST_COST
    remedy = "; give another time, or dst='vixie'" if dst == "skip_missing" else "; give another time"
    with pytest.raises(InvalidTrigger, match=f"each of its times is skipped .* in Europe/Berlin{remedy}$"):
        first_fire(rule, now)
    assert rule.lint(after=from_us(now))[-1].startswith("it never fires: each of its times is skipped")


def test_the_reason_of_a_rule_that_is_over_is_its_own() -> None:
    now = to_us(datetime(2026, 11, 28, tzinfo=UTC))
    daily = Cron("0 12 * * *")
    week = datetime(2026, 12, 1, 13, tzinfo=UTC), datetime(2026, 12, 2, 11, tzinfo=UTC)
    for rule, why in (
        (daily.between(end=from_us(now - DAY_US)), "lies in the past"),
        (daily.between(*week), "has no fire in that time"),
        (daily.excluding(Daily("11:00", "13:00")), "the calendar leaves out every fire"),
        (At(from_us(now - DAY_US)).excluding(Weekdays("mon")), "lies in the past"),
    ):
        with pytest.raises(InvalidTrigger, match=why):
            first_fire(rule, now)
