"""A virtual year of twenty schedules through SQLite: the rows are the fires a second reading of the rules finds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import tzdata

from onebeat.model import payload
from onebeat.model.definition import Definition
from onebeat.model.policies import Policies
from onebeat.timing.clock import SECOND, to_us
from tests.conftest import MakeDatabase
from tests.guarantees.arrange import OPTIONS, added, fired
from tests.support import rows
from tests.support.databases import Shelf
from tests.support.virtual import VirtualClock
from tests.timing.random_rules import Plan, instants, plans


def definition(number: int, item: Plan) -> Definition:
    return Definition(
        id=f"s{number}",
        task="work",
        trigger=payload.canonical(item.trigger.to_json()),
        timezone=item.zone,
        policies=payload.canonical(Policies(overlap="allow", catch_up="all").to_json()),
        options=payload.canonical(OPTIONS),
    )


async def through_sqlite(url: str, make: MakeDatabase, count: int, start: datetime, end: datetime) -> int:
    clock = VirtualClock(to_us(start))
    database = await make(url, database_clock=clock, sqlite_synchronous="NORMAL")
    items = plans(count, seed=2026)
    await added(database, *(definition(number, item) for number, item in enumerate(items)))
    next_fire = (await fired(database)).next_fire
    while next_fire is not None and next_fire <= to_us(end):
        clock.now = next_fire + SECOND // 50
        next_fire = (await fired(database)).next_fire
    found = await rows.read(url)
    seen = {(fire.schedule_id, fire.fire_us) for fire in found.fires}
    expected = {(f"s{n}", to_us(moment)) for n, item in enumerate(items) for moment in instants(item, start, end)}
    assert seen == expected
    assert len(found.fires) == len(found.jobs) == len(seen)
    assert {fire.decision for fire in found.fires} == {"started"}
    return len(seen)


@pytest.mark.campaign
@pytest.mark.timeout(600)
async def test_the_days_of_the_changes_of_clocks(shelf: Shelf, tmp_path: Path, make_database: MakeDatabase) -> None:
    spring, autumn = datetime(2026, 3, 28, tzinfo=UTC), datetime(2026, 10, 24, tzinfo=UTC)
    for number, (start, days) in enumerate([(spring, 8), (autumn, 3)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        url = shelf.take("sqlite", folder)
        assert await through_sqlite(url, make_database, 20, start, start + timedelta(days=days)) > 60


@pytest.mark.soak
@pytest.mark.timeout(7_200)
async def test_a_year_of_twenty_schedules(shelf: Shelf, tmp_path: Path, make_database: MakeDatabase) -> None:
    url = shelf.take("sqlite", tmp_path)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    total = await through_sqlite(url, make_database, 20, start, start + timedelta(days=365))
    print(f"tzdata {tzdata.IANA_VERSION}: {total} fires in a virtual year")
    assert total > 10_000
