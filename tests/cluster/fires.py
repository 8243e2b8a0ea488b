"""Twenty schedules of one second behind `uvicorn --workers N`, for the tests and for `python -m bench.fires`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support import rows
from tests.support.checker import SECOND, Facts, lateness, percentile
from tests.support.cluster import Cluster, uvicorn
from tests.support.ledger import wall_us

STRICT: Mapping[str, object] = {"overlap": "allow", "catch_up": "all"}
SETTINGS: Mapping[str, object] = {"lease": 15, "heartbeat": 2, "poll": 1, "slots": 100}
STOOD_STILL = 5 * SECOND  # a watermark that far behind the stop is no lateness any more


@dataclass(frozen=True, slots=True)
class Run:
    """What a run left behind; from `ready` to `stopped` (wall, µs) all workers were up and undisturbed."""

    facts: Facts
    ready: int
    stopped: int

    @property
    def decided_late(self) -> list[int]:
        """From the instant to the verdict, µs, sorted."""
        return lateness(row for row in self.facts.fires if self.ready < row.fire_us < self.stopped)

    @property
    def started_late(self) -> list[int]:
        """From the instant to the first line of the function, µs, sorted."""
        begun = (line for line in self.facts.lines if line.event == "start" and line.fire is not None)
        return sorted(line.wall - line.fire for line in begun if line.fire and self.ready < line.fire < self.stopped)

    @property
    def verdicts(self) -> dict[str, int]:
        """How many of each kind."""
        return dict(Counter(row.decision for row in self.facts.fires))


async def run(url: str, folder: Path, seconds: float, policies: Mapping[str, object], workers: int = 4) -> Run:
    """Let the schedules fire for so long; a worker without schedules then ends what is left of the jobs."""
    schedules = [{"seconds": 1, "id": f"each-second-{n}", **policies} for n in range(20)]
    with Cluster(url, folder, count=1, command=uvicorn(workers), settings=SETTINGS, schedules=schedules) as cluster:
        await cluster.ready(children=workers)
        ready = wall_us()
        await asyncio.sleep(seconds)  # the length of the run, waiting for nothing
        stopped = wall_us()
        await cluster.terminate()
    due = await cluster.due()
    watermarks = [next_fire for _, next_fire in (await rows.read(url)).schedules.values()]
    with Cluster(url, folder, count=1, settings=SETTINGS, schedules=schedules, mute=True) as rest:
        await rest.ready()
        await rest.quiet(30)
        await rest.terminate()
    made = Run(await cluster.facts(due=due), ready, stopped)
    assert len(watermarks) == 20
    assert min(mark or 0 for mark in watermarks) > stopped - STOOD_STILL, "a schedule stood still"
    assert len(due) >= 20 * (seconds - 1)
    pids = {line.pid for line in made.facts.lines if line.event == "worker"}
    assert len(pids) == workers + 1, "the workers of uvicorn, and the one that ended what was left"
    return made


def words(values: Sequence[int]) -> str:
    """Percentiles in milliseconds."""
    shares = [f"p{share:g} {percentile(values, share / 100) / 1000:.1f}" for share in (50, 90, 99)]
    return ", ".join([*shares, f"max {values[-1] / 1000:.1f} ms"]) if values else "none"
