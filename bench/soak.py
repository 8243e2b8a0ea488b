"""Hours of load in one command: jobs at a steady rate, workers that are killed, history that is pruned meanwhile.

`python -m bench.soak [--minutes 30] [--rate 500] [--kill-each 20] [--chart FILE] [sqlite postgresql mariadb]`.

Of two workers one stays for the whole time, the other is killed with SIGKILL again and again and replaced. Each job
writes a line to a file when it starts. This process reads every end from the database before it is pruned.

It fails unless each job that was stored has succeeded exactly once and no attempt started twice. A run of ten minutes
or more also fails when memory, open files, table sizes or dead rows grew from its second quarter to its last one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from bench.charts import Panel, draw
from sqlalchemy import func, literal_column, select, text
from tests.support.databases import SQL, create_database, drop_database, find_servers

from onebeat import JobContext, Scheduler, TaskRouter
from onebeat.store.connection.database import Database
from onebeat.store.tables import build
from onebeat.store.tx import Tx

ROOT = Path(__file__).resolve().parent.parent
LINE = 32  # bytes of one start: the job's id and its attempt; 4096 is a multiple, so lines of two processes never mix
SECOND = 1_000_000
KEPT = 60  # seconds that an ended job stays
SEEN_WITHIN = 10 * SECOND  # an end is committed so soon after its instant, at the latest
TICK = 0.1  # seconds between two enqueues
SAMPLE = 5.0  # seconds between two looks
STEADY = 1.25  # the mean of the last quarter divided by that of the second one, at most
JUDGED_FROM = 600  # seconds: in a shorter run caches and tables still fill
START_WITHIN = 8  # seconds: a worker that has just been started does not yet end orderly when it is asked to
IDLE_WITHIN = 120  # seconds for what is left when the load ends
router = TaskRouter()


@router.task(name="work", queue="soak")
async def work(ctx: JobContext, seconds: float) -> None:
    """Note the start, and run for so long."""
    start = ctx.id.bytes + ctx.attempt.to_bytes(LINE - 16, "big")
    assert os.write(_starts(), start) == LINE
    await asyncio.sleep(seconds)


def make_worker() -> Scheduler:
    """What a worker process runs; its database is in the environment."""
    scheduler = Scheduler(
        slots=40,
        lease=6,
        heartbeat=1,
        poll=0.1,
        retention={"succeeded": KEPT, "failed": KEPT, "fires": KEPT, "workers": KEPT},
    )
    scheduler.include(router)

    @scheduler.every(seconds=1, id="beat", name="beat", overlap="allow")
    async def beat() -> None: ...

    return scheduler


_FILE: list[int] = []


def _starts() -> int:
    if not _FILE:
        _FILE.append(os.open(os.environ["SOAK_STARTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
    return _FILE[0]


@dataclass
class Book:
    """What this process knows of the jobs: those it stored, and those whose ends it has read."""

    open: set[UUID] = field(default_factory=set)
    stored: int = 0
    ended: int = 0
    repeated: dict[UUID, int] = field(default_factory=dict)  # the attempt with which a job succeeded, if not the first
    wrong: list[str] = field(default_factory=list)
    late: list[float] = field(default_factory=list)  # seconds from due to start, since the last sample
    _recent: dict[UUID, int] = field(default_factory=dict)  # ends that the next look reads again

    def end(self, row: Any) -> None:
        """Take an ended job, unless this end is known."""
        if self._recent.get(row.id) == row.finished_us:
            return
        if row.id not in self.open:
            self.wrong.append(f"job {row.id} ended twice, or was never stored")
            return
        self.open.remove(row.id)
        self._recent[row.id] = row.finished_us
        self.ended += 1
        if row.state != "succeeded":
            self.wrong.append(f"job {row.id} is {row.state}: {row.reason}")
        if row.attempt != 1:
            self.repeated[row.id] = row.attempt
        self.late.append((row.started_us - row.run_at_us) / SECOND)

    def forget(self, before: int) -> None:
        """Forget ends that no look reads again."""
        self._recent = {id: at for id, at in self._recent.items() if at >= before}

    def compare(self, starts: Path) -> None:
        """Compare the ends with the starts that the jobs themselves have written."""
        lines = Counter(_lines(starts))
        attempts = Counter(id for id, _ in lines)
        self.wrong += [
            f"attempt {n} of job {id} started {count} times" for (id, n), count in lines.items() if count > 1
        ]
        for id, count in attempts.items():
            if count > self.repeated.get(id, 1):
                self.wrong.append(f"job {id} started {count} times and succeeded at attempt {self.repeated.get(id, 1)}")
        if len(attempts) != self.ended:
            self.wrong.append(f"{self.ended} jobs succeeded and {len(attempts)} started")
        if self.open:
            self.wrong.append(f"{len(self.open)} of {self.stored} jobs have not ended")


def _lines(path: Path) -> Iterator[tuple[UUID, int]]:
    with path.open("rb") as file:
        while line := file.read(LINE):
            yield UUID(bytes=line[:16]), int.from_bytes(line[16:], "big")


def ends(tx: Tx, since: int) -> list[Any]:
    """The jobs of this load that ended at `since` or later."""
    c = tx.tables.jobs.c
    query = select(c.id, c.state, c.reason, c.attempt, c.run_at_us, c.started_us, c.finished_us)
    found: list[Any] = []
    for state in ("succeeded", "failed", "cancelled"):
        found += tx.execute(query.where(c.state == state, c.finished_us >= since, c.task == "work")).all()
    return found


def sizes(tx: Tx) -> dict[str, float]:
    """Bytes of the tables with their indexes, and on PostgreSQL their dead rows."""
    if tx.dialect.name == "sqlite":
        pages = [
            int(tx.connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()) for name in ("page_count", "page_size")
        ]
        free = int(tx.connection.exec_driver_sql("PRAGMA freelist_count").scalar_one())
        return {"size": pages[0] * pages[1], "used": (pages[0] - free) * pages[1]}
    if tx.dialect.name == "postgresql":
        sums = text("SELECT sum(pg_total_relation_size(relid)), sum(n_dead_tup) FROM pg_stat_user_tables")
        found: Sequence[Any] = tx.execute(sums).one()
        return {"size": float(found[0]), "dead rows": float(found[1])}
    sums = text("SELECT sum(data_length + index_length) FROM information_schema.tables WHERE table_schema = database()")
    return {"size": float(tx.execute(sums).scalar_one())}


def waiting(tx: Tx) -> int:
    """How many jobs are queued."""
    c = tx.tables.jobs.c
    return int(tx.execute(select(func.count()).where(c.state == literal_column("'queued'"))).scalar_one())


def memory_and_files(pid: int) -> tuple[float, int]:
    """MiB of resident memory and open files of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(list(Path(f"/proc/{pid}/fd").iterdir()))


class Soak:
    """One run on one database."""

    def __init__(self, url: str, folder: Path, *, rate: int, kill_each: float) -> None:
        self.url = url
        self.starts = folder / "starts"
        self.log = folder / "workers.log"
        self.rate = rate
        self.kill_each = kill_each
        self.book = Book()
        self.series: dict[str, list[tuple[float, float]]] = {}
        self.kills: list[float] = []
        self._began = 0.0
        self._cursor = 0

    async def run(self, seconds: float) -> None:
        """Load the workers for so long, and wait until every job has ended."""
        client = Scheduler(self.url, role="client")
        client.include(router)
        async with client, Database(self.url, tables=build()) as database:
            self._cursor = await database.read(Tx.now)
            workers = [self._start(), self._start()]
            try:
                await asyncio.sleep(3)
                self._began = time.monotonic()
                parts = [self._enqueue(seconds), self._kill(workers, seconds), self._watch(database, workers, seconds)]
                async with asyncio.TaskGroup() as group:
                    for part in parts:
                        group.create_task(part)
                until = time.monotonic() + IDLE_WITHIN
                while self.book.open and time.monotonic() < until:
                    await self._read_ends(database)
                    await asyncio.sleep(0.5)
                for process in workers:
                    process.terminate()
                codes = [await asyncio.to_thread(process.wait, 30) for process in workers]
                await self._read_ends(database)
            finally:
                for process in workers:
                    process.kill()
                    process.wait()
        if codes != [0, 0]:
            self.book.wrong.append(
                f"the workers ended with {codes}; their log ends with {self.log.read_text()[-2000:]}"
            )
        self.book.compare(self.starts)

    def _start(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        environment = os.environ | {
            "ONEBEAT_DATABASE_URL": self.url,
            "SOAK_STARTS": str(self.starts),
            "PYTHONPATH": path,
        }
        command = [sys.executable, "-m", "onebeat", "worker", "--app", "bench.soak:make_worker", "--factory"]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=log)

    def _past(self) -> float:
        return time.monotonic() - self._began

    async def _enqueue(self, seconds: float) -> None:
        number = 0
        while (past := self._past()) < seconds:
            due = min(int(past * self.rate) - self.book.stored, self.rate)
            if due > 0:
                jobs = await work.enqueue_many([((number + n) % 50 / 1000,) for n in range(due)])
                self.book.open.update(job.id for job in jobs)
                self.book.stored += due
                number += due
            await asyncio.sleep(TICK)

    async def _kill(self, workers: list[subprocess.Popen[bytes]], seconds: float) -> None:
        while self._past() + self.kill_each + START_WITHIN < seconds:
            await asyncio.sleep(self.kill_each)
            workers[1].send_signal(signal.SIGKILL)
            workers[1].wait()
            self.kills.append(self._past())
            workers[1] = self._start()

    async def _watch(self, database: Database, workers: list[subprocess.Popen[bytes]], seconds: float) -> None:
        sampled = 0.0
        while (past := self._past()) < seconds:
            await self._read_ends(database)
            if past - sampled >= min(SAMPLE, seconds / 8):
                await self._sample(database, workers[0], past)
                sampled = past
            await asyncio.sleep(1)

    async def _read_ends(self, database: Database) -> None:
        now = await database.read(Tx.now)
        for row in await database.read(ends, self._cursor):
            self.book.end(row)
        self._cursor = max(self._cursor, now - SEEN_WITHIN)
        self.book.forget(self._cursor)

    async def _sample(self, database: Database, stays: subprocess.Popen[bytes], past: float) -> None:
        late, self.book.late = sorted(self.book.late), []
        if stays.poll() is not None:
            raise AssertionError(f"the worker that stays has ended: {self.log.read_text()[-2000:]}")
        memory, files = memory_and_files(stays.pid)
        values = {"memory": memory, "files": float(files), "queued": float(await database.read(waiting))}
        values |= {
            name: value / 2**20 if "row" not in name else value for name, value in (await database.read(sizes)).items()
        }
        if late:
            values |= {"late p50": statistics.median(late), "late p99": late[int(len(late) * 0.99)]}
        for name, value in values.items():
            self.series.setdefault(name, []).append((past, value))

    def growth(self) -> dict[str, float]:
        """For each series the mean of its last quarter divided by that of its second one."""
        found = {}
        for name, line in self.series.items():
            values = [value for _, value in line]
            second, last = values[len(values) // 4 : len(values) // 2], values[-(len(values) // 4) :]
            if second and last and statistics.mean(second):
                found[name] = statistics.mean(last) / statistics.mean(second)
        return found

    def chart(self, title: str) -> str:
        """What was seen, as SVG; a dotted line marks each kill."""
        panels = {
            "seconds from due to start": ("late p50", "late p99"),
            "jobs that wait in the queue": ("queued",),
            "MiB of memory of the worker that stays": ("memory",),
            "open files of the worker that stays": ("files",),
            "MiB of all tables and indexes": ("size", "used"),
            "dead rows": ("dead rows",),
        }
        made = [
            Panel(title=name, lines={line: self.series[line] for line in lines if line in self.series})
            for name, lines in panels.items()
        ]
        return draw(title, [panel for panel in made if panel.lines], self.kills)


NEVER_GROWS = ("memory", "files", "size", "dead rows")


async def soak(kind: str, seconds: float, rate: int, kill_each: float, chart: Path | None) -> Soak:
    """Run on a new database of this kind; the chart is written also when something is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        url = create_database(kind, Path(folder))
        try:
            run = Soak(url, Path(folder), rate=rate, kill_each=kill_each)
            await run.run(seconds)
        finally:
            drop_database(url)
    grown = run.growth()
    if seconds >= JUDGED_FROM:
        run.book.wrong += [f"{name} grew by {grown[name]:.2f}" for name in NEVER_GROWS if grown.get(name, 1) > STEADY]
    book = run.book
    title = (
        f"{kind}: {book.ended:,} of {book.stored:,} jobs succeeded in {seconds / 60:g} minutes, "
        f"{len(run.kills)} kills, {len(book.repeated):,} ran again"
    )
    if chart is not None:
        chart.write_text(run.chart(title), "utf-8")
    print(title)
    for name, line in run.series.items():
        values = [value for _, value in line]
        growth = grown.get(name, 0)
        print(f"  {name:<10} median {statistics.median(values):10.3f}, most {max(values):10.3f}, x {growth:.2f}")
    print("\n".join(book.wrong[:20]) or "  no violation", flush=True)
    return run


def main() -> int:
    """Run on each database and print what was seen."""
    reached = find_servers()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=int, default=500, help="jobs a second")
    parser.add_argument("--kill-each", type=float, default=20, help="seconds between two kills")
    parser.add_argument("--chart", type=Path, help="SVG file; the kind of database is put into its name")
    parser.add_argument("kinds", nargs="*", default=[kind for kind in SQL if kind in reached])
    options = parser.parse_intermixed_args()
    wrong = 0
    for kind in options.kinds:
        chart = options.chart and options.chart.with_stem(f"{options.chart.stem}-{kind}")
        run = asyncio.run(soak(kind, options.minutes * 60, options.rate, options.kill_each, chart))
        wrong += len(run.book.wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
