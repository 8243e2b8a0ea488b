"""A SIGTERM that nobody handles waits until the workers of the process have drained."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from onebeat.logs import exits
from onebeat.scheduler import deferred_sigterm
from onebeat.scheduler.signals import Signals

ROOT = Path(__file__).parents[2]

APP = """
import asyncio, multiprocessing, os, signal, time
from onebeat import Scheduler

scheduler = Scheduler("sqlite:///shop.db")

@scheduler.task
async def work() -> None:
    print("began", flush=True)
    await asyncio.sleep(4)
    print("done", flush=True)

async def main() -> None:
    async with scheduler:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        child.terminate()
        child.join(20)
        print("child", child.exitcode, flush=True)
        await work.enqueue()
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def default_sigterm() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_calls_each_worker_of_the_process_until_the_last_is_released() -> None:
    called: list[str] = []

    def first() -> None:
        called.append("first")

    def second() -> None:
        called.append("second")

    assert deferred_sigterm.defer(first)
    assert deferred_sigterm.defer(second)
    os.kill(os.getpid(), signal.SIGTERM)
    assert called == ["first", "second"]
    deferred_sigterm.release(first)
    deferred_sigterm.end_process()
    os.kill(os.getpid(), signal.SIGTERM)
    assert called == ["first", "second", "second"], "the process goes on while the second drains"
    deferred_sigterm.release(second)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_end_that_writes_the_logs_is_deferred_and_the_handler_of_a_server_is_not() -> None:
    def nothing() -> None: ...

    assert exits.finish_at_sigterm()
    assert deferred_sigterm.defer(nothing)
    deferred_sigterm.release(nothing)
    assert exits.is_end_at_sigterm(signal.getsignal(signal.SIGTERM))
    signal.signal(signal.SIGTERM, lambda *_: None)
    assert not deferred_sigterm.defer(nothing)


async def test_a_scheduler_does_not_chain_to_what_only_ends_the_process() -> None:
    def nothing() -> None: ...

    assert deferred_sigterm.defer(nothing)
    signals = Signals(nothing)
    signals.catch()
    assert deferred_sigterm.is_deferring(signal.getsignal(signal.SIGTERM))
    signals.leave()
    deferred_sigterm.release(nothing)


@pytest.mark.campaign
def test_a_script_without_handlers_ends_its_jobs_and_then_by_the_signal(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        [sys.executable, "-c", APP], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line.strip())
            if line.strip() == "began":
                process.send_signal(signal.SIGTERM)
                process.send_signal(signal.SIGTERM)
        process.wait(40)
    finally:
        process.kill()
    assert lines == [f"child {-signal.SIGTERM}", "began", "done"], "a forked child ends at once, as always"
    assert process.returncode == -signal.SIGTERM
