"""The offset between this process's clock and the database's clock."""

from __future__ import annotations

import pytest

from onebeat.store.connection.database import Database
from onebeat.timing.clock import HOUR, SystemClock
from tests.conftest import MakeDatabase


async def test_the_offset_to_the_servers_clock_is_measured(database: Database) -> None:
    assert abs(await database.measure_offset()) < 1_000_000  # this machine's own clock
    assert database.offset_us == await database.measure_offset() or not database.dialect.one_writer


class SteppedClock(SystemClock):
    """A process whose wall clock is set forward or back."""

    step = 0

    def now(self) -> int:
        return super().now() + self.step


@pytest.mark.parametrize("hours", [-1, 1])
async def test_the_offset_follows_a_step_of_the_local_clock_without_a_question_to_the_database(
    database_url: str, make_database: MakeDatabase, hours: int
) -> None:
    clock = SteppedClock()
    database = await make_database(database_url, clock=clock)
    before = await database.measure_offset()
    clock.step = hours * HOUR
    expected = 0 if database.dialect.one_writer else before - hours * HOUR  # SQLite reads the same clock
    assert abs(database.offset_us - expected) < 1_000_000
    assert abs(await database.measure_offset() - database.offset_us) < 1_000_000


async def test_a_virtual_clocks_offset_is_measured_too(database_url: str, make_database: MakeDatabase) -> None:
    import time

    database = await make_database(database_url, database_clock=lambda: time.time_ns() // 1000 + 3_600_000_000)
    assert abs(await database.measure_offset() - 3_600_000_000) < 1_000_000
