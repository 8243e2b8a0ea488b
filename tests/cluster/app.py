"""What the cluster tests run: tasks that keep the ledger, in bare workers and behind uvicorn.

Configured by the environment: PROOF_LEDGER (path), PROOF_RUNNER (pid of the test run), PROOF_SETTINGS (JSON of
settings), PROOF_SCHEDULES (JSON list of schedules to declare), PROOF_MUTE (declare none of them), and
ONEBEAT_DATABASE_URL.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
import time
from typing import Any

from fastapi import FastAPI
from onebeat import JobContext, Retry, Scheduler, TaskRouter, install
from onebeat.model.events import SettlementLost, WorkerDraining, WorkerLost, WorkerStarted
from tests.support.ledger import Ledger

STARVED = 0.7  # seconds a sleeping thread may be late before the process counts as paused by the machine

ledger = Ledger(os.environ.get("PROOF_LEDGER", os.devnull))
router = TaskRouter()


@router.task(name="work")
async def work(ctx: JobContext, seconds: float, with_value: bool) -> int | None:
    """A coroutine; its value is the fence of its claim, so that a row tells which claim it was settled by."""
    with ledger.attempt(ctx):
        await asyncio.sleep(seconds)
    return ctx.fence if with_value else None


@router.task(name="work_in_thread")
def work_in_thread(ctx: JobContext, seconds: float, with_value: bool) -> int | None:
    """The same in a thread: it can be asked to stop, but not stopped."""
    with ledger.attempt(ctx):
        time.sleep(seconds)
    return ctx.fence if with_value else None


@router.task(name="hold_on")
async def hold_on(ctx: JobContext, seconds: float) -> int:
    """Swallows every cancel until its time is over."""
    end = time.monotonic() + seconds
    with ledger.attempt(ctx):
        while (left := end - time.monotonic()) > 0:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(left)
    return ctx.fence


@router.task(name="flaky", retry=Retry(attempts=3, base=0.2, jitter=False))
async def flaky(ctx: JobContext, seconds: float) -> int:
    """Raises at its first attempt."""
    with ledger.attempt(ctx):
        await asyncio.sleep(seconds)
        if ctx.attempt == 1:
            raise RuntimeError("the first attempt fails")
    return ctx.fence


@router.task(name="unlucky", retry=Retry(base=0.5, jitter=False))
async def unlucky(ctx: JobContext, seconds: float) -> int:
    """Is run again a second after its second worker was killed."""
    with ledger.attempt(ctx):
        await asyncio.sleep(seconds)
    return ctx.fence


@router.task(name="once", at_most_once=True)
async def once(ctx: JobContext, seconds: float) -> int:
    """May start once, whatever happens."""
    with ledger.attempt(ctx):
        await asyncio.sleep(seconds)
    return ctx.fence


@router.task(name="poison")
async def poison(ctx: JobContext) -> None:
    """Kills its process each time."""
    ledger.job("start", ctx)
    os.kill(os.getpid(), signal.SIGKILL)


@router.task(name="block")
async def block(ctx: JobContext, seconds: float) -> int:
    """Does what no coroutine should: it blocks the event loop of its process."""
    with ledger.attempt(ctx):
        time.sleep(seconds)
    return ctx.fence


@router.task(name="tick")
async def tick(ctx: JobContext) -> None:
    """What the schedules run."""
    with ledger.attempt(ctx):
        await asyncio.sleep(0)


def build(database: str | None = None, **settings: Any) -> Scheduler:
    """A scheduler with these tasks, and with the schedules of PROOF_SCHEDULES."""
    options = {**json.loads(os.environ.get("PROOF_SETTINGS", "{}")), **settings}
    made = Scheduler(database, **options)
    made.include(router)
    if "PROOF_MUTE" not in os.environ:
        for declared in json.loads(os.environ.get("PROOF_SCHEDULES", "[]")):
            made.every(**declared)(tick)
    return made


def keep_watch() -> None:
    """Write down when this process was not given time, and end with the test run."""
    runner = int(os.environ["PROOF_RUNNER"])
    while True:
        before = time.monotonic()
        time.sleep(0.1)
        late = time.monotonic() - before - 0.1
        if late > STARVED:
            ledger.write("mark", note=f"starved {int(late * 1e6)}")
        try:
            os.kill(runner, 0)
        except ProcessLookupError:
            os.killpg(0, signal.SIGKILL)


def on_the_record(scheduler: Scheduler) -> None:
    """The worker's own fate goes into the ledger too."""

    @scheduler.on(WorkerStarted)
    def _(event: WorkerStarted) -> None:
        ledger.write("worker", worker=event.worker_id)

    @scheduler.on(WorkerLost)
    def _(event: WorkerLost) -> None:
        ledger.write("lost", worker=event.worker_id, note=event.reason[:40])

    @scheduler.on(WorkerDraining)
    def _(event: WorkerDraining) -> None:
        ledger.write("mark", worker=event.worker_id, note="draining")

    @scheduler.on(SettlementLost)
    def _(event: SettlementLost) -> None:
        ledger.write("refused", job=event.job_id, attempt=event.attempt, note=event.ending)


if "PROOF_RUNNER" in os.environ:
    scheduler = build()
    on_the_record(scheduler)
    app = FastAPI()
    install(app, scheduler)
    threading.Thread(target=keep_watch, name="watch", daemon=True).start()
