"""What only file locks promise, and what becomes of them when the directory loses its memory."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from onebeat.errors import DatabaseUnavailable
from onebeat.locks import FileLocks
from tests.locks.losing import HOUR, loses


async def test_a_lock_directory_that_is_emptied_is_noticed_and_fences_grow(tmp_path: Path) -> None:
    async with FileLocks(tmp_path / "locks") as ours, FileLocks(tmp_path / "locks") as theirs:
        later: list[int] = []

        async def empty() -> None:
            for path in (tmp_path / "locks").iterdir():
                path.unlink()
            async with theirs.lock("a", wait=0) as lease:
                later.append(lease.fence)

        assert await loses(ours, empty) < later[-1]


async def test_a_record_cut_short_by_a_power_cut_is_as_one_that_was_lost(tmp_path: Path) -> None:
    async with FileLocks(tmp_path / "locks") as locks:
        async with locks.lock("a") as lease:
            before = lease.fence
        record = next((tmp_path / "locks").glob("*.json"))
        for content in (b"", record.read_bytes()[:20], b"[]", b'{"what": 1}', b"\xff"):
            record.write_bytes(content)
            assert await locks.list() == []
            async with locks.lock("a", wait=0) as lease:
                assert lease.fence > before
                before = lease.fence


async def test_a_machine_clock_set_back_does_not_shrink_a_files_fence(tmp_path: Path) -> None:
    class Behind:
        def now(self) -> int:
            return time.time_ns() // 1000 - HOUR * 1_000_000

        def boot(self) -> int:
            return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000

        def monotonic(self) -> float:
            return time.monotonic()

    async with FileLocks(tmp_path / "locks") as locks, locks.lock("a") as lease:
        before = lease.fence
    async with FileLocks(tmp_path / "locks", clock=Behind()) as locks, locks.lock("a") as lease:
        assert lease.fence > before


async def test_a_forked_child_does_not_keep_the_files_lock(tmp_path: Path) -> None:
    async with FileLocks(tmp_path / "locks") as ours, FileLocks(tmp_path / "locks") as theirs:
        lease = await ours.lock("a").acquire()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)  # lives until the parent has looked
            os._exit(0)
        os.close(reader)
        try:
            await lease.release()
            later = await theirs.lock("a", wait=0).acquire()
            await later.release()
        finally:
            os.close(writer)
            os.waitpid(pid, 0)


async def test_a_directory_that_others_may_enter_or_a_link_is_refused(tmp_path: Path) -> None:
    from onebeat.errors import ConfigurationError

    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    (tmp_path / "private").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "private")
    for name in ("open", "link"):
        with pytest.raises(ConfigurationError):
            await FileLocks(tmp_path / name).open()
    async with FileLocks(tmp_path / "private") as locks, locks.lock("a"):
        assert not [path.name for path in (tmp_path / "private").iterdir() if path.name.startswith("a")]
    lock = next((tmp_path / "private").glob("*.lock"))
    lock.unlink()
    lock.symlink_to(tmp_path / "elsewhere")
    async with FileLocks(tmp_path / "private") as locks:
        with pytest.raises(DatabaseUnavailable):
            await locks.lock("a").acquire()
    assert not (tmp_path / "elsewhere").exists()
