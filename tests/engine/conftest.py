"""What several tests of the engine begin with."""

from __future__ import annotations

import pytest

from onebeat.timing.clock import HOUR
from tests.conftest import MakeDatabase
from tests.support.days import Days
from tests.support.virtual import START, VirtualClock


@pytest.fixture
async def days(database_url: str, make_database: MakeDatabase) -> Days:
    """Every database in turn, with a virtual clock that shows a full hour."""
    clock = VirtualClock(START - START % HOUR)
    return Days(await make_database(database_url, clock=clock), database_url, clock)
