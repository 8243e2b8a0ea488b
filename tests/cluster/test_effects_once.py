"""Each committed order has one job and one effect, whichever processes are killed, and when."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, func, select, text

from tests.cluster.work import seeded
from tests.support.cluster import ROOT
from tests.support.databases import migrate
from tests.support.rows import TABLES, UNFINISHED, ask

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

VERBS = ("enqueue", "work", "work")  # by the place of the process
KILLS = (signal.SIGKILL, signal.SIGUSR1, signal.SIGUSR2)  # at any moment, right after a COMMIT, and right before one


def make_tables(connection: Connection) -> None:
    for table in ("orders", "effects"):
        connection.execute(text(f"CREATE TABLE {table} (id VARCHAR(32))"))  # without a key: a double is stored
    connection.commit()


def progress(connection: Connection) -> tuple[int, int, int]:
    """Orders, jobs that have not ended, and the most often that a worker died under one of these."""
    jobs = TABLES.jobs
    stored = connection.execute(text("SELECT count(*) FROM orders")).scalar_one()
    left = select(func.count(), func.coalesce(func.max(jobs.c.crashes), 0)).where(jobs.c.state.in_(UNFINISHED))
    return (stored, *connection.execute(left).one())


def everything(connection: Connection) -> tuple[list[str], list[str], list[Any], int]:
    jobs, attempts = TABLES.jobs, TABLES.attempts
    lost = select(func.count()).select_from(attempts).where(attempts.c.outcome == "lost")
    return (
        list(connection.execute(text("SELECT id FROM orders")).scalars()),
        list(connection.execute(text("SELECT id FROM effects")).scalars()),
        list(connection.execute(select(jobs.c.args, jobs.c.state)).all()),
        int(connection.execute(lost).scalar_one()),
    )


@dataclass
class Processes:
    """One process that enqueues and two that work; what was killed is started again."""

    url: str
    log: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> Processes:
        self.running = [self.start(verb) for verb in VERBS]
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            process.kill()
            process.wait()

    def start(self, verb: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "tests.cluster.effects", verb, self.url]
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def still_run(self) -> bool:
        return all(process.poll() is None for process in self.running)

    def kill(self, place: int, how: signal.Signals) -> bool:
        """Put another process in its place; return whether this one died as asked."""
        process = self.running[place]
        process.send_signal(how)
        try:
            ended = process.wait(10)
        except subprocess.TimeoutExpired:  # no work, no COMMIT
            process.kill()
            process.wait()
            ended = None
        self.running[place] = self.start(VERBS[place])
        return ended == -signal.SIGKILL  # the other signals end a process that has just started


async def campaign(url: str, log: Path, count: int, each: int, within: float) -> None:
    """Store so many orders, or more, while `each` processes of each kind are killed in each way; look at the end."""
    chance = seeded("effects")
    plan = [(verb, how) for verb in ("enqueue", "work") for how in KILLS] * each
    chance.shuffle(plan)
    migrate(url)
    await ask(url, make_tables)
    until = time.monotonic() + within
    with Processes(url, log) as processes:
        seen = {"enqueue": 0, "work": 0}
        places = {"enqueue": cycle([0]), "work": cycle([1, 2])}  # the one that has run for longer
        stored = 0
        while stored < count or plan:
            assert time.monotonic() < until, f"{stored} orders, {len(plan)} kills to come:\n{log.read_text()[-6000:]}"
            assert processes.still_run(), f"a process ended by itself:\n{log.read_text()[-6000:]}"
            time.sleep(chance.uniform(0, 0.3))
            stored, left, crashes = await ask(url, progress)
            now = {"enqueue": stored, "work": stored - left}
            if not plan:
                continue
            verb, how = plan[-1]
            went_on = now[verb] > seen[verb]  # else each would be killed while it starts
            if went_on and (verb == "enqueue" or crashes == 0):  # a job that three workers died under is given up
                if processes.kill(next(places[verb]), how):
                    plan.pop()
                seen[verb] = now[verb]
        processes.running[0].kill()
        processes.running[0].wait()
        left = 1
        while left:
            assert time.monotonic() < until, f"{left} jobs have not ended:\n{log.read_text()[-6000:]}"
            time.sleep(0.2)
            stored, left, _ = await ask(url, progress)
    orders, effects, jobs, lost = await ask(url, everything)
    print(f"{len(orders)} orders, {2 * len(KILLS) * each} kills, {lost} attempts lost")
    assert len(orders) >= count
    wrong = len(effects) - len(set(effects)), len(set(effects) - set(orders)), len(set(orders) - set(effects))
    assert wrong == (0, 0, 0), "effects twice, effects without an order, orders without an effect"
    assert sorted(json.loads(args)["k"]["order"] for args, _ in jobs) == sorted(orders)
    assert {state for _, state in jobs} == {"succeeded"}
    assert lost, "no kill hit a running job"


@pytest.mark.campaign
async def test_each_committed_order_has_one_effect_whatever_is_killed(url: str, tmp_path: Path) -> None:
    await campaign(url, tmp_path / "log", count=300, each=2, within=120)


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_soak_five_thousand_orders_have_one_effect_each(url: str, tmp_path: Path) -> None:
    await campaign(url, tmp_path / "log", count=5_000, each=12, within=1100)
