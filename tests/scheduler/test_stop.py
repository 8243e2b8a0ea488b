"""`stop()` ends within `drain` and a bound, whatever the database does, and tells those who wait."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onebeat import NotStarted, OnebeatError, Scheduler
from onebeat.engine import stopping
from onebeat.model.job import JobState
from tests.conftest import SERVERS
from tests.scheduler.arrange import scheduler_on
from tests.support import rows
from tests.support.databases import waits_until
from tests.support.proxy import proxy_to

ROOT = Path(__file__).resolve().parents[2]
SERVER_KINDS = [kind for kind in SERVERS if kind in ("postgresql", "mariadb")]
SHORT = 0.5  # seconds that the tests give a stop beyond `drain`, a tenth of the real bound
SOON = 5.0  # seconds; without the bound these stops took from 15 to 46


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop ends half a second after `drain`."""
    monkeypatch.setattr(stopping, "AFTER_DRAIN", SHORT)


async def seconds_to_stop(scheduler: Scheduler) -> float:
    """How long one stop takes."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await scheduler.stop()
    return loop.time() - began


# ── a database that does not answer ───────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("database_kind", SERVER_KINDS)
@pytest.mark.parametrize("work", ["idle", "a job", "a lock", "in a thread's lock"])
async def test_stop_ends_in_time_while_the_server_stands_still(work: str, database_url: str, short: None) -> None:
    async with proxy_to(database_url) as proxy:
        scheduler = Scheduler(proxy.url, drain=0.2, poll=0.05, heartbeat=0.2)
        started = asyncio.Event()

        @scheduler.task(name="long")
        async def long() -> None:
            started.set()
            await asyncio.Event().wait()

        await scheduler.start()
        if work == "a job":
            await long.enqueue()
            await started.wait()
        elif work == "a lock":
            await scheduler.lock("l").acquire()
        elif work == "in a thread's lock":
            await asyncio.to_thread(scheduler.lock("l").acquire_sync)
        proxy.hold()
        await asyncio.sleep(0.3)  # so that every part waits for an answer
        assert await seconds_to_stop(scheduler) < SOON
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("onebeat")]
        proxy.release()


@pytest.mark.parametrize("database_kind", SERVER_KINDS)
async def test_a_call_under_way_when_the_bound_is_reached_gets_a_typed_error(database_url: str, short: None) -> None:
    async with proxy_to(database_url) as proxy:
        scheduler = Scheduler(proxy.url, role="client")

        @scheduler.task(name="work")
        async def work() -> None: ...

        await scheduler.start()
        proxy.hold()
        calls = [asyncio.create_task(work.enqueue()) for _ in range(5)]  # more than there are connections
        await asyncio.sleep(0.1)
        assert await seconds_to_stop(scheduler) < SOON
        done, pending = await asyncio.wait(calls, timeout=SOON)
        assert not pending
        for call in done:
            assert isinstance(call.exception(), OnebeatError)
        proxy.release()


@pytest.mark.parametrize("database_kind", SERVER_KINDS)
async def test_start_that_fails_while_the_server_stands_still_ends_in_time(
    database_url: str, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxy_to(database_url) as proxy:
        scheduler = Scheduler(proxy.url, poll=0.05)
        await scheduler.start()
        await scheduler.stop()
        proxy.hold()
        starting = asyncio.create_task(scheduler.start())
        await waits_until(lambda: proxy.opened > 0)
        await asyncio.sleep(0.1)
        starting.cancel()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.wait({starting})
        assert loop.time() - began < SOON
        proxy.release()


async def test_stop_ends_in_time_while_another_process_locks_the_file(tmp_path: Path, short: None) -> None:
    scheduler = scheduler_on(tmp_path, drain=0.2, poll=0.05)
    started, wrote = asyncio.Event(), list[asyncio.Task[Any]]()

    @scheduler.task(name="long")
    async def long() -> None:
        started.set()
        await asyncio.Event().wait()

    await scheduler.start()
    await long.enqueue()
    await started.wait()
    other = sqlite3.connect(tmp_path / "app.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    wrote += [asyncio.create_task(long.enqueue()) for _ in range(3)]
    await asyncio.sleep(0.1)
    assert await seconds_to_stop(scheduler) < SOON
    other.execute("ROLLBACK")
    other.close()
    done, pending = await asyncio.wait(wrote, timeout=20)
    assert not pending
    assert all(call.exception() is None or isinstance(call.exception(), OnebeatError) for call in done)


@pytest.mark.campaign
@pytest.mark.parametrize("database_kind", SERVER_KINDS)
@pytest.mark.parametrize("delay", [0.02, 0.1])
async def test_stop_of_300_running_jobs_behind_long_round_trips(delay: float, database_url: str) -> None:
    """The real bound: `stop()` ends within `drain` + 5 s, and what could not be written by then counts as drained."""
    async with proxy_to(database_url) as proxy:
        scheduler = Scheduler(proxy.url, drain=1, slots=300)
        started, hurry = 0, asyncio.Event()

        @scheduler.task(name="long")
        async def long(number: int) -> int:
            nonlocal started
            started += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(60 if number % 2 else 1.5):
                    await hurry.wait()
            return number

        await scheduler.start()
        await long.enqueue_many([(number,) for number in range(300)])
        await waits_until(lambda: started == 300)
        proxy.delay = delay
        assert await seconds_to_stop(scheduler) < 1 + stopping.AFTER_DRAIN + 1
    print(Counter(job.state for job in (await rows.read(database_url)).jobs))
    hurry.set()
    after = Scheduler(database_url, heartbeat=0.5, slots=300)
    after.include(scheduler)
    async with after:
        await waits_until(lambda: _all_ended(database_url), within=60)
    ended = (await rows.read(database_url)).jobs
    assert {(job.state, job.errors, job.crashes) for job in ended} == {("succeeded", 0, 0)}


async def _all_ended(url: str) -> bool:
    return await rows.unfinished(url) == 0


# ── those who wait ────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("wait", ["job.wait", "jobs.wait", "job.result"])
async def test_who_waits_for_a_job_when_the_scheduler_stops_is_told_so(wait: str, tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)

    @scheduler.task(name="later")
    async def later() -> None: ...

    await scheduler.start()
    job = await later.options(delay=3600).enqueue()
    waits: dict[str, Callable[[], Any]] = {
        "job.wait": job.wait,
        "jobs.wait": lambda: scheduler.jobs.wait(job.id),
        "job.result": job.result,
    }
    waiting = asyncio.create_task(waits[wait]())
    watcher = scheduler._running().watcher
    await waits_until(lambda: job.id in watcher._waiting)
    await scheduler.stop()
    await asyncio.wait({waiting})
    assert not waiting.cancelled()
    with pytest.raises(NotStarted, match=str(job.id)):
        waiting.result()
    with pytest.raises(NotStarted):
        await watcher.wait(job.id, 1)
    async with scheduler:
        assert (await scheduler.jobs.get(job.id)).state is JobState.SCHEDULED


def test_a_stop_has_five_seconds_beyond_the_default_drain_of_20() -> None:
    plan = stopping.plan_stop(100.0, Scheduler("sqlite:///app.db").settings.drain)
    assert (plan.runs, plan.closed) == (120.0, 125.0)
    assert plan.runs < plan.cancelled < plan.written < plan.left < plan.released < plan.closed


# ── a signal while it starts ──────────────────────────────────────────────────────────────────────────────────────────
APP = """
from fastapi import FastAPI
from onebeat import Scheduler, install

scheduler = Scheduler(start_timeout=120)
app = FastAPI()
install(app, scheduler)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("server", ["onebeat worker", "uvicorn"])
def test_a_signal_ends_a_start_that_waits_for_the_database(server: str, number: signal.Signals, tmp_path: Path) -> None:
    commands = {
        "onebeat worker": ["onebeat", "worker", "--app", "shop:app"],
        "uvicorn": ["uvicorn", "shop:app", "--port", "0"],
    }
    (tmp_path / "shop.py").write_text(APP)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # it accepts and says nothing
        listener.settimeout(60)
        process = subprocess.Popen(
            [sys.executable, "-m", *commands[server]],
            cwd=tmp_path,
            env=os.environ
            | {
                "PYTHONPATH": f"{ROOT / 'src'}",
                "ONEBEAT_DATABASE_URL": f"postgresql://shop:very-secret@127.0.0.1:{listener.getsockname()[1]}/shop",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            connection, _ = listener.accept()
            with connection:
                process.send_signal(number)
                out, _ = process.communicate(timeout=30)  # it would have waited for 120 s
        finally:
            process.kill()
    assert "very-secret" not in out
    if server == "onebeat worker":
        assert process.returncode == 0, out
        assert "Traceback" not in out
    else:
        assert process.returncode in (-number, 130, 3), out
        assert "nothing was started" in out
