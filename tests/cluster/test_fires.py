"""Real uvicorn workers, twenty schedules of one second: each due instant has one verdict, each start one job."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.cluster.fires import STRICT, run, words
from tests.support.cluster import judge

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]


async def exactly_once(url: str, folder: Path, seconds: float, workers: int = 4) -> None:
    made = await run(url, folder, seconds, STRICT, workers)
    facts = made.facts
    print(f"{url.partition(':')[0]}: {made.verdicts}; verdicts late by {words(made.decided_late)}")
    judge(facts)
    assert set(made.verdicts) == {"started"}
    assert all(job.state == "succeeded" and job.attempt == 1 for job in facts.jobs)
    ran = Counter((line.schedule, line.fire) for line in facts.lines if line.event == "end")
    assert ran == Counter((due.schedule_id, due.fire_us) for due in facts.due or ())


async def test_each_due_instant_has_one_verdict_and_each_start_one_finished_job(url: str, tmp_path: Path) -> None:
    await exactly_once(url, tmp_path, 3, workers=2)


@pytest.mark.campaign
async def test_each_due_instant_of_twelve_seconds_has_one_verdict_with_four_workers(url: str, tmp_path: Path) -> None:
    await exactly_once(url, tmp_path, 12)


@pytest.mark.soak
@pytest.mark.timeout(240)
async def test_soak_sixty_seconds_of_fires(url: str, tmp_path: Path) -> None:
    await exactly_once(url, tmp_path, 60)


@pytest.mark.soak
@pytest.mark.timeout(240)
async def test_soak_sixty_seconds_with_the_default_policies(url: str, tmp_path: Path) -> None:
    made = await run(url, tmp_path, 60, {})
    print(f"{url.partition(':')[0]}: {made.verdicts}")
    judge(made.facts)
