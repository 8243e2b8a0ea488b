"""Workers are killed and paused; every job ends, and each attempt has its reason."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cluster import app
from tests.cluster.work import Mix, enqueue, seeded
from tests.support import rows
from tests.support.checker import Facts
from tests.support.cluster import LEASE, Cluster, judge
from tests.support.ledger import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

JOBS = Mix(count=2000, shortest=0.01, longest=0.25)  # long enough for several kills on a quick machine
PAUSABLE = Mix(count=2000, shortest=0.01, longest=0.13, threads=0.4)


def report(name: str, facts: Facts, faults: int) -> None:
    again = sum(job.attempt > 1 for job in facts.jobs)
    refused = sum(line.event == "refused" for line in facts.lines)
    quarantined = sum(job.reason == "quarantined" for job in facts.jobs)
    outages = sum(fault.kind == "outage" for fault in facts.faults)
    print(
        f"{name}: {len(facts.jobs)} jobs, {faults} faults, {outages} outages, {again} ran more than once, "
        f"{refused} stale settlements refused, {quarantined} quarantined"
    )


async def test_the_jobs_of_a_killed_worker_are_run_by_another(sqlite_url: str, tmp_path: Path) -> None:
    mix = Mix(count=60, shortest=0.2, longest=0.5)
    await enqueue(sqlite_url, mix, seeded("one kill"))
    with Cluster(sqlite_url, tmp_path, count=2) as cluster:
        await cluster.ready()
        until(cluster.ledger, lambda lines: any(line.pid == cluster.workers[0].pid for line in lines if line.job), 30)
        cluster.kill(0)
        await cluster.quiet(60)  # starts another in its place
        await cluster.ready()
        assert await cluster.terminate() == [0, 0]
        facts = await cluster.facts()
    judge(facts)
    assert len(facts.jobs) == mix.count
    assert any(row.outcome == "lost" for row in facts.attempts), "the kill hit no running job"


async def killed(url: str, folder: Path, mix: Mix, name: str) -> None:
    chance = seeded(name)
    await enqueue(url, mix, chance)
    with Cluster(url, folder) as cluster:
        await cluster.ready()
        kills = await cluster.kill_again_and_again(chance)
        await cluster.quiet(60)
        await cluster.ready()
        assert await cluster.terminate() == [0] * cluster.count
        facts = await cluster.facts()
    report(name, facts, kills)
    judge(facts)
    assert len(facts.jobs) == mix.count
    assert kills >= 2, "too few kills to say anything"
    assert any(row.outcome == "lost" for row in facts.attempts), "no kill hit a running job"


async def paused(url: str, folder: Path, mix: Mix, name: str, rounds: int) -> None:
    chance = seeded(name)
    share = replace(mix, count=mix.count // rounds)
    with Cluster(url, folder) as cluster:
        await cluster.ready()
        for round in range(rounds):  # the first at any moment, the next so that the others can take its jobs over
            await enqueue(url, share, chance)
            await asyncio.sleep(0.5)
            pauses = (
                cluster.pause(at, LEASE + chance.uniform(0.5, 1.5), between_writes=bool(round))
                for at in chance.sample(range(cluster.count), 2)
            )
            await asyncio.gather(*pauses)
        await cluster.quiet(60 + mix.count * mix.longest / 50)  # what is left, at fifty jobs a time
        await cluster.ready()
        assert await cluster.terminate() == [0] * cluster.count
        facts = await cluster.facts()
    report(name, facts, 2 * rounds)
    judge(facts)
    assert len(facts.jobs) == rounds * share.count
    assert any(row.outcome == "lost" for row in facts.attempts), "no pause cost a worker its jobs"
    assert any(line.event == "refused" for line in facts.lines), "no worker came back with a stale settlement"


@pytest.mark.campaign
async def test_every_job_ends_and_no_start_is_unexplained_while_workers_are_killed(url: str, tmp_path: Path) -> None:
    await killed(url, tmp_path, JOBS, "kill")


@pytest.mark.campaign
async def test_a_worker_paused_beyond_its_lease_settles_nothing_it_lost(url: str, tmp_path: Path) -> None:
    await paused(url, tmp_path, PAUSABLE, "pause", rounds=2)


@pytest.mark.campaign
async def test_a_job_that_kills_its_worker_is_quarantined_after_three_deaths(sqlite_url: str, tmp_path: Path) -> None:
    await enqueue(sqlite_url, Mix(count=50, shortest=0.01, longest=0.1), seeded("poison"))
    async with app.build(sqlite_url, role="client"):
        await app.poison.enqueue()
    with Cluster(sqlite_url, tmp_path, count=2) as cluster:
        await cluster.ready()
        await cluster.quiet(60)
        await cluster.terminate()
        facts = await cluster.facts(poison=frozenset({"poison"}))
    judge(facts)
    assert [job.crashes for job in facts.jobs if job.task == "poison"] == [3]
    assert sum(job.reason == "quarantined" for job in facts.jobs) == 1


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("round", range(3))
async def test_soak_twenty_thousand_jobs_under_kills(url: str, tmp_path: Path, round: int) -> None:
    await killed(url, tmp_path, Mix(count=20_000, shortest=0.05, longest=0.5), f"soak kill {round}")


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_soak_two_hundred_seconds_of_pauses(url: str, tmp_path: Path) -> None:
    await paused(url, tmp_path, Mix(count=20_000, shortest=0.05, longest=0.5, threads=0.4), "soak pause", rounds=40)


@pytest.mark.campaign
async def test_a_process_stopped_while_it_holds_the_write_lock_is_noticed_as_an_outage(
    sqlite_url: str, tmp_path: Path
) -> None:
    """The harness itself: nobody else can renew a lease then, and no other violation hides behind the word."""
    with Cluster(sqlite_url, tmp_path, count=2) as cluster:
        await cluster.ready()
        await cluster.pause(0, 1)
        assert cluster.faults[0].kind == "stop"  # "outage" follows where it held the lock by chance
        async with rows.write_lock(sqlite_url):
            await cluster.pause(0, 1)
        assert [fault.kind for fault in cluster.faults][-2:] == ["stop", "outage"]


@pytest.mark.campaign
async def test_the_rows_of_an_idle_cluster_say_so(sqlite_url: str, tmp_path: Path) -> None:
    """The harness itself: workers that had nothing to do leave alive rows, then stopped ones, and no violation."""
    with Cluster(sqlite_url, tmp_path, count=2) as cluster:
        await cluster.ready()
        assert await rows.unfinished(sqlite_url) == 0
        assert await cluster.terminate() == [0, 0]
        judge(await cluster.facts())
