"""Fixtures of the engine's tests: schedulers, days without workers, and the parts of one worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from onebeat.scheduler.scheduler import Scheduler
from onebeat.timing.clock import HOUR
from tests.conftest import MakeDatabase
from tests.engine.parts import Parts, a_worker_of
from tests.support.simulated_worker import SimulatedWorker
from tests.support.virtual import START, VirtualClock

Make = Callable[..., Scheduler]


@pytest.fixture
async def make(database_url: str) -> AsyncIterator[Make]:
    """Builds schedulers on the database and stops them at the end."""
    made: list[Scheduler] = []

    def build(**settings: Any) -> Scheduler:
        scheduler = Scheduler(database_url, **({"poll": 0.1, "drain": 2} | settings))
        made.append(scheduler)
        return scheduler

    yield build
    for scheduler in made:
        await scheduler.stop()


@pytest.fixture
async def simulated(database_url: str, make_database: MakeDatabase) -> SimulatedWorker:
    """Every database in turn, with a virtual clock that shows a full hour."""
    clock = VirtualClock(START - START % HOUR)
    return SimulatedWorker(await make_database(database_url, database_clock=clock), database_url, clock)


@pytest.fixture
async def parts(database_url: str, make_database: MakeDatabase) -> Parts:
    """Every database in turn under a virtual clock, and the parts of one worker on it."""
    clock = VirtualClock()
    return await a_worker_of(await make_database(database_url, database_clock=clock), clock)
