"""Blocking functions on threads: the loop goes on, limits are kept, and what cannot be stopped is named."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import logging
import math
import socket
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from unittest.mock import Mock

import pytest

from onebeat.errors import Busy, Stopped
from onebeat.offload import Lane, checkpoint, remaining, to_thread
from onebeat.offload.limits import within
from onebeat.offload.pool import lanes
from onebeat.offload.runners import ThreadRunner

colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


class Gate:
    """A function that blocks its thread until the test opens it."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()
        self.entries = 0

    def __call__(self) -> str:
        self.entries += 1
        self.entered.release()
        assert self.opened.wait(30)
        return "through"

    async def inside(self) -> None:
        """Return once one more call is inside."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=30)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


def until_told() -> None:
    while True:
        checkpoint()
        time.sleep(0.001)


async def test_the_function_runs_on_a_thread_of_its_lane_with_the_callers_context() -> None:
    colour.set("blue")

    def seen() -> tuple[str, str, bool]:
        thread = threading.current_thread()
        result = thread.name, colour.get(), thread.daemon
        colour.set("changed in the thread")
        return result

    name, value, daemon = await to_thread(seen, lane=Lane("paint"))
    assert name.startswith("onebeat-paint-")
    assert value == "blue"
    assert daemon, "a stuck thread must not hold up the end of the process"
    assert colour.get() == "blue"


async def test_keywords_for_the_function_go_through_partial_and_an_unknown_one_says_so() -> None:
    assert await to_thread(functools.partial(sorted, reverse=True), [1, 2]) == [2, 1]
    with pytest.raises(TypeError, match=r"to_thread\(functools\.partial\(builtins\.sorted, reverse=…\), …\)"):
        await to_thread(sorted, [1, 2], reverse=True)  # type: ignore[arg-type]  # what the test is about


async def test_what_does_its_work_later_is_refused_instead_of_never_doing_it_or_doing_it_on_the_loop() -> None:
    async def fetch() -> int:
        return 1

    class Fetcher:
        async def __call__(self) -> int:
            return 1

    def lines() -> Iterator[str]:
        yield "one"

    for coroutine in (fetch, Fetcher(), functools.partial(Fetcher().__call__)):
        with pytest.raises(TypeError, match="is a coroutine function: await it"):
            _ = await to_thread(coroutine)
    with pytest.raises(TypeError, match="is a generator function: its body runs where it is iterated"):
        _ = await to_thread(lines)
    with pytest.raises(TypeError, match="takes a function"):
        await to_thread(fetch.__name__)  # type: ignore[arg-type]  # what the test is about


async def test_an_option_that_cannot_be_meant_is_refused() -> None:
    with pytest.raises(ValueError, match="on_timeout='kill' is not one of 'abandon', 'wait'"):
        await to_thread(len, "", on_timeout="kill")  # type: ignore[arg-type]  # what the test is about
    with pytest.raises(TypeError, match="lane='pdf' is not a Lane"):
        await to_thread(len, "", lane="pdf")  # type: ignore[arg-type]  # as above
    for wrong in ("5", True):
        with pytest.raises(TypeError, match="is not a duration"):
            await to_thread(len, "", timeout=wrong)  # type: ignore[arg-type]  # as above
    with pytest.raises(ValueError, match="is not a duration"):
        await to_thread(len, "", timeout=math.nan)


async def test_a_timeout_is_seconds_or_a_timedelta_and_one_that_is_over_starts_nothing() -> None:
    assert 59 < (await to_thread(remaining, timeout=timedelta(minutes=1)) or 0) <= 60
    assert await to_thread(remaining, timeout=math.inf) is None
    for over in (0, -1, timedelta()):
        with pytest.raises(TimeoutError, match="was not started"):
            await to_thread(pytest.fail, "this must not run", timeout=over)


async def test_a_mock_may_be_called_and_named() -> None:
    """It has every attribute that one asks it for, `func` of `functools.partial` too."""
    with pytest.raises(TypeError, match=r"unittest\.mock\.Mock"):
        await to_thread(Mock(), key=1)  # type: ignore[arg-type]  # refused, with its name
    assert await to_thread(Mock(return_value=5)) == 5


@pytest.mark.parametrize("raised", [ValueError("no"), KeyError("k")])
async def test_an_exception_of_the_function_is_the_callers(raised: Exception) -> None:
    def fail() -> None:
        raise raised

    with pytest.raises(type(raised)) as caught:
        await to_thread(fail)
    assert caught.value is raised


async def test_an_exception_frees_the_functions_variables_without_a_garbage_collection() -> None:
    class Large: ...

    watched: list[weakref.ref[Large]] = []

    def fail() -> None:
        large = Large()
        watched.append(weakref.ref(large))
        raise ValueError("no")

    runner = ThreadRunner(1)
    gc.disable()
    try:
        with contextlib.suppress(ValueError):
            await to_thread(fail)
        with contextlib.suppress(ValueError):
            await runner.start(fail).future
        async with asyncio.timeout(5):
            while any(large() is not None for large in watched):
                await asyncio.sleep(0.001)  # the thread releases the call a moment later
    finally:
        gc.enable()
        await runner.close()
    assert len(watched) == 2


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), StopIteration(1), asyncio.CancelledError()])
async def test_no_exception_of_the_function_ends_the_event_loop(raised: BaseException) -> None:
    def fail() -> None:
        raise raised

    with pytest.raises(RuntimeError, match=type(raised).__name__) as caught:
        await to_thread(fail)
    assert caught.value.__cause__ is raised


async def test_a_full_lane_says_busy_and_others_do_not_notice(gate: Gate) -> None:
    lane = Lane("narrow", width=1, queue=1)
    first = asyncio.create_task(to_thread(gate, lane=lane))
    await gate.inside()
    second = asyncio.create_task(to_thread(gate, lane=lane))
    await asyncio.sleep(0)
    assert (lane.running, lane.waiting, lane.free) == (1, 1, 0)
    with pytest.raises(Busy, match="lane 'narrow' is full: 1 threads are busy, 1 calls wait"):
        await to_thread(gate, lane=lane)

    assert await to_thread(len, "another lane") == 12
    loop = asyncio.get_running_loop()
    assert await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM), "names are looked up as ever"
    gate.opened.set()
    assert list(await asyncio.gather(first, second)) == ["through", "through"]
    assert gate.entries == 2


async def test_the_default_pools_of_asyncio_and_starlette_stay_untouched(gate: Gate) -> None:
    loop = asyncio.get_running_loop()
    only = ThreadPoolExecutor(max_workers=1)
    loop.set_default_executor(only)
    calls = [asyncio.create_task(to_thread(gate)) for _ in range(16)]
    for _ in calls:
        await gate.inside()
    assert await asyncio.to_thread(int, "1") == 1
    from anyio.to_thread import current_default_thread_limiter, run_sync

    assert current_default_thread_limiter().borrowed_tokens == 0
    assert await run_sync(int, "2") == 2
    gate.opened.set()
    await asyncio.gather(*calls)


async def test_a_caller_is_not_kept_longer_than_its_timeout_and_the_thread_keeps_its_place(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    lane = Lane("slow", width=2, queue=0)
    with pytest.raises(TimeoutError, match=r"Gate took longer than its 0\.05 s"):
        await to_thread(gate, lane=lane, timeout=0.05)
    assert lane.free == 1, "the thread cannot be killed, so its place is not free"
    assert "abandoned" in caplog.text
    assert "now at" in caplog.text
    [held] = lane.held()
    assert held.abandoned
    assert "opened.wait" in held.stack
    gate.opened.set()
    assert await lane.drain(30) == []
    assert lane.free == 2


async def test_a_call_still_queued_at_its_timeout_or_cancellation_never_runs(gate: Gate) -> None:
    lane = Lane("one", width=1, queue=5)
    first = asyncio.create_task(to_thread(gate, lane=lane))
    await gate.inside()
    with pytest.raises(TimeoutError, match="still waiting in lane"):
        await to_thread(gate, lane=lane, timeout=0.02)
    for way in ("abandon", "wait"):
        queued = asyncio.create_task(to_thread(gate, lane=lane, on_timeout=way))
        await asyncio.sleep(0)
        assert lane.waiting == 1
        queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await queued
        assert lane.waiting == 0
    gate.opened.set()
    await first
    assert await lane.drain(30) == []
    assert gate.entries == 1


async def test_waiting_structured_returns_only_when_the_function_has_ended() -> None:
    ended = threading.Event()

    def work() -> None:
        try:
            until_told()
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        await to_thread(work, timeout=0.05, on_timeout="wait")
    assert ended.is_set()
    ended.clear()
    task = asyncio.create_task(to_thread(work, on_timeout="wait"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_a_function_learns_its_remaining_time_and_leaves_at_a_checkpoint() -> None:
    lane = Lane("polite", width=1, queue=0)
    assert 9 < (await to_thread(remaining, timeout=10) or 0) <= 10
    assert await to_thread(remaining) is None
    with pytest.raises(TimeoutError):
        await to_thread(until_told, timeout=0.05, lane=lane)
    assert await lane.drain(30) == [], "the checkpoint gave the thread back"
    with within(5):
        assert (await to_thread(remaining, timeout=100) or 0) <= 5, "an outer limit holds inside too"


async def test_a_cancelled_caller_lets_the_function_leave_at_its_next_checkpoint() -> None:
    lane = Lane("cancelled", width=1, queue=0)
    task = asyncio.create_task(to_thread(until_told, lane=lane))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await lane.drain(30) == []


async def test_what_an_abandoned_call_came_to_is_not_lost(caplog: pytest.LogCaptureFixture) -> None:
    opened = threading.Event()
    lane = Lane("late", width=1, queue=0)

    def fail() -> None:
        assert opened.wait(30)
        raise ValueError("too late to tell anybody")

    with pytest.raises(TimeoutError):
        await to_thread(fail, timeout=0.01, lane=lane)
    opened.set()
    await lane.drain(30)
    assert [record.exc_info[1].args for record in caplog.records if record.exc_info and record.exc_info[1]] == [
        ("too late to tell anybody",)
    ]


async def test_a_hundred_abandoned_threads_are_named_and_hold_up_nothing(gate: Gate) -> None:
    lane = Lane("hundred", width=100, queue=0)
    results = await asyncio.gather(
        *(to_thread(gate, timeout=0.2, lane=lane) for _ in range(100)), return_exceptions=True
    )
    assert {type(result) for result in results} == {TimeoutError}
    assert not lane.healthy
    assert lane.free == 0
    with pytest.raises(Busy, match="100 by abandoned calls"):
        await to_thread(len, "", lane=lane)
    before = time.monotonic()
    held = await lane.drain(0.1)
    assert time.monotonic() - before < 10
    assert len(held) == 100
    assert all(call.function.endswith("Gate") and call.abandoned for call in held)


async def test_threads_end_after_a_time_without_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "IDLE_TIMEOUT", 0.01)
    lane = Lane("brief")
    thread = await to_thread(threading.current_thread, lane=lane)
    await asyncio.to_thread(thread.join, 30)
    assert not thread.is_alive()
    assert await to_thread(len, "1", lane=lane) == 1, "and start again when needed"


async def test_no_call_is_lost_while_threads_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "IDLE_TIMEOUT", 0.0001)
    lane = Lane("flicker", width=3, queue=1000)
    for _ in range(20):
        assert await asyncio.gather(*(to_thread(abs, -n, lane=lane) for n in range(50))) == list(range(50))
        await asyncio.sleep(0.0001)
    assert await lane.drain(30) == []


async def test_the_runner_of_jobs_counts_its_free_places_exactly(gate: Gate) -> None:
    runner = ThreadRunner(2)
    colour.set("green")
    running = [runner.start(gate), runner.start(gate)]
    assert runner.free == 0
    with pytest.raises(Busy):
        runner.start(gate)
    assert running[0].stop("timeout") is False, "a thread is only asked"
    gate.opened.set()
    assert await asyncio.gather(*(call.future for call in running)) == ["through", "through"]
    assert runner.free == 2, "free again when the future tells, so the next start finds its place"
    for n in range(200):
        one, two = runner.start(colour.get), runner.start(int, str(n), base=16)
        assert (await one.future, await two.future) == ("green", int(str(n), 16))


async def test_a_stopped_job_that_leaves_at_a_checkpoint_ends_as_stopped() -> None:
    runner = ThreadRunner(1)
    running = runner.start(until_told)
    running.stop("the job was cancelled")
    with pytest.raises(Stopped, match="the job was cancelled"):
        await running.future
    assert runner.free == 1
    with within(0.01):
        late = runner.start(until_told)
    with pytest.raises(Stopped, match="its time is over"):
        await late.future
    leaving = runner.start(until_told)
    await runner.close()
    with pytest.raises(Stopped, match="closing"):
        await leaving.future
    with pytest.raises(Busy):
        runner.start(int)


async def test_a_call_that_outlives_its_event_loop_is_only_noted(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    lane = Lane("outlived", width=1, queue=0)

    def other_loop() -> None:
        async def main() -> None:
            asyncio.get_running_loop().create_task(to_thread(gate, lane=lane))
            await gate.inside()

        asyncio.run(main())

    with caplog.at_level(logging.DEBUG, "onebeat.offload"):
        await asyncio.to_thread(other_loop)
        gate.opened.set()
        assert await lane.drain(30) == []
    assert "ended after its event loop" in caplog.text


def test_offload_loads_without_database_framework_or_pydantic() -> None:
    import subprocess

    code = (
        "import sys, onebeat.offload, onebeat.offload.runners\n"
        "heavy = {'sqlalchemy', 'fastapi', 'starlette', 'pydantic', 'anyio'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
