"""The jobs the cluster tests enqueue, drawn from a seed that is printed."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass

from tests.cluster import app
from tests.support.cluster import LEASE


def seeded(name: str) -> random.Random:
    """Chance from PROOF_SEED, else from a fresh seed; printed, so that a failure can be run again."""
    seed = int(os.environ.get("PROOF_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"{name}: PROOF_SEED={seed}")
    return random.Random(seed)


@dataclass(frozen=True, slots=True)
class Mix:
    """How many jobs, how long (seconds), and what share runs in threads, fails once, or may start once only."""

    count: int
    shortest: float
    longest: float
    threads: float = 0.2
    flaky: float = 0.1
    once: float = 0.05


async def enqueue(url: str, mix: Mix, chance: random.Random) -> None:
    """Store the jobs; nobody needs to be running."""
    drawn: dict[str, list[tuple[object, ...]]] = {"work": [], "work_in_thread": [], "flaky": [], "once": []}
    for _ in range(mix.count):
        seconds = round(chance.uniform(mix.shortest, mix.longest), 3)
        kind = chance.random()
        if kind < mix.once:
            drawn["once"].append((seconds,))
        elif kind < mix.once + mix.flaky:
            drawn["flaky"].append((seconds,))
        elif kind < mix.once + mix.flaky + mix.threads:
            drawn["work_in_thread"].append((seconds, chance.random() < 0.5))
        else:
            drawn["work"].append((seconds, chance.random() < 0.5))
    async with app.build(url, role="client", lease=LEASE, heartbeat=LEASE / 6):
        for name, arguments in drawn.items():
            await getattr(app, name).enqueue_many(arguments)
