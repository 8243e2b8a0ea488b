"""How long one worker takes to decide very many schedules that are due at one instant, on each database.

`python -m bench.backlog [--schedules 20000 100000] [--jobs] [sqlite postgresql mariadb]`. Hourly schedules with
`catch_up="skip"`, which is the policy that turns lateness into `misfired`. The clock starts when they are due and stops
when none is left. With `--jobs` the worker runs their jobs meanwhile, which do nothing; else it does not know the task.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from tests.guarantees.arrange import a_schedule
from tests.support.databases import SQL, create_database, drop_database, find_servers

from onebeat.scheduler.scheduler import Scheduler
from onebeat.store.connection.database import Database
from onebeat.store.migrations import migrate
from onebeat.store.schedules import fire
from onebeat.store.schedules.edit import new_row
from onebeat.store.tables import build
from onebeat.store.tx import Tx
from onebeat.timing.clock import SECOND

STORED_EACH_SECOND = 4_000  # rows, at least: so much time there is between the first one and the instant
ROWS = 2_000  # of one insert


def stored(count: int, at: int) -> Iterator[list[dict[str, Any]]]:
    """The rows of the schedules, in pieces: due at this instant, and then each hour."""
    row = new_row(a_schedule("s", 3600, overlap="skip", catch_up="skip"), at, source="api")
    row |= {"next_fire_us": at, "trigger_json": f'{{"anchor_us":{at},"interval_us":3600000000,"kind":"every"}}'}
    for start in range(0, count, ROWS):
        yield [row | {"id": f"s{number:06}"} for number in range(start, min(start + ROWS, count))]


async def measure(kind: str, count: int, jobs: bool) -> bool:
    """Decide the schedules once; print the seconds and the verdicts, and return whether all were started."""
    with tempfile.TemporaryDirectory() as folder:
        url = create_database(kind, Path(folder))
        try:
            async with Database(url, tables=build()) as database:
                await migrate(database)
                at = time.time_ns() // 1000 + (3 + count // STORED_EACH_SECOND) * SECOND
                for rows in stored(count, at):
                    await database.write(lambda tx, rows=rows: tx.execute(tx.tables.schedules.insert(), rows))
                scheduler = Scheduler(url, slots=100)
                if jobs:
                    scheduler.task(name="work")(nothing)
                async with scheduler:
                    assert time.time() < at / SECOND, "storing the schedules took too long"
                    while (await database.read(fire.next_due, ()) or 0) <= at:
                        await asyncio.sleep(0.05)
                    seconds = time.time() - at / SECOND
                verdicts, last = await database.read(_verdicts)
        finally:
            drop_database(url)
    print(f"{kind:<11} {count:>7} in {seconds:6.2f} s, last by {(last - at) / SECOND:6.2f} s; {verdicts}", flush=True)
    return verdicts == {"started": count}


async def nothing() -> None:
    """What the jobs do."""


def _verdicts(tx: Tx) -> tuple[dict[str, int], int]:
    c = tx.tables.fires.c
    rows = tx.execute(select(c.decision, func.count(), func.max(c.decided_us)).group_by(c.decision)).all()
    return {row[0]: row[1] for row in rows}, max(row[2] for row in rows)


def main() -> int:
    """Measure and print."""
    logging.disable(logging.WARNING)  # a line for each schedule that is misfired
    reached = find_servers()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--jobs", action="store_true", help="run the jobs meanwhile")
    parser.add_argument("kinds", nargs="*", default=[kind for kind in SQL if kind in reached])
    options = parser.parse_intermixed_args()
    whole = [asyncio.run(measure(kind, count, options.jobs)) for kind in options.kinds for count in options.schedules]
    return 0 if all(whole) else 1


if __name__ == "__main__":
    sys.exit(main())
