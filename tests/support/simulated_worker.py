"""A worker under a virtual clock that works only when a test says so, and what it leaves in the database."""

from __future__ import annotations

from collections import Counter
from typing import Any

from onebeat.engine.wakeups import Wakeups
from onebeat.model import payload
from onebeat.model.definition import Definition
from onebeat.model.policies import Policies
from onebeat.scheduler.scheduler import Scheduler
from onebeat.scheduler.schedules import Schedules
from onebeat.store.connection.database import Database
from onebeat.store.jobs import insert, settle
from onebeat.timing.rule import Rule
from onebeat.timing.triggers import Every
from tests.guarantees.arrange import OPTIONS, fired
from tests.support import rows
from tests.support.builders import claimed, ended, registered
from tests.support.checker import FireRow, JobRow
from tests.support.virtual import VirtualClock


def a_schedule(id: str = "s", trigger: Rule | None = None, policies: dict[str, Any] | None = None) -> Definition:
    """Hourly, with the default policies."""
    rule = Every(hours=1) if trigger is None else trigger
    return Definition(
        id=id,
        task="work",
        trigger=payload.canonical(rule.to_json()),
        timezone=rule.timezone or "UTC",
        policies=payload.canonical(Policies(**(policies or {})).to_json()),
        options=payload.canonical(OPTIONS),
    )


class SimulatedWorker:
    """A worker on one database under a virtual clock; it works only when a test says so."""

    def __init__(self, database: Database, url: str, clock: VirtualClock) -> None:
        self.database, self.url, self.clock = database, url, clock
        self.started: list[tuple[int, int]] = []  # (fire time, when it ran)
        self.schedules = Schedules(
            lambda: database,
            wakeups=Wakeups(),
            scheduler=Scheduler(url),
            who=lambda: "me",
            new_tracking_id=lambda: "t" * 32,
        )

    async def away(self, seconds: float) -> None:
        """Nobody works; then a dispatcher looks."""
        self.clock.advance(seconds)
        await fired(self.database)

    async def work_off(self) -> None:
        """Promote, claim and finish until nothing is left that may run now."""
        worker = await registered(self.database)
        await self.database.write(insert.promote)
        while batch := await claimed(self.database, worker, limit=100):
            for job in batch:
                assert job.fire_us is not None
                self.started.append((job.fire_us, self.clock.now))
            await self.database.write(settle.settle, [ended(job) for job in batch], worker_id=worker)

    async def verdicts(self) -> list[FireRow]:
        return sorted((await rows.read(self.url)).fires, key=lambda fire: (fire.fire_us, fire.fire_key))

    async def counted(self) -> dict[str, int]:
        return dict(Counter(fire.decision for fire in await self.verdicts()))

    async def jobs(self) -> list[JobRow]:
        return (await rows.read(self.url)).jobs
