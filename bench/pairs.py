"""Processor time of one drained job, one enqueue and one fire, this checkout beside another one, in pairs.

`python -m bench.pairs OTHER [--pairs 20] [sqlite postgresql mariadb]`, where OTHER is the path of another checkout.

The two checkouts take turns: each pair is one process of either, one after the other, on a fresh database, and the
pairs alternate which goes first. Figures are microseconds of processor time of that process (all its threads, the
server not included); the ratio is the median of the pairs' ratios. The workload uses the public API alone.

- enqueue: 500 jobs, one at a time, awaited.
- drain: 4,000 no-op jobs, from the worker's start until the last is settled.
- fire: 200 schedules of one second, their fires and jobs, for one and a half seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FIGURES = ("enqueue", "drain", "fire")
ENQUEUED, DRAINED, SCHEDULES, FIRING = 500, 4_000, 200, 1.5


async def measure(url: str) -> dict[str, float]:
    """Return the microseconds of processor time of each figure, measured in this process."""
    from onebeat import ScheduleFired, Scheduler

    ran = fired = 0

    def schedules() -> Scheduler:
        scheduler = Scheduler(url, slots=100)

        @scheduler.task(name="noop")
        async def noop() -> None:
            nonlocal ran
            ran += 1

        @scheduler.on(ScheduleFired)
        def count(_: ScheduleFired) -> None:
            nonlocal fired
            fired += 1

        return scheduler

    client = Scheduler(url, role="client")

    @client.task(name="noop")
    async def noop() -> None: ...

    async with client:
        for _ in range(50):
            await noop.enqueue()
        began = time.process_time()
        for _ in range(ENQUEUED):
            await noop.enqueue()
        enqueue = (time.process_time() - began) / ENQUEUED
        await noop.enqueue_many([()] * (DRAINED - ENQUEUED - 50))
    began = time.process_time()
    scheduler = schedules()
    async with scheduler:
        while ran < DRAINED:
            await asyncio.sleep(0.05)
    drain = (time.process_time() - began) / DRAINED
    scheduler = schedules()
    for number in range(SCHEDULES):
        scheduler.every(seconds=1, id=f"s{number}", name=f"t{number}")(noop.function)
    began = time.process_time()
    async with scheduler:
        await asyncio.sleep(FIRING)
    fire = (time.process_time() - began) / max(fired, 1)
    return {"enqueue": enqueue * 1e6, "drain": drain * 1e6, "fire": fire * 1e6}


def run(checkout: Path, url: str) -> dict[str, float]:
    """Measure one checkout in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
    command = [sys.executable, __file__, "--measure", url]
    done = subprocess.run(command, env=environment, cwd="/", check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def compare(kind: str, other: Path, pairs: int) -> None:
    """Measure `pairs` pairs on one kind of database and print the medians."""
    from tests.support.databases import create_database, drop_database

    here = Path(__file__).resolve().parent.parent
    found: dict[Path, list[dict[str, float]]] = {here: [], other: []}
    for number in range(pairs):
        for checkout in (here, other) if number % 2 else (other, here):
            with tempfile.TemporaryDirectory() as folder:
                url = create_database(kind, Path(folder))
                try:
                    found[checkout].append(run(checkout, url))
                finally:
                    drop_database(url)
    for figure in FIGURES:
        mine, theirs = ([each[figure] for each in found[checkout]] for checkout in (here, other))
        ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
        ratio, low, high = statistics.median(ratios), min(ratios), max(ratios)
        print(
            f"{kind:12}{figure:9}{statistics.median(mine):9.1f} µs beside {statistics.median(theirs):9.1f} µs"
            f"   ratio {ratio:.3f} ({low:.2f} … {high:.2f})",
            flush=True,
        )


def main() -> None:
    """Compare with another checkout, or measure one url for it."""
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(asyncio.run(measure(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("kinds", nargs="*", default=["sqlite", "postgresql", "mariadb"])
    parser.add_argument("--pairs", type=int, default=20)
    said = parser.parse_intermixed_args()
    for kind in said.kinds:
        compare(kind, said.other.resolve(), said.pairs)


if __name__ == "__main__":
    main()
