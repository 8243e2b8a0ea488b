"""Locks: an uncontended acquire and release, and eight tasks that take turns, beside what others offer.

`python -m bench.locks [--seconds 2]`. The figures are times of one acquire and release together, awaited one after the
other (median, 99th percentile), and holds a second when eight tasks of one process want the same lock. Others: the Lock
of redis-py, PostgreSQL's session advisory locks through asyncpg, and grelmicro. Only onebeat's
leases have a fence, and only they are renewed by themselves while held.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

from grelmicro.sync.lock import Lock as GrelmicroLock
from grelmicro.sync.postgres import PostgresSyncBackend
from grelmicro.sync.redis import RedisSyncBackend
from grelmicro.sync.sqlite import SQLiteSyncBackend
from tests.support.databases import ADDRESSES, create_database, drop_database, find_servers

from onebeat.locks import DatabaseLocks, FileLocks, RedisLocks

Make = Callable[[], AbstractAsyncContextManager[Any]]
TASKS = 8


async def alone(make: Make, seconds: float) -> list[float]:
    """Milliseconds of each acquire and release, one after the other."""
    took = []
    for _ in range(20):
        async with make():
            pass
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        async with make():
            pass
        took.append((time.perf_counter() - began) * 1000)
    return took


async def in_turns(make: Make, seconds: float) -> str:
    """Holds a second when eight tasks want it; or what broke."""
    held = 0
    end = time.perf_counter() + seconds

    async def work() -> None:
        nonlocal held
        while time.perf_counter() < end:
            async with make():
                held += 1

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(TASKS):
                group.create_task(work())
    except ExceptionGroup as errors:
        return type(errors.exceptions[0]).__name__
    return f"{held / seconds:.0f}"


class Advisory:
    """pg_advisory_lock on a pool of asyncpg's: it belongs to a session, so the connection is kept while it is held."""

    def __init__(self, pool: Any, key: int) -> None:
        self.pool = pool
        self.key = key
        self.connection: Any = None

    async def __aenter__(self) -> None:
        self.connection = await self.pool.acquire()
        await self.connection.execute("SELECT pg_advisory_lock($1)", self.key)

    async def __aexit__(self, *_: object) -> None:
        await self.connection.execute("SELECT pg_advisory_unlock($1)", self.key)
        await self.pool.release(self.connection)


async def contenders(stack: AsyncExitStack, urls: dict[str, str], folder: Path) -> dict[str, Make]:
    """Name → what makes its lock, opened."""
    found: dict[str, Make] = {}
    for kind, url in urls.items():
        locks: Any = (
            RedisLocks(url, prefix=f"onebeat-bench-{secrets.token_hex(4)}") if kind == "redis" else DatabaseLocks(url)
        )
        await stack.enter_async_context(locks)
        found[f"onebeat on {kind}"] = lambda locks=locks: locks.lock("bench")
    files = await stack.enter_async_context(FileLocks(folder / "locks"))
    found["onebeat on files"] = lambda: files.lock("bench")
    if "redis" in urls:
        from redis.asyncio import Redis

        client: Any = Redis.from_url(urls["redis"])
        stack.push_async_callback(client.aclose)
        name = f"redis-py-bench-{secrets.token_hex(4)}"
        found["redis-py's Lock on redis"] = lambda: client.lock(name, timeout=30)
    if "postgresql" in urls:
        import asyncpg

        pool = await stack.enter_async_context(asyncpg.create_pool(urls["postgresql"], min_size=TASKS, max_size=TASKS))
        found["advisory lock on postgresql"] = lambda: Advisory(pool, 4711)
    found.update(await grelmicros(stack, urls, folder))
    return found


async def grelmicros(stack: AsyncExitStack, urls: dict[str, str], folder: Path) -> dict[str, Make]:
    """grelmicro's lock on each of its places; one object used again, as its documentation has it."""
    makers: dict[str, Callable[[], Any]] = {"sqlite": lambda: SQLiteSyncBackend(folder / "grelmicro.db")}
    if "redis" in urls:
        makers["redis"] = lambda: RedisSyncBackend(urls["redis"], prefix=f"grelmicro-{secrets.token_hex(4)}:")
    if "postgresql" in urls:
        makers["postgresql"] = lambda: PostgresSyncBackend(urls["postgresql"])
    found: dict[str, Make] = {}
    for kind, make in makers.items():
        lock = GrelmicroLock("bench", backend=await stack.enter_async_context(make()))
        found[f"grelmicro on {kind}"] = lambda lock=lock: lock
    return found


async def main(seconds: float) -> None:
    servers = find_servers()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        urls = {kind: create_database(kind, folder) for kind in servers if kind != "redis"}
        if "redis" in servers:
            urls["redis"] = ADDRESSES["redis"]
        try:
            async with AsyncExitStack() as stack:
                print(f"{'':30}{'p50 ms':>10}{'p99 ms':>10}{'turns/s':>10}")
                for title, make in (await contenders(stack, urls, folder)).items():
                    took = await alone(make, seconds)
                    turns = await in_turns(make, seconds)
                    late = statistics.quantiles(took, n=100)[98]
                    print(f"{title:30}{statistics.median(took):10.3f}{late:10.3f}{turns:>10}", flush=True)
        finally:
            for kind, url in urls.items():
                if kind != "redis":
                    drop_database(url)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    asyncio.run(main(parser.parse_args().seconds))
