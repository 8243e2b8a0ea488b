"""Cron rules beside croniter and cronsim, and plan(), in one run: `python -m bench.timing`.

Each question is asked at moments spread over a year; what is shown is the median and the 99th percentile of one call.
onebeat's rules and croniter's are parsed before; a CronSim holds its start, so each of its answers pays for a parse,
which the second table shows alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from zoneinfo import ZoneInfo

import tzdata
from croniter import croniter
from cronsim import CronSim

from onebeat.model.policies import Policies
from onebeat.model.schedule import Schedule, Unfinished, plan
from onebeat.timing.clock import SECOND, to_us
from onebeat.timing.cron import expression
from onebeat.timing.cron_parser import parse
from onebeat.timing.triggers import Cron, Every

ZONE = "Europe/Berlin"
RULES = ["*/5 * * * *", "30 2 * * *", "0 9-17 * * 1-5", "0 0 1 * *", "59 23 L * *", "0 0 29 2 *", "*/5 * * * * *"]
START = datetime(2026, 1, 1, tzinfo=UTC)
MOMENTS = [(START + timedelta(seconds=n * 31_557_600 / 2_000)) for n in range(2_000)]


def measure(call: Callable[[int], object], times: int = 2_000) -> str:
    """Median and 99th percentile of one call, in microseconds."""
    call(0)
    found = []
    for n in range(times):
        before = time.perf_counter_ns()
        call(n)
        found.append(time.perf_counter_ns() - before)
    return f"{statistics.median(found) / 1000:8.1f} {statistics.quantiles(found, n=100)[98] / 1000:8.1f}"


def next_after(rule: str) -> None:
    cron, tz = Cron(rule, ZONE), ZoneInfo(ZONE)
    local = [moment.astimezone(tz) for moment in MOMENTS]
    instants = [to_us(moment) for moment in MOMENTS]
    seconds_last = rule.split()[1:] + rule.split()[:1] if len(rule.split()) == 6 else rule.split()
    theirs = croniter(" ".join(seconds_last), local[0])
    print(f"{rule:16} {measure(lambda n: cron.next_fire(instants[n]))}", end="")
    print(f" {measure(lambda n: cron.next_after(local[n]))}", end="")
    print(f" {measure(lambda n: next(CronSim(rule, local[n])))}", end="")
    print(f" {measure(lambda n: theirs.get_next(datetime, start_time=local[n]), 300)}")


def parsing(rule: str) -> None:
    fresh = (f"seed-{n}" for n in count())

    def own(n: int) -> object:
        parse.cache_clear()
        expression.cache_clear()
        return Cron(rule, ZONE, seed=next(fresh))

    print(f"{rule:16} {measure(own)} {measure(lambda n: Cron(rule, ZONE))}", end="")
    print(f" {measure(lambda n: CronSim(rule, START))} {measure(lambda n: croniter(rule, START), 500)}")


def planning() -> None:
    held = (Unfinished("j", "running", 0),)
    one = Schedule(id="beat", trigger=Every(1), next_fire_us=to_us(START), policies=Policies(overlap="allow"))
    nightly = Schedule(id="nightly", trigger=Cron("30 2 * * *", ZONE), next_fire_us=to_us(START) + 5_400 * SECOND)
    late = Schedule(id="late", trigger=Cron("* * * * * *", ZONE), next_fire_us=to_us(START))
    print(f"{'one second, due now':34} {measure(lambda n: plan(one, to_us(START) + 100))}")
    print(f"{'nightly in a zone, one job held':34} {measure(lambda n: plan(nightly, nightly.next_fire_us or 0, held))}")
    print(
        f"{'each second, ten years missed':34} {measure(lambda n: plan(late, to_us(START) + 315_360_000 * SECOND), 20)}"
    )


def main() -> None:
    print(f"tzdata {tzdata.IANA_VERSION}, zone {ZONE}; microseconds, median and 99th percentile of one call")
    print(f"\n{'next fire':16} {'next_fire':>17} {'next_after':>17} {'cronsim':>17} {'croniter':>17}")
    for rule in RULES:
        next_after(rule)
    print(f"\n{'parse':16} {'cold':>17} {'cached':>17} {'cronsim':>17} {'croniter':>17}")
    for rule in RULES[:-1]:
        parsing(rule)
    print("\nplan()")
    planning()


if __name__ == "__main__":
    main()
