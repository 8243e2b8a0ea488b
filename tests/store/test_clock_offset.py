"""The offset between this process's clock and the database's clock."""

from __future__ import annotations

from onebeat.store.connection.database import Database
from tests.conftest import MakeDatabase


async def test_the_offset_to_the_servers_clock_is_measured(database: Database) -> None:
    assert abs(await database.measure_offset()) < 1_000_000  # this machine's own clock
    assert database.offset_us == await database.measure_offset() or not database.dialect.one_writer


async def test_a_virtual_clocks_offset_is_measured_too(database_url: str, make_database: MakeDatabase) -> None:
    import time

    database = await make_database(database_url, database_clock=lambda: time.time_ns() // 1000 + 3_600_000_000)
    assert abs(await database.measure_offset() - 3_600_000_000) < 1_000_000
