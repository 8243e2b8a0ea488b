"""Small calls go from the event loop to a child and back without a thread; whatever is not small goes by thread."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from onebeat.errors import Stopped, WorkerProcessDied
from onebeat.offload.limits import Limit
from onebeat.offload.pool.calls import AwaitedCall
from onebeat.offload.pool.lanes import Lane, PoolThread
from onebeat.offload.pool.process_lane import ProcessLane
from onebeat.offload.runners import RunningProcess
from tests.offload import work


@pytest.fixture(params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """Each test runs on both: uvloop changes what it watches."""
    policy: asyncio.AbstractEventLoopPolicy = request.param()
    return policy


pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy")
LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture
def woken(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The calls for which a thread was woken."""
    calls: list[object] = []
    wake = Lane.wake

    def noting(self: Lane, thread: PoolThread, call: Any = None) -> None:
        calls.append(call)
        wake(self, thread, call)

    monkeypatch.setattr(Lane, "wake", noting)
    return calls


@pytest.fixture
def lane() -> Iterator[ProcessLane]:
    lane = ProcessLane("fast path", 1)
    yield lane
    lane.close()


def submit(lane: ProcessLane, function: Callable[..., Any], *args: Any, seconds: float | None = None) -> RunningProcess:
    call = AwaitedCall(function, args, {}, Limit(seconds))
    lane.submit(call)
    return RunningProcess(call)


async def idle(lane: ProcessLane) -> int:
    """The number of the lane's child, which waits for a call."""
    return int(await submit(lane, work.pid).future)


async def test_a_small_call_with_a_small_answer_wakes_no_thread(woken: list[object], lane: ProcessLane) -> None:
    await idle(lane)
    for value in (None, 1, 2.5, True, "words", b"bytes", "x" * 1000, [1, 2], {"a": (1, [None]), "b": {}}):
        assert await submit(lane, work.identity, value).future == value
        assert lane.free == 1
    assert await submit(lane, functools.partial(work.add.__wrapped__, b=2), 1).future == 3  # type: ignore[attr-defined]  # functools.wraps sets it
    assert woken == []


async def test_what_is_not_small_goes_by_thread_and_so_does_the_rest_of_a_call_with_another_end(
    woken: list[object], lane: ProcessLane
) -> None:
    child = await idle(lane)
    circle: list[object] = []
    circle.append(circle)
    for value in ([1] * 200, "x" * 10_000, 2**100, b"x" * 1_000_000, {1}, [letter * 1000 for letter in "abcde"]):
        call = submit(lane, work.identity, value)
        assert await call.future == value
        assert woken.pop() is call._call
    assert len(await submit(lane, work.identity, circle).future) == 1
    assert len(woken) == 1
    woken.clear()
    ends: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (work.buffer, (1_000_000,)),  # a large answer
        (work.logs, ("hello",)),  # records before the answer
        (work.left, ()),
    ]
    for function, args in ends:
        await submit(lane, function, *args).future
    with pytest.raises(ValueError, match="from far away"):
        await submit(lane, work.fail, "value").future
    assert len(woken) == 3, "not for the last but one, whose answer is small"
    assert await idle(lane) == child
    with pytest.raises(WorkerProcessDied, match="exit code 3"):
        await submit(lane, work.exit_with, 3).future


async def test_a_child_that_died_between_calls_is_replaced(lane: ProcessLane) -> None:
    child = await idle(lane)
    os.kill(child, signal.SIGKILL)
    async with asyncio.timeout(30):
        while Path(f"/proc/{child}").exists():
            await asyncio.sleep(0.005)
    assert await idle(lane) != child


async def test_a_call_that_is_told_to_stop_ends_and_gives_its_place_back(lane: ProcessLane) -> None:
    for _ in range(3):
        await idle(lane)
        call = submit(lane, work.spin)
        await asyncio.sleep(0.01)
        call.stop("enough")
        with pytest.raises(Stopped, match="enough"):
            await call.future
        assert lane.free == 1


async def test_children_are_replaced_after_their_number_of_calls() -> None:
    lane = ProcessLane("recycled", 1, recycle=3)
    pids = [await idle(lane) for _ in range(9)]
    assert [pids.count(pid) for pid in pids] == [3] * 9
    await asyncio.to_thread(lane.close)


async def test_a_record_made_after_the_answer_is_handed_on_and_harms_no_later_call(
    lane: ProcessLane, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(20):
        assert await submit(lane, work.logs_later, number).future == number
    async with asyncio.timeout(30):
        while sum("later" in record.getMessage() for record in caplog.records) < 20:
            assert await submit(lane, work.identity, 7).future == 7


CLOSING = ["on a thread", *(["on its loop"] if "tests.offload.guard" not in sys.modules else [])]  # that one waits


@pytest.mark.parametrize("where", CLOSING)
async def test_closing_the_lane_ends_a_call_that_is_under_way(where: str, lane: ProcessLane) -> None:
    await idle(lane)
    call = submit(lane, work.spin)
    before = time.monotonic()
    if where == "on its loop":
        lane.close(10)
    else:
        await asyncio.to_thread(lane.close, 10)
    assert time.monotonic() - before < 8, "it did not wait for a loop that it held up itself"
    with pytest.raises(Stopped, match="closing"):
        await call.future
    assert lane.threads() == []


@pytest.mark.parametrize("loop_factory", LOOPS, ids=["asyncio", "uvloop"])
def test_a_call_whose_event_loop_has_ended_does_not_keep_its_place(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], lane: ProcessLane, tmp_path: Path
) -> None:
    async def leave_one() -> None:
        await idle(lane)
        submit(lane, work.wait_for, str(tmp_path / "go"))
        assert lane.running == 1

    async def wait_for_it() -> object:
        later = submit(lane, work.identity, "after it")
        (tmp_path / "go").touch()
        return await later.future

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(leave_one())
    assert asyncio.run(asyncio.wait_for(wait_for_it(), 30)) == "after it"


@pytest.mark.parametrize("loop_factory", LOOPS, ids=["asyncio", "uvloop"])
def test_a_lane_closes_at_once_although_the_event_loop_of_a_call_has_ended(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], lane: ProcessLane
) -> None:
    async def leave_one() -> None:
        await idle(lane)
        submit(lane, work.spin)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(leave_one())
    before = time.monotonic()
    lane.close(10)
    assert time.monotonic() - before < 8
    assert lane.threads() == []


async def test_no_answer_goes_to_another_call_whatever_is_stopped_meanwhile() -> None:
    """Small calls, large ones, ends and times, all at once."""
    lane = ProcessLane("mixed", 2, queue=1000)

    async def one(number: int) -> None:
        value: object = number if number % 2 else [number] * (1 + number % 3)
        if number % 10 == 9:
            call = submit(lane, work.sleeps, 0.002 * (number % 4), number)
            asyncio.get_running_loop().call_later(0.003, call.stop, "enough")
            try:
                assert await call.future == number
            except Stopped:
                return
        else:
            assert await submit(lane, work.identity, value).future == value

    for start in range(0, 300, 10):
        await asyncio.gather(*(one(start + number) for number in range(10)))
    assert lane.running == 0
    threads = threading.active_count()
    await asyncio.to_thread(lane.close)
    assert threading.active_count() < threads
