"""Round trips off the event loop, beside the other ways, in one run: `python -m bench.offload`.

Each way is measured in short turns, one after another again and again, so that a busy machine concerns all of them
alike. What is compared is the median of the ratios of neighbouring turns, and beside it the medians themselves.
"""

from __future__ import annotations

import asyncio
import importlib.util
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

from onebeat.offload import to_process, to_thread
from onebeat.offload.processes import close_processes

Trip = Callable[[], Awaitable[Any]]
TURNS, TRIPS = 60, 100  # turns of each way, round trips in a turn


def nothing(value: Any = None) -> Any:
    """The function that is called: it only returns what it got."""
    return value


async def turn(trip: Trip, trips: int) -> list[float]:
    times = []
    for _ in range(trips):
        before = time.perf_counter()
        await trip()
        times.append(time.perf_counter() - before)
    return times


async def compare(title: str, ways: dict[str, Trip], turns: int = TURNS, trips: int = TRIPS) -> dict[str, float]:
    """Print median, p99 and ratio of each way; returns the median of each way's ratio to the first one's turns."""
    for trip in ways.values():
        await turn(trip, 20)
    medians: dict[str, list[float]] = {name: [] for name in ways}
    every: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, trip in ways.items():
            times = await turn(trip, trips)
            medians[name].append(statistics.median(times))
            every[name] += times
    first = medians[next(iter(ways))]
    ratios = {}
    print(f"\n{title} ({turns} turns of {trips}, µs)")
    print(f"{'':38} {'median':>8} {'best turn':>10} {'p99':>9} {'ratio':>7}")
    for name, values in medians.items():
        ratios[name] = statistics.median(mine / other for mine, other in zip(values, first, strict=True))
        p99 = sorted(every[name])[int(len(every[name]) * 0.99)]
        print(
            f"{name:38} {statistics.median(values) * 1e6:8.1f} {min(values) * 1e6:10.1f} {p99 * 1e6:9.1f} "
            f"{ratios[name]:7.2f}"
        )
    return ratios


async def threads(turns: int = TURNS) -> dict[str, float]:
    import anyio.to_thread

    return await compare(
        "an empty function on a thread",
        {
            "onebeat to_thread": lambda: to_thread(nothing),
            "asyncio.to_thread": lambda: asyncio.to_thread(nothing),
            "anyio.to_thread": lambda: anyio.to_thread.run_sync(nothing),
        },
        turns,
    )


async def processes(argument: Any = None, turns: int = TURNS, trips: int = TRIPS) -> dict[str, float]:
    import anyio.to_process

    loop = asyncio.get_running_loop()
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    forked = ProcessPoolExecutor(1, multiprocessing.get_context("fork"))
    ways: dict[str, Trip] = {
        "onebeat to_process": lambda: to_process(nothing, argument),
        "anyio.to_process": lambda: anyio.to_process.run_sync(nothing, argument),
        "ProcessPoolExecutor spawn": lambda: loop.run_in_executor(pool, nothing, argument),
        "ProcessPoolExecutor fork": lambda: loop.run_in_executor(forked, nothing, argument),
    }
    executor = None
    if importlib.util.find_spec("loky"):
        from loky import get_reusable_executor

        executor = get_reusable_executor(max_workers=1)
        ways["loky"] = partial(_loky, executor, argument)
    match argument:
        case bytes():
            size = f"{len(argument):,} bytes there and back"
        case list():
            size = f"a list of {len(argument)} there and back"
        case _:
            size = "nothing"
    try:
        return await compare(f"a process, {size}", ways, turns, trips)
    finally:
        pool.shutdown()
        forked.shutdown()
        if executor is not None:
            executor.shutdown()
        close_processes()


def _loky(executor: Any, argument: Any) -> Awaitable[Any]:
    return asyncio.wrap_future(executor.submit(nothing, argument))


async def first_calls() -> None:
    print("\nfirst call (ms): the seed starts once, then each child")
    for what in ("the seed and a child", "a child"):
        before = time.perf_counter()
        await to_process(os.getpid)
        print(f"{what:38} {(time.perf_counter() - before) * 1e3:8.1f}")
        from onebeat.offload.processes import default_lane

        child = await to_process(os.getpid)
        os.kill(child, 9)
        while os.path.exists(f"/proc/{child}"):
            await asyncio.sleep(0.001)
        assert default_lane().free
    close_processes()


async def main() -> None:
    print(f"Python {platform.python_version()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    await first_calls()
    await threads()
    await processes()
    await processes(list(range(100)), turns=30)
    await processes(list(range(1000)), turns=30)
    await processes(bytes(1_000_000), turns=15, trips=10)


if __name__ == "__main__":
    asyncio.run(main())
    sys.exit(0)
