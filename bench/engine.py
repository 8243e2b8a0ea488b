"""Drain, enqueue and pick-up of the engine on each database that can be reached, beside the raw limit in the same run.

`python -m bench.engine [--jobs 20000] [--runs 3] [sqlite postgresql mariadb]`. Every figure is the median of the runs.

- drain: N no-op jobs stored first, then one worker claims, runs and settles them all; jobs a second from the worker's
  start to the last settlement in the database.
- raw drain: rows claimed and settled 100 at a time by the two store functions alone: no tasks, no context, no events.
- enqueue: one job at a time, awaited, for two seconds, workers off. bulk: 1,000 a call.
- raw enqueue: the same insert through the bare driver, one transaction each.
- pick-up: from before `enqueue` to the first line of the body, an idle worker in the same process, 100 jobs.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.support.databases import SQL, create_database, drop_database, find_servers

from onebeat.model.ids import token, uuid7
from onebeat.model.job import SUCCESS, JobState, NewJob, Settlement
from onebeat.scheduler.scheduler import Scheduler
from onebeat.store import tables, workers
from onebeat.store.connection.database import Database
from onebeat.store.jobs import claim, insert, settle
from onebeat.store.jobs.settle import Ended
from onebeat.store.migrations import prepare
from onebeat.store.tx import Tx

FIGURES = ("drain", "raw drain", "enqueue", "raw enqueue", "bulk", "pick-up p50 ms", "pick-up p99 ms")


class Ran:
    """What the no-op body counts."""

    count = 0
    picked: list[float]


async def drain(url: str, count: int) -> dict[str, float]:
    """Jobs a second through one worker, the enqueue rates before it, and the pick-up of an idle worker after it."""
    scheduler = Scheduler(url, slots=100)
    Ran.count, Ran.picked = 0, []

    @scheduler.task(name="noop")
    async def noop() -> None:
        Ran.count += 1

    @scheduler.task(name="pick")
    async def pick(asked: float) -> None:
        Ran.picked.append(time.perf_counter() - asked)

    client = Scheduler(url, role="client")
    client.task(noop.function, name="noop")
    await client.start()
    sender = client.registry.get("noop")
    began, sent = time.perf_counter(), 0
    while time.perf_counter() - began < 2:
        await sender.enqueue()
        sent += 1
    single = sent / (time.perf_counter() - began)
    began, left = time.perf_counter(), max(count - sent, 1000)
    for start in range(0, left, 1000):
        await sender.enqueue_many([()] * min(1000, left - start))
    bulk = left / (time.perf_counter() - began)
    total = sent + left
    await client.stop()
    await scheduler.start()
    began = time.perf_counter()
    while await scheduler.jobs.count(state=JobState.SUCCEEDED) < total:
        await asyncio.sleep(0.01 if Ran.count >= total else 0.1)
    rate = total / (time.perf_counter() - began)
    for _ in range(100):
        await pick.enqueue(time.perf_counter())
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.5)
    await scheduler.stop()
    picked = sorted(Ran.picked)
    return {
        "drain": rate,
        "enqueue": single,
        "bulk": bulk,
        "pick-up p50 ms": picked[len(picked) // 2] * 1000,
        "pick-up p99 ms": picked[int(len(picked) * 0.99) - 1] * 1000,
    }


async def raw(url: str, count: int) -> dict[str, float]:
    """The store functions alone, and the bare insert."""
    database = Database(url, tables=tables.build("raw_"))
    await database.open(10)
    await prepare(database)
    worker = workers.NewWorker(
        id=token(),
        host="bench",
        boot_id=None,
        pid=0,
        tasks=(),
        definitions={},
        queues=None,
        slots=1,
        version="",
        lease=10**12,
    )
    await database.write(workers.register, worker)
    began, sent = time.perf_counter(), 0
    while time.perf_counter() - began < 2:
        await database.write(_bare_insert, _new())
        sent += 1
    single = sent / (time.perf_counter() - began)
    for start in range(sent, count, 1000):
        await database.write(insert.add, [_new() for _ in range(min(1000, count - start))])
    write = database.write_one if database.dialect.update_returning else database.write
    done, began = 0, time.perf_counter()
    while claimed := await write(claim.claim, worker_id=worker.id, token=token(), limit=100, tasks=["noop"]):
        ends = [Ended(job, SUCCESS, Settlement(state=JobState.SUCCEEDED)) for job in claimed]
        await database.write(settle.settle, ends, worker_id=worker.id)
        done += len(claimed)
    rate = done / (time.perf_counter() - began)
    await database.close()
    return {"raw drain": rate, "raw enqueue": single}


def _new() -> NewJob:
    return NewJob(id=uuid7(time.time_ns() // 1000), task="noop", args='{"a":[],"k":{}}', tracking_id="0" * 32)


def _bare_insert(tx: Tx, job: NewJob) -> None:
    tx.execute(tx.prepared(_insert), {"id": job.id, "task": job.task, "args": job.args, "tracking_id": job.tracking_id})


def _insert(tx: Tx) -> object:
    constant = {"queue": "default", "rank": 0, "state": "queued", "run_at_us": 0, "max_attempts": 3, "created_us": 0}
    return tx.tables.jobs.insert().values(**constant)


async def measure(kind: str, count: int, runs: int) -> dict[str, list[float]]:
    """Every figure of every run; each run on tables of its own."""
    figures: dict[str, list[float]] = {}
    parts: list[Callable[[str, int], Awaitable[dict[str, float]]]] = [raw, drain]
    for _ in range(runs):
        for part in parts:
            with tempfile.TemporaryDirectory() as folder:
                url = create_database(kind, Path(folder))
                try:
                    for name, value in (await part(url, count)).items():
                        figures.setdefault(name, []).append(value)
                finally:
                    drop_database(url)
    return figures


def main() -> None:
    """Print a table: a row for each figure, a column for each database; median, with the smallest and largest run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=[])
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=3)
    chosen = parser.parse_args()
    servers = find_servers()
    kinds = [kind for kind in SQL if kind in servers and (not chosen.kinds or kind in chosen.kinds)]
    print(f"{chosen.jobs:,} jobs, median of {chosen.runs} runs (smallest … largest); a second unless said otherwise")
    results = {kind: asyncio.run(measure(kind, chosen.jobs, chosen.runs)) for kind in kinds}
    print("".ljust(16) + "".join(f"{kind} {servers[kind]}".ljust(34) for kind in kinds))
    for figure in FIGURES:
        cells = []
        for kind in kinds:
            values = results[kind][figure]
            form = "{:,.1f}" if "ms" in figure else "{:,.0f}"
            words = [form.format(value) for value in (statistics.median(values), min(values), max(values))]
            cells.append(f"{words[0]} ({words[1]} … {words[2]})".ljust(34))
        print(figure.ljust(16) + "".join(cells))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
