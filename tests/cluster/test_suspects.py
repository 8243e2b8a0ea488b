"""Jobs whose workers were killed twice run within the stated time, and nothing else is stopped for them."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest

from tests.cluster import app
from tests.conftest import SERVERS
from tests.support import rows
from tests.support.checker import SECOND, JobRow
from tests.support.cluster import HEARTBEAT, Cluster
from tests.support.ledger import Line, until

DATABASES = [kind for kind in ("sqlite", "postgresql") if kind in SERVERS]
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.campaign,
    pytest.mark.timeout(120),
    pytest.mark.parametrize("database_kind", DATABASES, indirect=True),
]

TURN, LOOK, WAY = 2 * HEARTBEAT, 1.1 * HEARTBEAT, HEARTBEAT / 3  # seconds: docs/guarantees.md
MACHINE = 3.0  # seconds that a busy machine may add
SHORT = 1.5  # seconds of each suspect, so that it can be killed meanwhile
FLOW = (0.3, False)  # seconds of each other job; without a value


def within(workers: int) -> float:
    """Return the seconds in which a suspect starts where so many workers know its task."""
    return workers * TURN + LOOK + WAY + MACHINE


def started(lines: list[Line], ids: list[UUID], attempt: int) -> bool:
    """Whether this attempt of each of these jobs has started."""
    found = {line.job for line in lines if line.event == "start" and line.attempt == attempt}
    return found.issuperset(ids)


async def killed_twice(url: str, folder: Path, count: int) -> list[UUID]:
    """Enqueue so many jobs, and kill the worker that runs them, twice."""
    async with app.build(url, role="client"):
        ids = [(await app.unlucky.enqueue(SHORT)).id for _ in range(count)]
    for death in (1, 2):
        with Cluster(url, folder, count=1) as cluster:
            until(cluster.ledger, partial(started, ids=ids, attempt=death), 30)
            cluster.kill(0)
    return ids


async def waits(cluster: Cluster, ids: list[UUID]) -> list[float]:
    """Wait until these jobs have started once more; the seconds from the time at which each was due, in order."""
    await asyncio.to_thread(until, cluster.ledger, partial(started, ids=ids, attempt=3), 60)
    due = {job.id: job.run_at_us for job in await cluster.jobs()}
    third = [line for line in cluster.ledger.lines() if line.event == "start" and line.attempt == 3]
    found = sorted((line.wall - due[line.job]) / SECOND for line in third if line.job in ids)
    print(f"suspects started after {found} s")
    return found


def fates(jobs: list[JobRow], ids: list[UUID]) -> set[tuple[str, int, int]]:
    return {(job.state, job.attempt, job.crashes) for job in jobs if job.id in ids}


async def test_suspects_start_beside_a_long_job_of_the_only_worker(url: str, tmp_path: Path) -> None:
    suspects = await killed_twice(url, tmp_path, 2)
    async with app.build(url, role="client"):
        long = (await app.work.enqueue(60, True)).id
    with Cluster(url, tmp_path, count=1) as cluster:
        until(cluster.ledger, partial(started, ids=[long], attempt=1), 30)
        first, second = await waits(cluster, suspects)
        jobs = await cluster.jobs()
        assert cluster.workers[0].process.poll() is None
    assert first <= within(1)
    assert second <= 2 * within(1) + SHORT, "the only worker takes one suspect in each turn"
    assert fates(jobs, [long]) == {("running", 1, 0)}
    assert {(job.attempt, job.crashes) for job in jobs if job.id in suspects} == {(3, 2)}


async def test_suspects_start_beside_a_steady_flow_on_two_workers(url: str, tmp_path: Path) -> None:
    """The flow is more than both workers can do, so neither is ever idle."""
    suspects = await killed_twice(url, tmp_path, 3)
    async with app.build(url, role="client"):
        await app.work.enqueue_many([FLOW] * 20)
        with Cluster(url, tmp_path, count=2, settings={"slots": 2}) as cluster:
            flow = asyncio.create_task(keep_flowing(url))
            found = await waits(cluster, suspects)
            flow.cancel()
            await cluster.quiet(60)
            assert await cluster.terminate() == [0, 0]
            assert cluster.faults[:-1] == [], "no process ended by itself"
            jobs = await cluster.jobs()
    assert found[0] <= within(2)
    assert found[2] <= 3 * within(2) + 2 * SHORT
    assert fates(jobs, suspects) == {("succeeded", 3, 2)}
    assert fates(jobs, [job.id for job in jobs if job.id not in suspects]) == {("succeeded", 1, 0)}


async def keep_flowing(url: str) -> None:
    """Keep more jobs queued than the workers can start."""
    while True:
        if await rows.unfinished(url) < 15:
            await app.work.enqueue_many([FLOW] * 10)
        await asyncio.sleep(0.2)
