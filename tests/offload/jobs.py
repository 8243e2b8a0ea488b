"""Tasks whose module a child process can import."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, computed_field
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from fastapi import Depends
from onebeat import Cancel, JobContext, NotStarted, Retry, Snooze, TaskRouter, current_job
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


class Closing(BaseException):
    """Not an `Exception`, as those of shells and of test runners are not."""


class OutOfStock(LookupError):
    """Cannot be rebuilt by pickle: its constructor takes another number of arguments than it passes on."""

    def __init__(self, shop: str, *, item: str) -> None:
        super().__init__(f"{shop} has no {item}")


@dataclass(frozen=True)
class Frozen(Exception):
    """Refuses every attribute that is set on it, also the ones which Python's own tools set."""

    item: str


@dataclass(frozen=True)
class FrozenAndEmpty(Exception):
    """Can be rebuilt, and refuses its cause afterwards."""


RAISED: dict[str, Callable[[], BaseException]] = {
    "value": lambda: ValueError("wrong"),
    "rebuilt never": lambda: OutOfStock("corner", item="bread"),
    "exit": lambda: SystemExit(3),
    "iteration": lambda: StopIteration(1),
    "cancelled": lambda: asyncio.CancelledError("by itself"),
    "base": lambda: Closing("now"),
    "frozen": lambda: Frozen("bread"),
    "frozen and empty": FrozenAndEmpty,
}


def raises(kind: str) -> None:
    raise RAISED[kind]()


async def raises_on_the_loop(kind: str) -> None:
    raise RAISED[kind]()


def snoozes(folder: str) -> str:
    """Ask for another try once, and return at the second start."""
    try:
        (Path(folder) / "snoozed").touch(exist_ok=False)
    except FileExistsError:
        return "done"
    raise Snooze(0.01)


def cancels() -> None:
    raise Cancel("nothing to do")


SECRETS = ("s3cret", "eyJhbGciOiJIUzI1NiJ9", "4242 4242", "0xdeadbeef")
FORGED = "2026-01-02 03:04:05 ERROR forged"


def tells_secrets() -> None:
    """Fail as drivers, HTTP clients and SQLAlchemy do, with a cause and a note that tell secrets too."""
    engine = create_engine("sqlite://")
    try:
        try:
            with engine.connect() as connection:
                connection.execute(text("INSERT INTO cards VALUES (:number)"), {"number": SECRETS[2]})
        finally:
            engine.dispose()
    except OperationalError as error:
        failure = ConnectionError(
            "postgresql://shop:s3cret@db/shop?token=0xdeadbeef refused 'Bearer eyJhbGciOiJIUzI1NiJ9'"
            f"\n{FORGED}\n{error}"
        )
        failure.add_note("see redis://:s3cret@cache/0")
        raise failure from error


async def tells_secrets_on_the_loop() -> None:
    tells_secrets()


def returns_what_tells_secrets() -> Any:
    """Return a value whose serialisation fails with a secret in its message."""

    class Value(BaseModel):
        @computed_field
        def total(self) -> int:
            raise ConnectionError(f"redis://:s3cret@cache/0\n{FORGED}")

    return Value()


def facts() -> dict[str, Any]:
    """Return what the running job knows of itself, and how it refuses what a child process cannot do."""
    job = current_job()
    refused: list[str] = []
    asks: list[Callable[[], None]] = [
        lambda: asyncio.run(job.ensure_owned()),
        job.sync.ensure_owned,
        lambda: job.sync.progress(1, 2),
    ]
    for ask in asks:
        try:
            ask()
        except NotStarted as error:
            refused.append(str(error))
    left = job.remaining or 0.0
    return {
        "id": str(job.id), "attempt": job.attempt, "task": job.task, "tracking_id": job.tracking_id,
        "fence": job.fence, "schedule_id": job.schedule_id, "fire_time": str(job.fire_time),
        "has_time": 0 < left <= 30, "cancelled": job.cancelled, "refused": refused, "pid": work.pid(),
    }  # fmt: skip


def job_of_a_call() -> str:
    return current_job().task


async def asks_for_its_job_in_a_process() -> str:
    return await to_process(job_of_a_call)
