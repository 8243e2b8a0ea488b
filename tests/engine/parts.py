"""The parts of an engine on one database, without loops: a test calls their ticks, and moves the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from onebeat.engine.claimer import Claimer
from onebeat.engine.executor import Executor
from onebeat.engine.promoter import Promoter
from onebeat.engine.reconciler import Reconciler
from onebeat.engine.settler import Settler
from onebeat.engine.sweeper import RetentionAges, Sweeper
from onebeat.engine.wakeups import Wakeups
from onebeat.model.events import Event
from onebeat.model.job import Claimed, NewJob
from onebeat.model.protocols import Runner
from onebeat.scheduler.scheduler import Scheduler
from onebeat.store.connection.database import Database
from onebeat.store.jobs import insert
from onebeat.tasks.router import TaskRouter
from onebeat.timing.clock import SystemClock
from onebeat.tracking.carrier import ContextCarrier
from tests.support.builders import SECOND, a_job, claimed, identity_of, registered
from tests.support.virtual import ProcessClock, VirtualClock

POLL = 30 * SECOND
SWEEP = 15 * SECOND


class Parts:
    """The parts of one registered worker, what they announced, and the wake-ups they asked for.

    The worker knows the tasks of `router`; those of its jobs that a test starts run on the test's own event loop.
    """

    def __init__(
        self,
        database: Database,
        clock: VirtualClock,
        worker_id: str,
        runners: Mapping[str, Runner],
        router: TaskRouter | None = None,
    ) -> None:
        self.database = database
        self.clock = clock
        self.worker_id = worker_id
        self.router = router or TaskRouter()
        self.identity = identity_of(worker_id)
        self.wakeups = Wakeups()
        self.woken: list[str] = []
        self.events: list[Event] = []
        for name, signal in vars(self.wakeups).items():
            signal.subscribe(lambda *_, name=name: self.woken.append(name))
        self.settler = Settler(
            database=database,
            identity=self.identity,
            wakeups=self.wakeups,
            clock=ProcessClock(clock),
            announce=self.events.append,
        )
        self.executor = Executor(
            database=database,
            registry=self.router.registry,
            carrier=ContextCarrier(),
            runners=runners,
            slots=10,
            own_slots={},
            default_timeout=60 * SECOND,
            identity=self.identity,
            settler=self.settler,
            wakeups=self.wakeups,
            clock=ProcessClock(clock),
            random=Random(1),
            announce=self.events.append,
        )
        self.claimer = Claimer(
            database=database,
            slots=self.executor,
            identity=self.identity,
            queues=None,
            own_slots={},
            poll=POLL,
            sweep=SWEEP,
            clock=ProcessClock(clock),
        )
        self.promoter = Promoter(database=database, poll=POLL, wakeups=self.wakeups)
        self.reconciler = Reconciler(
            database=database,
            identity=self.identity,
            claimer=self.claimer,
            executor=self.executor,
            settler=self.settler,
        )

    def sweeper(self, **changes: Any) -> Sweeper:
        """A sweeper that deletes nothing by age."""
        values: dict[str, Any] = {
            "database": self.database,
            "identity": self.identity,
            "interval": SWEEP,
            "retention": RetentionAges(),
            "look_for_suspects": self.claimer.look_for_suspects,
            "wakeups": self.wakeups,
            "clock": ProcessClock(self.clock),
            "random": Random(1),
            "announce": self.events.append,
        }
        return Sweeper(**(values | changes))

    async def stored(self, *jobs: NewJob) -> Sequence[NewJob]:
        """These jobs, or one of the task `work`, are in the database."""
        stored = jobs or (a_job(),)
        await self.database.write(insert.add, stored)
        return stored

    async def claimed(self, *jobs: NewJob) -> list[Claimed]:
        """The same jobs, claimed by this worker and not started."""
        await self.stored(*jobs)
        return await claimed(self.database, self.worker_id)

    async def settled(self) -> None:
        """Every run ends and its outcome is written."""
        assert await self.executor.wait_idle(10)
        while self.settler.unsettled:
            await self.settler.tick(self.clock.now)

    def told(self, kind: type[Event]) -> list[Any]:
        """The announced events of this class."""
        return [event for event in self.events if isinstance(event, kind)]


async def a_worker_of(database: Database, clock: VirtualClock, **runners: Runner) -> Parts:
    """The parts of a worker that is registered in the database."""
    return Parts(database, clock, await registered(database), runners)


async def reconciled(scheduler: Scheduler) -> None:
    """A stray is given back when it is seen twice."""
    worker = scheduler._running().worker
    assert worker is not None
    for _ in range(3):
        await worker._reconciling._tick(SystemClock().now())
