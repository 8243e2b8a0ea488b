"""The database server is killed in mid-load and comes back: the app recovers, nothing is lost, nothing is doubled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.work import Mix, enqueue, seeded
from tests.conftest import SERVERS
from tests.support.checker import Fault
from tests.support.cluster import Cluster, judge
from tests.support.databases import RAN
from tests.support.ledger import Line, boot_us, until
from tests.support.servers import MariaDBServer, PostgreSQLServer, private_server

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(150)]

RECOVERED = 10.0  # seconds from the server's return to the next claimed job
AWAY = 2.0  # seconds the server is gone, at least
Server = PostgreSQLServer | MariaDBServer
SCHEDULES = [{"seconds": 1, "id": f"each-second-{n}", "overlap": "allow", "catch_up": "all"} for n in range(3)]


@pytest.fixture(params=[kind for kind in ("postgresql", "mariadb") if kind in SERVERS])
def kind(request: pytest.FixtureRequest) -> str:
    RAN.add(request.param)
    return str(request.param)


def claimed_since(moment: int) -> Callable[[list[Line]], bool]:
    return lambda lines: any(line.event == "start" and line.boot > moment for line in lines)


def longer_than(size: int) -> Callable[[list[Line]], bool]:
    return lambda lines: len(lines) > size


async def outage(server: Server, cluster: Cluster, end: Callable[[], None]) -> float:
    """End the server, wait, start it again, and wait for the next claimed job; the seconds that took."""
    begin = boot_us()
    end()
    await asyncio.sleep(AWAY)  # the length of the outage, waiting for nothing
    await asyncio.to_thread(server.start)
    back = boot_us()
    until(cluster.ledger, claimed_since(back), RECOVERED)
    recovered = boot_us()
    cluster.faults.append(Fault(kind="outage", begin=begin, end=recovered))
    return (recovered - back) / 1e6


async def survived(kind: str, folder: Path, mix: Mix, outages: int, name: str) -> None:
    chance = seeded(name)
    with private_server(kind) as server:
        await enqueue(server.url, mix, chance)
        with Cluster(server.url, folder, schedules=SCHEDULES) as cluster:
            await cluster.ready()
            took = []
            for number in range(outages):
                until(cluster.ledger, longer_than(cluster.ledger.size() + 100), 30)
                end = server.stop if number and chance.random() < 0.5 else server.kill
                took.append(await outage(server, cluster, end))
            await drained(cluster, 60 + mix.count * mix.longest / 25)  # what is left, at twenty-five jobs a time
            await cluster.terminate()
            due = await cluster.due()
        with Cluster(server.url, folder, count=1, schedules=SCHEDULES, mute=True) as rest:
            await rest.quiet(30)
            await rest.ready()
            await rest.terminate()
        facts = await cluster.facts(due=due)
    print(f"{kind}: {len(facts.jobs)} jobs, back at work {', '.join(f'{s:.1f} s' for s in took)} after the server")
    judge(facts)
    assert sum(job.schedule_id is None for job in facts.jobs) == mix.count


async def drained(cluster: Cluster, timeout: float) -> None:
    """Return when no enqueued job is left; the schedules go on making theirs."""
    deadline = time.monotonic() + timeout
    while any(
        job.schedule_id is None and job.state in ("queued", "running", "scheduled") for job in await cluster.jobs()
    ):
        assert time.monotonic() < deadline, f"jobs are left after {timeout} s:\n{cluster.tail()}"
        await asyncio.sleep(0.3)


@pytest.mark.campaign
async def test_a_killed_database_server_costs_time_and_nothing_else(kind: str, tmp_path: Path) -> None:
    await survived(kind, tmp_path, Mix(count=800, shortest=0.05, longest=0.4), 1, "outage")


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_soak_ten_outages(kind: str, tmp_path: Path) -> None:
    await survived(kind, tmp_path, Mix(count=12_000, shortest=0.05, longest=0.5), 10, "soak outage")
