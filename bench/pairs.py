"""Processor time of one drained job, one enqueue and one fire, this checkout beside another one, in pairs.

`python -m bench.pairs OTHER [--pairs 20] [sqlite postgresql mariadb]`, where OTHER is the path of another checkout.

A pair is two processes, one of either checkout, each with a fresh database. They take turns every tenth of a second,
because the speed of a machine that others share changes by half within seconds; the pairs alternate which goes first.
Figures are microseconds of processor time of the process (all its threads, the server not included), its start not
counted; the ratio is the median of the pairs' ratios. The workload uses the public API alone.

- enqueue: 600 jobs, one at a time, awaited, in turns of 50.
- drain: 6,000 no-op jobs in turns of 1,000, from the end of their `enqueue_many` until the last has run.
- fire: 200 schedules of one second, their fires and jobs, for four seconds; both processes at the same time.
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
from contextlib import ExitStack
from pathlib import Path

FIGURES = ("enqueue", "drain", "fire")
TURNS = {"enqueue": 12, "drain": 6, "fire": 1}
ENQUEUED, DRAINED, SCHEDULES, FIRING = 50, 1_000, 200, 4.0


async def measure(url: str) -> None:
    """Do what the lines of standard input name; answer each by its microseconds of processor time for one piece."""
    from onebeat import ScheduleFired, Scheduler

    loop = asyncio.get_running_loop()
    ran = fired = 0
    worker = Scheduler(url, slots=100)
    client = Scheduler(url, role="client")
    beat = Scheduler(url, slots=100)

    @client.task(name="noop")
    async def asked() -> None: ...

    @worker.task(name="noop")
    async def noop() -> None:
        nonlocal ran
        ran += 1

    async def fires() -> None: ...

    @beat.on(ScheduleFired)
    def count(_: ScheduleFired) -> None:
        nonlocal fired
        fired += 1

    for number in range(SCHEDULES):
        beat.every(seconds=1, id=f"s{number}", name=f"t{number}")(fires)

    async def turn() -> str:
        print("ready", flush=True)
        return (await loop.run_in_executor(None, sys.stdin.readline)).strip()

    async with client:
        for _ in range(ENQUEUED):
            await asked.enqueue()
        while await turn() == "enqueue":
            began = time.process_time()
            for _ in range(ENQUEUED):
                await asked.enqueue()
            print(json.dumps((time.process_time() - began) / ENQUEUED * 1e6), flush=True)
    async with worker:
        waiting = ENQUEUED * (TURNS["enqueue"] + 1)
        while ran < waiting:
            await asyncio.sleep(0.02)
        while await turn() == "drain":
            ran = 0
            await noop.enqueue_many([()] * DRAINED)
            began = time.process_time()
            while ran < DRAINED:
                await asyncio.sleep(0.02)
            print(json.dumps((time.process_time() - began) / DRAINED * 1e6), flush=True)
    async with beat:
        await asyncio.sleep(1.5)
        await turn()  # fire
        before, began = fired, time.process_time()
        await asyncio.sleep(FIRING)
        print(json.dumps((time.process_time() - began) / (fired - before) * 1e6), flush=True)


class Side:
    """One checkout's process of a pair."""

    def __init__(self, checkout: Path, url: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "PYTHONHASHSEED": "0"}
        command = [sys.executable, __file__, "--measure", url]
        self.process = subprocess.Popen(
            command, env=environment, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.found: dict[str, list[float]] = {figure: [] for figure in FIGURES}

    def line(self) -> str:
        """Return the next line that the process wrote."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the measured process ended with code {self.process.wait()}; its error is above")
        return line

    def say(self, word: str) -> None:
        """Wait until the process takes a turn, and tell it what to do."""
        assert self.process.stdin is not None
        ready = self.line()
        assert ready == "ready\n", ready
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def hear(self, figure: str) -> None:
        """Keep the figure that the process answers with."""
        self.found[figure].append(float(self.line()))


def pair(sides: tuple[Side, Side]) -> None:
    """Let the two processes of a pair take turns."""
    for figure in ("enqueue", "drain"):
        for _ in range(TURNS[figure]):
            for side in sides:
                side.say(figure)
                side.hear(figure)
        for side in sides:
            side.say("next")
    for side in sides:
        side.say("fire")
    for side in sides:
        side.hear("fire")
        side.process.wait()


def compare(kind: str, other: Path, pairs: int) -> None:
    """Measure `pairs` pairs on one kind of database and print the medians."""
    from tests.support.databases import create_database, drop_database

    here = Path(__file__).resolve().parent.parent
    found: dict[Path, list[dict[str, float]]] = {here: [], other: []}
    for number in range(pairs):
        checkouts = (here, other) if number % 2 else (other, here)
        with ExitStack() as stack:
            sides = []
            for checkout in checkouts:
                url = create_database(kind, Path(stack.enter_context(tempfile.TemporaryDirectory())))
                stack.callback(drop_database, url)
                sides.append(Side(checkout, url))
                stack.callback(sides[-1].process.kill)
            pair((sides[0], sides[1]))
            for checkout, side in zip(checkouts, sides, strict=True):
                found[checkout].append({figure: statistics.median(side.found[figure]) for figure in FIGURES})
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
        asyncio.run(measure(sys.argv[2]))
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
