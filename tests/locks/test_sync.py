"""Locks without an event loop: threads, generators and scripts."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from onebeat.locks import DatabaseLocks, LocksOn
from tests.locks.memory_backend import MemoryBackend, MemoryStore
from tests.support.databases import create_database, drop_database

WITHIN = 20.0  # seconds


def test_a_generator_that_is_closed_in_another_thread_gives_its_lock_back() -> None:
    """As FastAPI does with a plain `yield` dependency: begun in one thread of its pool, ended in another."""
    locks = LocksOn(MemoryBackend(MemoryStore()))
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


def test_threads_take_turns_with_one_lock_object() -> None:
    locks = LocksOn(MemoryBackend(MemoryStore()))
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


def test_a_thread_asks_whether_it_is_lost_without_waiting() -> None:
    with LocksOn(MemoryBackend(MemoryStore())) as locks, locks.lock("a", ttl=60) as lease:
        began = time.monotonic()
        assert not lease.lost.wait(0)
        assert not lease.lost.wait(0.01)
        assert time.monotonic() - began < WITHIN


def test_a_scripts_locks_make_their_tables_in_a_new_database(database_kind: str, tmp_path: Path) -> None:
    url = create_database(database_kind, tmp_path)
    try:
        with DatabaseLocks(url) as locks, locks.lock("a", wait=0) as lease:
            lease.check()
    finally:
        drop_database(url)
