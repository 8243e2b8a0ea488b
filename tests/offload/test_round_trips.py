"""Round trips beside the other ways: a soak test, because a busy machine makes figures worthless."""

from __future__ import annotations

import pytest
from bench import offload

TRIES = 3


@pytest.mark.soak
async def test_a_thread_costs_at_most_a_fifth_more_than_asyncios() -> None:
    ratios = [(await offload.threads())["asyncio.to_thread"] for _ in range(TRIES)]
    assert max(ratios) >= 1 / 1.2, ratios


@pytest.mark.soak
async def test_a_process_is_faster_than_the_other_ways() -> None:
    slowest: dict[str, float] = {}
    for _ in range(TRIES):
        for name, ratio in (await offload.processes()).items():
            slowest[name] = max(ratio, slowest.get(name, 0))
    assert set(slowest) > {"anyio.to_process", "ProcessPoolExecutor spawn", "ProcessPoolExecutor fork", "loky"}
    assert [name for name, ratio in slowest.items() if ratio < 1] == []
