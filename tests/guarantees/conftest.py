"""Fixtures of the guarantees in the caller's transaction: an application's own engine, and a scheduler beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from onebeat import Scheduler, configure_sqlite
from tests.store.test_callers_session import engine_on


@pytest.fixture
async def engine(database_url: str, database_kind: str) -> AsyncIterator[AsyncEngine]:
    """The application's own engine."""
    engine = engine_on(database_url, database_kind)
    if database_kind == "sqlite":
        configure_sqlite(engine)
    yield engine
    await engine.dispose()


@pytest.fixture
async def scheduler(database_url: str) -> AsyncIterator[Scheduler]:
    """A scheduler that is not started; wake-ups alone shorten its polls of ten seconds."""
    scheduler = Scheduler(database_url, poll=10, drain=2)
    yield scheduler
    await scheduler.stop()


async def do_nothing(*args: Any) -> None:
    """Do nothing."""
