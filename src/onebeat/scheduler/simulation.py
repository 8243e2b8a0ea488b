"""Runs a scheduler in a simulation: with another database, another clock and another runtime than its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from onebeat.engine.wakeups import Wakeups
from onebeat.errors import ConfigurationError
from onebeat.model.protocols import Clock
from onebeat.scheduler.database import MakeDatabase
from onebeat.scheduler.runtime import Runtime
from onebeat.scheduler.scheduler import Scheduler

RT = TypeVar("RT", bound=Runtime)


@asynccontextmanager
async def simulated(
    scheduler: Scheduler,
    *,
    make_database: MakeDatabase,
    make_runtime: Callable[..., RT],
    wakeups: Wakeups,
    clock: Clock,
) -> AsyncIterator[RT]:
    """Run `scheduler` with these parts in place of its own; what the application starts and stops changes nothing.

    `make_runtime` is called with the arguments of `Runtime`. The runtime's parts hear of `wakeups` alone: the caller
    forwards what the scheduler's own announce. Raises `ConfigurationError` when the scheduler runs already.
    """
    if scheduler._runtime is not None:
        raise ConfigurationError(
            f"{scheduler!r} is running already; enter the TestScheduler before the application starts"
        )
    usual, scheduler._clock.source = scheduler._clock.source, clock
    try:
        database = make_database(
            scheduler._target, tables=scheduler._tables, settings=scheduler.settings, clock=scheduler._clock
        )
        runtime = scheduler._new_runtime(make_runtime, database, wakeups)
        await scheduler._start(runtime)
        scheduler._simulated = True
        try:
            yield runtime
        finally:
            scheduler._simulated = False
            await scheduler._stop(runtime)
    finally:
        scheduler._clock.source = usual
