"""onebeat itself never blocks the loop it is there to keep free."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster, BlockingError, blockbuster_ctx

from onebeat.errors import Busy, Stopped
from onebeat.offload import Lane, Watchdog, close_offload, setup_offload, to_process, to_thread
from onebeat.offload.processes import close_processes
from onebeat.offload.runners import ProcessRunner, ThreadRunner
from tests.offload import work


@pytest.fixture
def _no_blocking_call_on_the_loop() -> Iterator[BlockBuster]:
    close_processes()
    with blockbuster_ctx() as buster:
        yield buster


@pytest.mark.usefixtures("_no_blocking_call_on_the_loop")
async def test_offload_makes_no_blocking_call_on_the_loop() -> None:
    with pytest.raises(BlockingError):
        time.sleep(0.001)  # the guard is on
    setup_offload(processes=2, warm=True)
    with Watchdog():
        assert await to_thread(len, "four") == 4
        assert await to_process(work.identity, bytes(1_000_000)) == bytes(1_000_000)
        with pytest.raises(TimeoutError):
            await to_process(work.spin, timeout=0.2)
        task = asyncio.create_task(to_process(work.spin))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        lane = Lane("tiny", width=1, queue=0)
        held = asyncio.create_task(to_thread(work.polite, lane=lane))
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await to_thread(len, "", lane=lane)
        with pytest.raises(TimeoutError):
            await to_thread(time.sleep, 0.3, timeout=0.05)
        held.cancel()
        for runner in (ThreadRunner(1), ProcessRunner(1)):
            running = runner.start(work.polite)
            await asyncio.sleep(0.05)
            running.stop("enough")
            with pytest.raises(Stopped):
                await running.future
            await runner.close()
    await close_offload()
    setup_offload()
    assert await to_process(work.identity, 1) == 1, "with the number of processors, read off the loop"
    await close_offload()


ROOT = Path(__file__).resolve().parents[2]


def guarded(*arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest in a process of its own, with every wait on an event loop noted."""
    command = [sys.executable, "-m", "pytest", "-c", "pyproject.toml", "-p", "tests.offload.guard", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_guard_sees_a_wait_of_onebeat_and_no_other(tmp_path: Path) -> None:
    own = tmp_path / "test_waits.py"
    own.write_text(
        "import time\n"
        "from onebeat.offload.processes import close_processes, to_process\n"
        "async def test_by_onebeat():\n"
        "    await to_process(int)\n"
        "    close_processes()  # waits for what ends: no business of a loop\n"
        "async def test_by_the_test():\n"
        "    time.sleep(0.01)\n"
    )
    done = guarded(str(own))
    assert done.returncode == 1, done.stdout
    assert re.search(r"blocking calls of onebeat on an event loop: [1-9]", done.stdout), done.stdout
    assert "in test_by_onebeat" in done.stdout
    assert "test_by_the_test" not in done.stdout


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_onebeat_never_waits_on_a_loop_while_its_tests_run() -> None:
    done = guarded("-m", "not soak", "--ignore", __file__, "tests")
    assert "blocking calls of onebeat on an event loop: 0\n" in done.stdout, done.stdout[-20_000:]
