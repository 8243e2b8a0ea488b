"""SIGTERM and SIGINT drain; a second signal stops a worker at once; uvicorn with several workers loses nothing."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster import app, rolling
from tests.cluster.work import Mix, enqueue, seeded
from tests.conftest import SERVERS
from tests.support import rows
from tests.support.cluster import Cluster, judge, uvicorn
from tests.support.ledger import Line, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(150)]


def started(count: int) -> Callable[[list[Line]], bool]:
    return lambda lines: sum(line.event == "start" for line in lines) >= count


@pytest.mark.campaign
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_a_signal_drains_a_worker(number: signal.Signals, sqlite_url: str, tmp_path: Path) -> None:
    """What runs is ended and settled, what waits keeps waiting, and the worker says goodbye."""
    async with app.build(sqlite_url, role="client"):
        await app.work.enqueue_many([(1.5, True)] * 20)
    with Cluster(sqlite_url, tmp_path, count=1) as cluster:
        until(cluster.ledger, started(8), 30)
        assert await cluster.terminate(number) == [0]
        left = await rows.read(sqlite_url)
    states = sorted(job.state for job in left.jobs)
    assert states == ["queued"] * 12 + ["succeeded"] * 8
    assert left.attempts == []
    with Cluster(sqlite_url, tmp_path, count=1) as cluster:
        await cluster.quiet(30)
        await cluster.terminate()
        facts = await cluster.facts()
    judge(facts)
    assert [job.attempt for job in facts.jobs] == [1] * 20


@pytest.mark.campaign
async def test_a_second_signal_stops_a_worker_at_once(sqlite_url: str, tmp_path: Path) -> None:
    async with app.build(sqlite_url, role="client"):
        await app.work.enqueue(60, True)
        await app.work.enqueue(0, True)
    with Cluster(sqlite_url, tmp_path, count=1, settings={"drain": 60}) as cluster:
        until(
            cluster.ledger, lambda lines: {"end", "start"} <= {line.event for line in lines} and started(2)(lines), 30
        )
        process = cluster.workers[0].process
        process.send_signal(signal.SIGTERM)
        until(cluster.ledger, lambda lines: any(line.note == "draining" for line in lines), 10)
        assert process.poll() is None, "one signal drains: the job of a minute is still running"
        process.send_signal(signal.SIGTERM)
        process.wait(10)
    left = await rows.read(sqlite_url)
    assert sorted(job.state for job in left.jobs) in (["queued", "succeeded"], ["running", "succeeded"])


async def test_a_drain_that_takes_too_long_gives_the_job_back(sqlite_url: str, tmp_path: Path) -> None:
    """After `drain` seconds a coroutine is cancelled; the job is queued again at once, and no budget is used."""
    async with app.build(sqlite_url, role="client"):
        job = await app.work.enqueue(60, True)
    with Cluster(sqlite_url, tmp_path, count=1, settings={"drain": 0.5}) as cluster:
        until(cluster.ledger, started(1), 30)
        assert await cluster.terminate(timeout=20) == [0]
    left = (await rows.read(sqlite_url)).jobs
    assert [(row.id, row.state, row.errors, row.crashes) for row in left] == [(job.id, "queued", 0, 0)]


async def test_sigterm_to_uvicorn_with_two_workers_loses_nothing(sqlite_url: str, tmp_path: Path) -> None:
    await terminated(sqlite_url, tmp_path, Mix(count=60, shortest=0.1, longest=0.5), workers=2)


@pytest.mark.campaign
async def test_sigterm_to_uvicorn_with_four_workers_loses_nothing(url: str, tmp_path: Path) -> None:
    await terminated(url, tmp_path, Mix(count=300, shortest=0.1, longest=0.5), workers=4)


async def terminated(url: str, folder: Path, mix: Mix, workers: int) -> None:
    await enqueue(url, mix, seeded("uvicorn"))
    with Cluster(url, folder, count=1, command=uvicorn(workers)) as cluster:
        await cluster.ready(children=workers)
        until(cluster.ledger, started(mix.count // 5), 30)
        await cluster.terminate()
    running = [job for job in (await rows.read(url)).jobs if job.state == "running"]
    assert running == [], "a drained worker holds nothing"
    with Cluster(url, folder, count=1, settings={"slots": 50}) as rest:
        await rest.quiet(60)
        await rest.terminate()
        facts = await cluster.facts()
    judge(facts)
    assert len(facts.jobs) == mix.count
    assert [job for job in facts.jobs if job.crashes] == []


@pytest.mark.campaign
async def test_three_deploys_over_jobs_of_20_s_count_no_death(sqlite_url: str, tmp_path: Path) -> None:
    """A thread and a coroutine that swallows its cancel go on when their server must end; both are run again."""
    async with app.build(sqlite_url, role="client"):
        await app.work_in_thread.enqueue(20, False)
        await app.hold_on.enqueue(20)
    settings = {"drain": 1, "lease": 60, "heartbeat": 1}
    for deploy in range(3):
        with Cluster(sqlite_url, tmp_path, count=1, command=uvicorn(1), settings=settings) as cluster:
            until(cluster.ledger, started(2 * deploy + 2), 30)
            await cluster.terminate(timeout=30)
        left = await rows.read(sqlite_url)
        assert [(job.errors, job.crashes) for job in left.jobs] == [(0, 0), (0, 0)]
    with Cluster(sqlite_url, tmp_path, count=1, command=uvicorn(1), settings={**settings, "drain": 40}) as cluster:
        await cluster.quiet(60)
        await cluster.terminate()
        left = await rows.read(sqlite_url)
    assert [(job.state, job.attempt, job.crashes) for job in left.jobs] == [("succeeded", 4, 0)] * 2


# ── rolling restarts ──────────────────────────────────────────────────────────────────────────────────────────────────
ROLLING = ("-m", "onebeat", "worker", "--app", "tests.cluster.rolling:scheduler")
EACH = 5.0  # seconds between two restarts
LONG = 8.0  # seconds of each job


async def rolled(url: str, folder: Path, *, drain: float, seconds: float) -> None:
    """Replace one of three workers every 5 s, while coroutine, thread and process jobs of 8 s are enqueued."""
    settings = {"drain": drain, "lease": 60, "heartbeat": 1}
    ended: list[int] = []
    client = rolling.build(url, role="client", lease=60, heartbeat=1)
    work, thread, process = (client.registry.get(name) for name in ("work", "work_in_thread", "work_in_process"))
    async with client:
        with Cluster(url, folder, count=3, command=ROLLING, settings=settings) as cluster:
            await cluster.ready()
            leaving = []
            for restart in range(int(seconds / EACH)):
                begun = time.monotonic()
                await work.enqueue_many([(LONG, True)] * 3)
                await thread.enqueue_many([(LONG, True)] * 2)
                await process.enqueue(LONG)
                leaving.append(cluster.workers[restart % 3])
                leaving[-1].process.send_signal(signal.SIGTERM)
                cluster.workers[restart % 3] = cluster._start()
                await asyncio.sleep(max(0.0, EACH - (time.monotonic() - begun)))
            await cluster.quiet(180)
            for worker in leaving:
                ended.append(await asyncio.to_thread(worker.process.wait, 40))
            await cluster.terminate()
        jobs = (await rows.read(url)).jobs
    assert ended == [0] * len(ended)
    assert len(jobs) == 6 * int(seconds / EACH)
    assert {(job.state, job.errors, job.crashes) for job in jobs} == {("succeeded", 0, 0)}


@pytest.mark.campaign
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("database_kind", "drain"),
    [(kind, drain) for kind, drain in (("sqlite", 20), ("postgresql", 2)) if kind in SERVERS],
    indirect=["database_kind"],
)
async def test_a_rolling_restart_costs_no_job(drain: float, url: str, tmp_path: Path) -> None:
    await rolled(url, tmp_path, drain=drain, seconds=40)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("drain", [20, 2], ids=["jobs end in the drain", "jobs are given back"])
async def test_soak_a_rolling_restart_of_three_minutes_costs_no_job(drain: float, url: str, tmp_path: Path) -> None:
    await rolled(url, tmp_path, drain=drain, seconds=180)
