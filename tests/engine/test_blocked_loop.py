"""A coroutine that blocks its event loop costs its process time, never its lease."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.cluster import app
from tests.conftest import SERVERS
from tests.support import rows
from tests.support.cluster import LEASE, Cluster, judge
from tests.support.ledger import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]


async def blocked(url: str, folder: Path, seconds: float, jobs: int) -> None:
    async with app.build(url, role="client"):
        blocker = await app.block.enqueue(seconds)
    with Cluster(url, folder, count=2) as cluster:
        await cluster.ready()
        begun = until(cluster.ledger, lambda lines: any(line.job == blocker.id for line in lines), 30)
        culprit = next(line.pid for line in begun if line.job == blocker.id)
        async with app.build(url, role="client"):
            await app.work.enqueue_many([(0.05, True)] * jobs)
        await cluster.quiet(seconds + 30)
        alive = (await rows.read(url)).pids
        await cluster.terminate()
        facts = await cluster.facts()
    judge(facts)
    assert len(alive) == 2, "nobody had to register anew"
    assert [line for line in facts.lines if line.event in ("lost", "refused")] == []
    end = next(line.boot for line in facts.lines if line.job == blocker.id and line.event == "end")
    others = [line for line in facts.lines if line.event == "end" and line.job != blocker.id]
    assert len(others) == jobs
    assert all(line.boot < end and line.pid != culprit for line in others), "the others waited for the blocked loop"
    assert {job.attempt for job in facts.jobs} == {1}


@pytest.mark.parametrize("database_kind", [kind for kind in ("sqlite", "postgresql") if kind in SERVERS], indirect=True)
async def test_a_blocked_event_loop_keeps_its_lease_and_others_go_on(fresh_database_url: str, tmp_path: Path) -> None:
    """A beat shares SQLite's writer thread with the engine; on a server it has a connection of its own."""
    await blocked(fresh_database_url, tmp_path, seconds=2.5 * LEASE, jobs=40)


@pytest.mark.soak
@pytest.mark.timeout(240)
async def test_soak_a_blocked_event_loop_of_ninety_seconds(fresh_database_url: str, tmp_path: Path) -> None:
    await asyncio.wait_for(blocked(fresh_database_url, tmp_path, seconds=90, jobs=400), 200)
