"""Odd but honest use: other threads, forked children, leases that nobody gives back."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from onebeat.errors import LeaseLost
from onebeat.locks import DatabaseLocks, FileLocks, LocksOn, RedisLocks
from tests.conftest import SERVERS
from tests.locks.memory_place import MemoryBackend, Place
from tests.support.databases import ADDRESSES, Shelf, create_database, drop_database, waits_until

WITHIN = 20.0  # seconds


def test_a_generator_that_is_closed_in_another_thread_gives_its_lock_back() -> None:
    """As FastAPI does with a plain `yield` dependency: begun in one thread of its pool, ended in another."""
    locks = LocksOn(MemoryBackend(Place()))
    lock = locks.lock("a", wait=0)

    @contextmanager
    def dependency() -> Iterator[int]:
        with lock as lease:
            yield lease.fence

    with locks, ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        held = dependency()
        fence = one.submit(held.__enter__).result(WITHIN)
        other.submit(held.__exit__, None, None, None).result(WITHIN)
        with lock as lease:
            assert lease.fence > fence


async def test_a_lock_that_another_task_leaves_is_given_back() -> None:
    async with LocksOn(MemoryBackend(Place())) as locks:
        lock = locks.lock("a", wait=0)
        await lock.__aenter__()
        await asyncio.create_task(lock.__aexit__(None, None, None))
        assert await locks.list() == []
        with pytest.raises(LeaseLost, match="was not entered"):
            await lock.__aexit__(None, None, None)


async def test_a_lock_may_be_taken_again_inside_a_body_that_lost_it() -> None:
    async with LocksOn(MemoryBackend(Place())) as locks:
        lock = locks.lock("a")

        async def work() -> None:
            async with lock as lease:
                await locks.force_release("a", reason="a test")
                with pytest.raises(LeaseLost):
                    await lease.check()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    async with lock as later:
                        assert later.fence > lease.fence

        with pytest.raises(LeaseLost):
            await work()
        assert await locks.list() == []


async def test_a_lease_that_is_lost_and_never_given_back_leaves_nothing_behind() -> None:
    async with LocksOn(MemoryBackend(Place())) as locks:
        lease = await locks.lock("a").acquire()
        lease._hold.lost("a test took it")
        assert not locks._held


def test_a_thread_asks_whether_it_is_lost_without_waiting() -> None:
    with LocksOn(MemoryBackend(Place())) as locks, locks.lock("a", ttl=60) as lease:
        began = time.monotonic()
        assert not lease.lost.wait(0)
        assert not lease.lost.wait(0.01)
        assert time.monotonic() - began < WITHIN


async def test_a_renewal_that_fails_in_an_unforeseen_way_is_tried_again() -> None:
    class Stumbles(MemoryBackend):
        stumbled = 0

        async def renew(self, name: str, owner: str, ttl: int) -> bool:
            if not Stumbles.stumbled:
                Stumbles.stumbled += 1
                raise ZeroDivisionError("a mistake in a back end of one's own")
            return await super().renew(name, owner, ttl)

        def twin(self) -> Stumbles:
            return Stumbles(self.place)

    async with LocksOn(Stumbles(Place())) as locks, locks.lock("a", ttl=4) as lease:
        before = lease._hold.deadline
        await waits_until(lambda: lease._hold.deadline > before)
        assert Stumbles.stumbled


CHILD = """
import os, sys, time
from onebeat.locks import DatabaseLocks, FileLocks, RedisLocks
kind, url = sys.argv[1:]
make = {"file": FileLocks, "redis": lambda url: RedisLocks(*url.split()[:1], prefix=url.split()[1])}
with make.get(kind, DatabaseLocks)(url) as locks:
    with locks.lock("a", ttl=3) as lease:
        child = os.fork()
        if not child:
            sys.exit(0)  # unwinds through both `with`
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        lease.check()
        child = os.fork()
        if not child:
            locks.lock("b").acquire_sync()  # starts a thread that renews, in the child
            os.write(1, b"child\\n")
            time.sleep(60)
        print(child, flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["file", *(kind for kind in ("postgresql", "redis") if kind in SERVERS)])
def test_a_forked_child_neither_releases_nor_renews_its_parents_lock(kind: str, shelf: Shelf, tmp_path: Path) -> None:
    """On SQLite a child may not use what its parent opened at all."""
    prefix = f"onebeat-test-{secrets.token_hex(6)}"
    url = {"file": str(tmp_path / "locks"), "redis": f"{ADDRESSES['redis']} {prefix}"}.get(kind) or shelf.take(
        kind, tmp_path
    )
    command = [sys.executable, "-c", CHILD, kind, url]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child = 0
    try:
        assert parent.stdout is not None
        said = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
        assert "child" in said, "the child took a lock of its own"
        child = int((said - {"child"}).pop())
        parent.kill()
        parent.wait(WITHIN)
        locks: LocksOn[Any] = (
            FileLocks(url)
            if kind == "file"
            else RedisLocks(ADDRESSES["redis"], prefix=prefix)
            if kind == "redis"
            else DatabaseLocks(url)
        )
        with locks, locks.lock("a", wait=WITHIN):
            pass  # nobody renewed it for a parent that is dead
    finally:
        parent.kill()
        if child:
            subprocess.run(["kill", "-KILL", str(child)], check=False)


def test_threads_take_turns_with_one_lock_object() -> None:
    locks = LocksOn(MemoryBackend(Place()))
    lock, inside, most = locks.lock("a"), 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with lock:
                inside += 1
                most = max(most, inside)
                inside -= 1

    with locks:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WITHIN)
        assert most == 1
        assert not lock._entered


def test_a_scripts_locks_make_their_tables_in_a_new_database(database_kind: str, tmp_path: Path) -> None:
    url = create_database(database_kind, tmp_path)
    try:
        with DatabaseLocks(url) as locks, locks.lock("a", wait=0) as lease:
            lease.check()
    finally:
        drop_database(url)
