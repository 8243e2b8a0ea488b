"""Tasks whose module a child process can import."""

from __future__ import annotations

import threading
import time
from typing import Annotated

from fastapi import Depends
from onebeat import JobContext, Retry, TaskRouter
from onebeat.offload import checkpoint, remaining, to_process, to_process_sync
from onebeat.tracking import tracking_id
from tests.offload import work

router = TaskRouter()
asked_to_stop = threading.Event()


@router.task(run_in="process", timeout=1, retry=Retry(attempts=1))
def spins() -> None:
    work.spin()


@router.task(run_in="process", timeout=30, retry=Retry(attempts=1))
def where(path: str) -> dict[str, str | int | None]:
    """Wait for the file, then say where this runs."""
    work.wait_for(path)
    return {"pid": work.pid(), "tracking_id": tracking_id()}


@router.task(run_in="process", timeout=30, retry=Retry(attempts=1))
def dies() -> None:
    work.exit_with(9)


@router.task(timeout=30, retry=Retry(attempts=1))
def polite() -> None:
    """A sync task: on a thread by itself; it looks now and then whether it should stop."""
    asked_to_stop.clear()
    try:
        while True:
            checkpoint()
            time.sleep(0.001)
    finally:
        asked_to_stop.set()


@router.task(timeout=0.2, retry=Retry(attempts=1))
def hasty() -> None:
    while True:
        checkpoint()
        time.sleep(0)


@router.task(run_in="process", timeout=0.2, retry=Retry(attempts=1))
def hasty_in_a_process() -> None:
    work.polite()


@router.task(timeout=30)
def on_a_thread() -> tuple[str, float | None]:
    return threading.current_thread().name, remaining()


@router.task(timeout=30)
async def asks_a_process() -> str | None:
    return (await to_process(work.surroundings))[0]


@router.task(timeout=30)
def asks_a_process_from_a_thread() -> str | None:
    return to_process_sync(work.surroundings)[0]


def wants_its_context(context: JobContext) -> None: ...


def depends_by_annotation(value: Annotated[int, Depends(work.pid)]) -> None: ...


def depends_by_default(value: int = Depends(work.pid)) -> None: ...
