"""The watchdog names what blocks the loop, once, and is quiet about everything else."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import uvloop

from onebeat.model.protocols import Unit
from onebeat.offload import Watchdog, to_thread
from onebeat.offload.watchdog.stalls import Stall, TimeSpent
from onebeat.offload.watchdog.watchdog import _LoopMonitor
from onebeat.tracking import tracking
from onebeat.tracking.carrier import ContextCarrier

LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]


def watched(
    main: Callable[[], Coroutine[Any, Any, None]],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    limit: float = 0.1,
) -> list[Stall]:
    """Run `main` on a watched loop; what the watchdog reported."""
    stalls: list[Stall] = []

    async def around() -> None:
        with Watchdog(limit, on_stall=stalls.append) as watchdog:
            await asyncio.sleep(limit)
            await main()
            await asyncio.sleep(2 * limit)  # the answer that ends the stall, and the look at it
            assert watchdog.stalls == len(stalls)
            assert watchdog.worst == max((stall.seconds for stall in stalls), default=0)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(around())
    return stalls


@pytest.mark.parametrize("loop_factory", LOOPS, ids=["asyncio", "uvloop"])
def test_a_blocking_call_is_named_with_its_line_and_tracking_id(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with tracking("order-7"):
            time.sleep(0.3)  # the culprit

    [stall] = watched(main, loop_factory)
    assert stall.code == "time.sleep(0.3)  # the culprit"
    assert re.search(r"test_watchdog\.py:\d+ in .*main$", stall.where)
    assert stall.tracking_id == "order-7"
    assert 0.25 < stall.seconds < 5
    assert "main" in stall.stack
    [said] = [record for record in caplog.records if record.name == "onebeat.offload.watchdog"]
    assert said.levelno == logging.WARNING
    assert "time.sleep(0.3)" in said.getMessage()
    assert "tracking id order-7" in said.getMessage()
    assert said.__dict__["stall_seconds"] == round(stall.seconds, 3)


@pytest.mark.parametrize("loop_factory", LOOPS, ids=["asyncio", "uvloop"])
def test_a_computing_loop_is_named_too_and_so_is_the_job(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    def compute() -> None:
        until = time.thread_time() + 0.3
        while time.thread_time() < until:
            pass

    async def main() -> None:
        unit = Unit(kind="job", id="0199", task="reports.monthly", attempt=2)
        with ContextCarrier().restore("job-id", None, unit):
            compute()

    [stall] = watched(main, loop_factory)
    assert stall.where.endswith("compute")
    assert stall.what == "job reports.monthly"
    assert stall.tracking_id == "job-id"


def test_the_callers_line_is_named_not_the_librarys() -> None:
    async def main() -> None:
        subprocess.run([sys.executable, "-c", "import time; time.sleep(0.3)"], check=True)  # deep inside: a wait

    [stall] = watched(main)
    assert "deep inside" in stall.code
    assert "subprocess.py" in stall.stack


def test_a_plain_callback_is_named_with_the_context_it_was_made_in() -> None:
    async def main() -> None:
        with tracking("callback-id"):
            asyncio.get_running_loop().call_soon(time.sleep, 0.3)
        await asyncio.sleep(0.01)

    [stall] = watched(main)
    assert stall.tracking_id == "callback-id"


def test_each_stall_is_said_once_with_its_own_duration() -> None:
    async def main() -> None:
        for seconds in (0.3, 0.6):
            time.sleep(seconds)
            await asyncio.sleep(0.2)

    first, second = watched(main)
    assert first.seconds < second.seconds


def test_c_code_that_keeps_the_interpreter_lock_is_reported_late_without_a_stack() -> None:
    """A regular expression with catastrophic backtracking: nobody can look while it runs."""
    hard = re.compile(r"(a+)+$")

    async def main() -> None:
        before = time.thread_time()
        size = 18
        while time.thread_time() - before < 0.3:  # each step doubles the work; the last one takes half of all
            hard.match("a" * size + "!")
            size += 1

    stalls = watched(main)
    assert stalls
    assert all("interpreter lock" in stall.where or "test_watchdog.py" in stall.where for stall in stalls)


def test_c_code_on_another_thread_that_keeps_the_lock_is_named_by_its_function() -> None:
    hard = re.compile(r"(a+)+$")

    def backtrack(size: int) -> float:
        before = time.thread_time()
        hard.match("a" * size + "!")
        return time.thread_time() - before

    size = 20
    while backtrack(size) < 0.7:
        size += 1

    async def main() -> None:
        await to_thread(backtrack, size)

    stalls = watched(main)
    assert len(stalls) == 1
    assert "another thread" in stalls[0].where


def test_short_work_and_long_waits_raise_no_alarm() -> None:
    async def main() -> None:
        await asyncio.gather(*(asyncio.sleep(0.3) for _ in range(100)))
        await to_thread(time.sleep, 0.3)
        for _ in range(10):
            time.sleep(0.01)
            await asyncio.sleep(0)

    assert watched(main) == []


def test_threads_that_compute_in_python_raise_no_alarm() -> None:
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            hashlib.sha256(b"x" * 100).hexdigest()

    async def main() -> None:
        calls = [asyncio.create_task(to_thread(compute)) for _ in range(4)]
        await asyncio.sleep(1)
        stop.set()
        await asyncio.gather(*calls)

    assert watched(main) == []


@contextmanager
def stress(processes: int) -> Any:
    """Keep every processor busy with other processes."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


@pytest.mark.parametrize(
    ("lost", "spent", "guilty"),
    [
        (0.0, TimeSpent(), True),
        (0.06, TimeSpent(), False),
        (0.0, TimeSpent(delayed=0.06), False),
        (0.03, TimeSpent(delayed=0.03), False),
        (0.03, TimeSpent(delayed=0.01), True),
        (0.14, TimeSpent(computed=0.12), True),
    ],
    ids=["blocked", "the watchdog came late", "no processor", "some of both", "blocked all the same", "computing"],
)
async def test_time_without_a_processor_is_not_the_loops_own(lost: float, spent: TimeSpent, guilty: bool) -> None:
    """After 0.15 s without an answer, with a limit of 0.1 s."""
    watch = _LoopMonitor(Watchdog(0.1), asyncio.get_running_loop(), threading.get_ident(), threading.get_native_id())
    watch._own_lateness = lost
    assert watch._is_blocked(0.15, spent) is guilty


async def test_where_a_system_tells_no_times_of_threads_a_late_answer_alone_is_no_stall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The time its thread has computed since it was made once counted as that of one stall."""
    monkeypatch.setattr("onebeat.offload.watchdog.stalls._open_schedstat", lambda thread: None)
    stalls: list[Stall] = []
    watch = _LoopMonitor(
        Watchdog(0.1, on_stall=stalls.append), asyncio.get_running_loop(), threading.get_ident(), os.getpid()
    )
    with watch._meter as meter:
        watch._ping(meter.read())
        watch._handle_answer(watch._sent + 0.15, computed=3.0)
        assert stalls == []
        assert watch._is_blocked(0.15, meter.read()), "and a look while it lasts still finds it"


def under_load(seconds: float) -> Callable[[], Coroutine[Any, Any, None]]:
    async def main() -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await to_thread(sum, range(10_000))
            await asyncio.sleep(0.01)

    return main


@pytest.mark.campaign
@pytest.mark.alone
def test_load_from_other_processes_raises_no_alarm() -> None:
    with stress(4 * (os.cpu_count() or 1)):
        assert watched(under_load(3)) == []


@pytest.mark.soak
@pytest.mark.timeout(800)
@pytest.mark.parametrize("loop_factory", LOOPS, ids=["asyncio", "uvloop"])
def test_ten_minutes_of_load_from_other_processes_raise_no_alarm(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with stress(4 * (os.cpu_count() or 1)):
        assert watched(under_load(600 / len(LOOPS)), loop_factory) == []


@pytest.mark.campaign
@pytest.mark.alone
def test_a_stall_under_load_is_still_found() -> None:
    async def main() -> None:
        time.sleep(1)  # blocked, whatever others do

    with stress(2 * (os.cpu_count() or 1)):
        stalls = watched(main)
    assert any("blocked, whatever" in stall.code for stall in stalls)


def test_a_stall_that_goes_on_is_said_before_it_is_over(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onebeat.offload.watchdog import watchdog

    monkeypatch.setattr(watchdog, "ONGOING", 0.4)

    async def main() -> None:
        time.sleep(1)

    [stall] = watched(main)
    said = [record.getMessage() for record in caplog.records if record.name == "onebeat.offload.watchdog"]
    assert [("has been blocked" in words) for words in said] == [True, False]
    assert stall.seconds >= 0.9


async def test_a_watchdog_can_be_started_once_and_again_after_its_stop() -> None:
    watchdog = Watchdog()
    watchdog.start()
    with pytest.raises(RuntimeError, match="already"):
        watchdog.start()
    watchdog.stop()
    watchdog.start()
    watchdog.stop()
    for wrong in (0, -1, math.inf):
        with pytest.raises(ValueError, match="positive"):
            Watchdog(wrong)
    assert Watchdog(timedelta(milliseconds=50)).limit == 0.05


def test_a_loop_that_does_not_run_is_not_blocked() -> None:
    """Between two runs, or after the last one, nobody waits for an answer."""
    stalls: list[Stall] = []
    watchdog = Watchdog(limit=0.05, on_stall=stalls.append)
    loop = asyncio.new_event_loop()

    async def begin() -> None:
        watchdog.start()

    loop.run_until_complete(begin())
    time.sleep(0.5)  # the loop does not run, so this blocks nobody
    loop.run_until_complete(asyncio.sleep(0.2))
    watchdog.stop()
    loop.close()
    assert stalls == []


def test_a_watchdog_ends_with_its_loop() -> None:
    watchdog = Watchdog(limit=0.02)

    async def main() -> None:
        watchdog.start()

    asyncio.run(main())
    thread = watchdog._thread
    assert thread is not None
    thread.join(30)
    assert not thread.is_alive()


async def test_a_loop_that_only_waits_is_not_woken_and_one_that_works_is_asked() -> None:
    """The pings alone cost most of one per cent of a processor, for a server without a request."""
    asked = 0

    loop = asyncio.get_running_loop()
    plain = loop.call_soon_threadsafe

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal asked
        asked += 1
        return plain(*args, **kwargs)

    loop.call_soon_threadsafe = counted  # type: ignore[method-assign,assignment]  # the loop of this test alone
    with Watchdog(limit=0.04) as watchdog:
        await asyncio.sleep(0.2)
        asked = 0
        await asyncio.sleep(0.6)
        assert asked <= 10, "thirty looks, but for those that met the loop at work"
        time.sleep(0.3)
        await asyncio.sleep(0.1)
    assert watchdog.stalls == 1
    assert asked >= 1
