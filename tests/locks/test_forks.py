"""A forked child keeps nothing of the locks of its parent."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onebeat.locks import DatabaseLocks, FileLocks, LocksOn, RedisLocks
from tests.conftest import SERVERS
from tests.support.databases import ADDRESSES, Shelf

WITHIN = 20.0  # seconds


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
