"""Simulation: the engine of one scheduler in virtual time, on an event loop and a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from datetime import datetime
from functools import partial
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar
from uuid import UUID

from onebeat.concurrency.portal import Portal
from onebeat.engine.wakeups import Wakeups
from onebeat.errors import ConfigurationError, NotStarted
from onebeat.model.protocols import Clock
from onebeat.scheduler.event_loops import require_asyncio
from onebeat.scheduler.scheduler import Scheduler
from onebeat.scheduler.simulation import simulated
from onebeat.settings import Settings
from onebeat.store import reports
from onebeat.store.connection.database import Database
from onebeat.store.tables import Tables
from onebeat.store.tx import Tx
from onebeat.tasks.context import current
from onebeat.testing.databases import MemoryDatabase, OwnDatabase
from onebeat.testing.relay import Relay
from onebeat.testing.simulated_runtime import SimulatedRuntime
from onebeat.testing.virtual_time import VirtualTime
from onebeat.timing.clock import SECOND, SystemClock, kept_us

P = ParamSpec("P")
R = TypeVar("R")

DatabaseChoice = Literal["memory", "own"]


class Simulation:
    """Runs the engine of `scheduler` on its own thread, so that neither a blocked test nor an app's loop stops it.

    The arguments are those of `TestScheduler`. The coroutines belong to the thread's event loop: `submit` starts them.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        now: datetime | str | None,
        workers: int,
        database: DatabaseChoice,
        inline: bool,
        patience: float,
    ) -> None:
        if not isinstance(scheduler, Scheduler):
            raise ConfigurationError(f"TestScheduler takes a onebeat.Scheduler, not {type(scheduler).__name__}")
        if database not in ("memory", "own"):
            raise ConfigurationError(f"database={database!r} is unknown; give 'memory', or 'own' for the scheduler's")
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise ConfigurationError(f"workers={workers!r} is not a number of workers; give 1 or more")
        self.scheduler = scheduler
        self.time = VirtualTime(_start(now), patience=patience)
        self._own = database == "own"
        self._workers = workers
        self._inline = inline
        self._portal = Portal("onebeat-test")
        self._thread = 0
        self._runtime: SimulatedRuntime | None = None
        self._stack = AsyncExitStack()

    # ── life ──────────────────────────────────────────────────────────────────────────────────────────────────────────
    def start_thread(self) -> None:
        """Start the thread; `open` and everything else runs there."""
        if self._portal.running:
            raise ConfigurationError("this TestScheduler is running already; make another one")
        self._portal.start()

    def stop_thread(self) -> None:
        """End the thread."""
        self._portal.stop()

    async def open(self) -> None:
        """Start the engine, and let it do what is due at once."""
        self._thread = threading.get_ident()
        wakeups, home = Wakeups(), asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            make = partial(SimulatedRuntime, time=self.time, started=self._workers, inline=self._inline)
            with self.time.open():
                runtime = await stack.enter_async_context(
                    simulated(
                        self.scheduler,
                        make_database=self._make_database,
                        make_runtime=make,
                        wakeups=wakeups,
                        clock=self.time,
                    )
                )
            stack.callback(self.scheduler._wakeups.attach(Relay(wakeups, home)))
            await runtime.settle()
            self._runtime = runtime
            self._stack = stack.pop_all()

    async def close(self) -> None:
        """Cancel what runs and stop the engine."""
        self._runtime = None
        await self._stack.aclose()

    def _make_database(self, target: Any, *, tables: Tables, settings: Settings, clock: Clock) -> Database:
        if not self._own:
            return MemoryDatabase(prefix=tables.prefix, time=self.time, clock=clock)
        return OwnDatabase(
            target,
            tables=tables,
            pool_size=settings.pool_size,
            sqlite_synchronous=settings.sqlite_synchronous,
            sqlite_allow_network=settings.sqlite_allow_network,
            database_clock=self.time,
            clock=clock,
        )

    @property
    def runtime(self) -> SimulatedRuntime:
        """The engine; raises `NotStarted`."""
        if self._runtime is None:
            raise NotStarted("this TestScheduler does not run; enter it: `async with TestScheduler(…) as beat:`")
        return self._runtime

    # ── calls from the test ───────────────────────────────────────────────────────────────────────────────────────────
    async def submit(self, function: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs) -> R:
        """Await `function(…)` on the engine's event loop; raises `ConfigurationError` in a job."""
        self._refuse_in_job()
        require_asyncio("TestScheduler")
        return await asyncio.wrap_future(self._portal.submit(function(*args, **kwargs)))

    def run(self, function: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs) -> R:
        """Block until `function(…)` has ended on the engine's event loop; raises `ConfigurationError` in a job."""
        self._refuse_in_job()
        return self._portal.run(function(*args, **kwargs))

    def _refuse_in_job(self) -> None:
        if current.get() is not None or threading.get_ident() == self._thread:
            raise ConfigurationError(
                "a job cannot move the time or wait for the engine that runs it; call this in the test itself"
            )

    def read(self, fn: Callable[Concatenate[Tx, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Ask the database, in any thread."""
        database = self.runtime.database
        if isinstance(database, MemoryDatabase) and database.memory is not None:
            return database.memory.call(lambda tx: fn(tx, *args, **kwargs))
        self._refuse_in_job()
        return self._portal.run(database.read(fn, *args, **kwargs))

    def crash(self, worker: int | None) -> int:
        """Let a worker vanish; see `TestScheduler.crash`."""
        if threading.get_ident() == self._thread:
            return self.runtime.crash(worker)
        return self._portal.run(self._crash(worker))

    async def _crash(self, worker: int | None) -> int:
        return self.runtime.crash(worker)

    # ── on the engine's event loop ────────────────────────────────────────────────────────────────────────────────────
    async def advance(self, moment: int) -> None:
        """Let the time pass until `moment`, microseconds."""
        await self.runtime.move_to(moment)

    async def run_until_idle(self) -> None:
        """Let the engine do everything that is due now; warn of runs that outlast the patience."""
        held = await self.runtime.settle()
        for id in held:
            warnings.warn(await self._still_runs(id), stacklevel=2)

    async def _still_runs(self, id: UUID) -> str:
        task = (await self.runtime.database.read(reports.job, id)).task
        return (
            f"job {id} ({task}) still runs after {self.time.patience:g} s, and run_until_idle() does not wait for it; "
            "give TestScheduler a longer patience=, or let the job wait with `await beat.sleep(…)`"
        )

    async def start_worker(self) -> int:
        """Start another worker and return its number."""
        runtime = self.runtime
        with self.time.open():
            number = await runtime.start_worker()
        await runtime.settle()
        return number

    async def sleep(self, duration: int) -> None:
        """Return when so many virtual microseconds have passed, from whichever event loop and job this is called."""
        context = current.get()
        await self.runtime.on_engine(self.time.sleep(duration, None if context is None else context.id))


def _start(now: datetime | str | None) -> int:
    """Return the moment at which the virtual time begins, microseconds; by default now, without a fraction."""
    if now is None:
        real = SystemClock().now()
        return real - real % SECOND
    return instant(now, "now")


def instant(given: datetime | str, what: str) -> int:
    """Return the microseconds of an aware `datetime` or its ISO 8601 text; raises `ConfigurationError`.

    >>> instant("2026-03-29T01:59:00+01:00", "now")
    1774745940000000
    """
    try:
        return kept_us(datetime.fromisoformat(given) if isinstance(given, str) else given)
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"{what}={given!r:.60} is no instant: {error}. Give an aware datetime, or its text such as "
            "'2026-03-29T01:59:00+01:00'"
        ) from None
