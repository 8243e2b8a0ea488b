"""Where croniter and cronsim agree with each other, onebeat agrees with both."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from cronsim import CronSim

from onebeat.errors import InvalidCron
from onebeat.timing.triggers import Cron
from tests.timing.oracle import changes, random_rule, zones


def peers(rule: str, start: datetime) -> datetime | None:
    """The answer both give, in UTC; None when one refuses, they differ, or it is not after the start."""
    try:
        first = next(CronSim(rule, start)).astimezone(UTC)
        second = croniter(rule, start).get_next(datetime).astimezone(UTC)
    except Exception:
        return None
    return first if first == second and first > start.astimezone(UTC) else None


def compared(cases: int, seed: int) -> int:
    rng = random.Random(seed)
    every = zones()
    agreed = 0
    for _ in range(cases):
        rule = random_rule(rng)
        zone = rng.choice(every)
        near = changes(zone, rng.randint(2000, 2037))
        base = rng.choice(near) if near and rng.random() < 0.5 else datetime(rng.randint(2000, 2037), 5, 17, tzinfo=UTC)
        start = (base + timedelta(minutes=rng.randint(-3000, 3000))).astimezone(ZoneInfo(zone))
        if len(rule.text.split()) == 6 or "?" in rule.text:
            continue  # they put the seconds elsewhere, or know no ?
        answer = peers(rule.text, start)
        try:
            cron = Cron(rule.text, zone)
        except InvalidCron:
            assert answer is None, rule.text
            continue
        if answer is not None:
            agreed += 1
            told = cron.next_after(start)
            assert told is not None
            assert told.astimezone(UTC) == answer, f"{rule.text} in {zone} after {start.isoformat()}"
    return agreed


def test_two_hundred_questions() -> None:
    assert compared(200, seed=7) > 40


@pytest.mark.soak
@pytest.mark.timeout(3_600)
def test_thirty_thousand_questions() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}: both agreed in {compared(30_000, seed)}")
