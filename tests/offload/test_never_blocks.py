"""onebeat itself never blocks the loop it is there to keep free."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

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
async def test_nothing_in_this_room_makes_a_blocking_call_on_the_loop() -> None:
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
