"""Scheduler: what an application holds; its definitions, its life, and its jobs, schedules, queues, workers, locks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from onebeat.engine.wakeups import Wakeups
from onebeat.errors import ConfigurationError, NotStarted
from onebeat.locks.database import DatabaseLocks
from onebeat.locks.lock import BackendLock
from onebeat.locks.locked import LockedDecorator
from onebeat.locks.request import Seconds
from onebeat.logs.events import is_logged, word
from onebeat.model.events import Event, NoTasks, SchedulerIdle
from onebeat.model.protocols import Carrier
from onebeat.scheduler.database import new_database
from onebeat.scheduler.enqueue import JobEnqueuer
from onebeat.scheduler.event_loops import require_asyncio
from onebeat.scheduler.health import Health, check
from onebeat.scheduler.hooks import EventHooks
from onebeat.scheduler.integration import Integration
from onebeat.scheduler.jobs import Jobs
from onebeat.scheduler.not_started import Life, why_not_started
from onebeat.scheduler.queues import Queues
from onebeat.scheduler.replaceable_clock import ReplaceableClock
from onebeat.scheduler.runtime import Runtime
from onebeat.scheduler.schedules import Schedules
from onebeat.scheduler.signals import StartInterrupted, await_signal
from onebeat.scheduler.sync_client import SyncClient
from onebeat.scheduler.workers import Workers
from onebeat.settings import Overrides, Settings, resolve
from onebeat.store import tables
from onebeat.store.connection.database import Database
from onebeat.store.connection.targets import describe_target
from onebeat.tasks import current_scheduler
from onebeat.tasks.job import UNBOUND
from onebeat.tasks.router import TaskRouter
from onebeat.timing.clock import SystemClock
from onebeat.tracking.carrier import ContextCarrier

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

E = TypeVar("E", bound=Event)
R = TypeVar("R")
RT = TypeVar("RT", bound=Runtime)
DEFAULT_DATABASE = "sqlite:///onebeat.db"


class Scheduler(TaskRouter):
    """Scheduled tasks and background jobs on one database, shared by every process that builds this object.

    `database`: a URL (`sqlite:///app.db`, `postgresql://…`, `mysql://…`, `mariadb://…`), a SQLAlchemy `AsyncEngine`, or
    a function that returns one; None: `ONEBEAT_DATABASE_URL`, else `sqlite:///onebeat.db`. Building it does no I/O.
    Settings are keywords, `settings=Settings(…)`, or `ONEBEAT_…` in the environment, in this order.
    Raises `ConfigurationError` for a setting that cannot work.

    >>> scheduler = Scheduler("sqlite:///app.db", slots=20)
    >>> @scheduler.task
    ... async def greet(name: str) -> str:
    ...     return f"hello {name}"
    >>> greet.name
    'greet'
    """

    def __init__(
        self,
        database: str | AsyncEngine | Callable[[], AsyncEngine] | None = None,
        *,
        settings: Settings | None = None,
        app: str | None = None,
        **overrides: Unpack[Overrides],
    ) -> None:
        super().__init__()
        self._include(UNBOUND)
        self.settings = resolve(settings, app, overrides)
        self._target = database if database is not None else self.settings.database_url or DEFAULT_DATABASE
        self._tables = tables.build(self.settings.table_prefix, self.settings.schema_)
        self._clock = ReplaceableClock(SystemClock())
        self._carrier: Carrier = ContextCarrier()
        self._announce = EventHooks(word, is_logged)
        self._wakeups = Wakeups()
        self._runtime: Runtime | None = None
        self._simulated = False  # run by a TestScheduler, whatever the application starts and stops
        self._stopping: asyncio.Task[None] | None = None
        self._script: SyncClient | None = None
        self.jobs = Jobs(
            self._database,
            lambda: self._running().watcher,
            wakeups=self._wakeups,
            prune=lambda: self._running().here().prune(),
        )
        self.schedules = Schedules(
            self._database,
            wakeups=self._wakeups,
            scheduler=self,
            who=lambda: self._running().worker_id or "client",
            new_tracking_id=lambda: self._carrier.capture()[0],
        )
        self.workers = Workers(self._database)
        self.queues = Queues(self._database)
        self.locks = DatabaseLocks.for_scheduler(
            lambda: self._running().database,
            lambda: self._running().heartbeat,
            lambda: self._running().loop,
            clock=self._clock,
        )
        self._enqueuer = JobEnqueuer(
            self, running=self._running, jobs=self.jobs, carrier=self._carrier, clock=self._clock, wakeups=self._wakeups
        )
        current_scheduler.made.add(self._enqueuer)
        self._integration = _Integration(self)

    def __repr__(self) -> str:
        name = "" if self.settings.app is None else f" {self.settings.app!r}"
        return f"<Scheduler{name} on {describe_target(self._target)}, {len(self.registry)} tasks>"

    # ── definitions ───────────────────────────────────────────────────────────────────────────────────────────────────
    def include(self, router: TaskRouter) -> None:
        """Take over a router's tasks and schedules, also those that it declares later.

        A schedule that is declared after the start fires from the next start on.
        Raises `ConfigurationError`, `DuplicateTask`, `ScheduleExists`.
        """
        if not isinstance(router, TaskRouter):
            raise ConfigurationError(f"include() takes a onebeat.TaskRouter, not {type(router).__name__}")
        self._include(router)

    def on(self, kind: type[E]) -> Callable[[Callable[[E], R]], Callable[[E], R]]:
        """Call the decorated function with each event of this class and its subclasses, after it was committed.

        A synchronous function runs where the event happens, so it must be quick. An asynchronous one runs in a task of
        its own, while the scheduler runs. What either raises is logged and changes nothing.
        """

        def decorate(hook: Callable[[E], R]) -> Callable[[E], R]:
            self._announce.on(kind, hook)
            return hook

        return decorate

    # ── life ──────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def start(self) -> None:
        """Open the database, migrate it unless told not to, and run the engine in this event loop.

        Raises `DatabaseUnavailable` after `start_timeout`, or when SIGTERM or SIGINT comes before it has started;
        `SchemaOutOfDate`, `ConfigurationError`. Under a `TestScheduler`, which runs it already, this does nothing.
        """
        if self._simulated:
            return
        if self._runtime is not None:
            raise ConfigurationError("this scheduler is running already; stop it before starting it again")
        require_asyncio("A scheduler")
        await self._start(self._new_runtime(Runtime, self._integration.new_database(), self._wakeups))

    async def _start(self, runtime: Runtime) -> None:
        for task in self.registry:
            task.check()
        self._runtime = runtime
        self.registry.in_use = True
        try:
            await runtime.start()
        except BaseException:
            self.registry.in_use = False
            self._runtime = None
            raise
        self._integration.life = Life.STOPPED  # what it will be when it runs no more
        if self.settings.role == "all" and not len(self.registry):
            self._announce(NoTasks(scheduler=repr(self), others=self._others_with_tasks()))

    def _others_with_tasks(self) -> tuple[str, ...]:
        others = (other for other in current_scheduler.made if other is not self._enqueuer)
        return tuple(sorted(repr(other) for other in others if other.has_tasks))

    def _new_runtime(self, make: Callable[..., RT], database: Database, wakeups: Wakeups) -> RT:
        return make(
            settings=self.settings,
            database=database,
            registry=self.registry,
            declared=self.declared,
            carrier=self._carrier,
            wakeups=wakeups,
            clock=self._clock,
            random=Random(),  # noqa: S311 - jitter; made here so that forked processes differ
            announce=self._announce,
            enqueuer=self._enqueuer,
            close_locks=self.locks.close,
            stop=self._stop_once,
            overrides=self._integration.overrides,
        )

    async def stop(self) -> None:
        """Drain and close. Safe to call again: while one drain is under way, every call waits for it.

        A call that is cancelled leaves the drain to its end. Under a `TestScheduler` this does nothing.
        """
        if self._simulated:
            return
        if self._runtime is not None:
            self._runtime.is_asked_to_stop = True
        await self._stop_once()

    async def _stop_once(self) -> None:
        if self._stopping is None and self._runtime is not None and self._runtime.is_open:
            self._stopping = asyncio.create_task(self._stop(self._runtime), name="onebeat-stop")
        if self._stopping is not None:
            await asyncio.shield(self._stopping)

    async def _stop(self, runtime: Runtime) -> None:
        try:
            await runtime.stop()
        finally:
            self._runtime = self._stopping = None
            self.registry.in_use = False

    async def __aenter__(self) -> Scheduler:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        """Run the engine while the app runs: `FastAPI(lifespan=scheduler.lifespan)`."""
        self._integration.bind_app(app)
        async with self:
            yield

    def __enter__(self) -> Scheduler:
        script = SyncClient(self)
        script.start()
        self._script = script
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._script is not None:
            self._script.stop()
            self._script = None

    def run(self) -> None:
        """Be a worker process, whatever `role` says: enter the app's lifespan, serve no HTTP, end at SIGTERM or SIGINT.

        The first signal drains, a second stops at once (exit code 130 or 143).
        """
        self.settings = self.settings.model_copy(update={"role": "all"})
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        signalled = await_signal(self._stop_claiming)
        try:
            async with self._whole_app():
                await signalled.wait()
        except StartInterrupted:
            if not signalled.is_set():
                raise

    def _stop_claiming(self) -> None:
        if self._runtime is not None:
            self._runtime.stop_claiming()

    @asynccontextmanager
    async def _whole_app(self) -> AsyncIterator[None]:
        """Enter the app's lifespan, which starts this scheduler; without an app, start the scheduler alone."""
        app = self._integration.app
        if app is None:
            async with self:
                yield
            return
        async with app.router.lifespan_context(app):
            if not self._integration.started:
                raise ConfigurationError(
                    "the app's lifespan did not start this scheduler; call install(app, scheduler)"
                )
            yield

    async def health(self) -> Health:
        """Return whether this process can reach the database and acts as a worker; never raises."""
        runtime = self._runtime
        if runtime is None or not runtime.is_open:
            return await check(None, None)
        return await check(runtime.database, runtime.worker)

    # ── locks ─────────────────────────────────────────────────────────────────────────────────────────────────────────
    def lock(self, name: str, *, ttl: Seconds = 30, wait: Seconds | None = None) -> BackendLock:
        """The lock of that name on this scheduler's database; see `DatabaseLocks.lock`.

        ``async with scheduler.lock("rebuild-index") as lease:`` on an event loop, ``with`` in threads and scripts.
        """
        return self.locks.lock(name, ttl=ttl, wait=wait)

    def locked(self, template: str, *, ttl: Seconds = 30, wait: Seconds | None = None) -> LockedDecorator:
        """Hold a lock while the decorated function runs: ``@scheduler.locked("mail-{user_id}")``."""
        return self.locks.locked(template, ttl=ttl, wait=wait)

    # ── what the parts use ────────────────────────────────────────────────────────────────────────────────────────────
    def _running(self) -> Runtime:
        """Return the runtime; raises `NotStarted`, also in a forked child."""
        runtime = self._runtime
        if runtime is not None:
            runtime.check_process()
        if runtime is None or not runtime.is_open:
            others = [repr(other) for other in current_scheduler.running if other is not self._enqueuer]
            raise NotStarted(why_not_started(repr(self), self._integration.life, others))
        return runtime

    def _database(self) -> Database:
        """Return the database for calls of users, in the event loop that opened it; elsewhere raise `NotStarted`."""
        return self._running().here().users

    def __onebeat_integration__(self) -> Integration:
        """Return what `install` and the command line need beyond the public methods."""
        return self._integration


class _Integration:
    """Serves the application in which a scheduler is installed, and the commands that work on its database."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.app: Any = None
        self.life = Life.NEW

    @property
    def started(self) -> bool:
        """Return whether the scheduler runs in this process."""
        runtime = self._scheduler._runtime
        return runtime is not None and runtime.is_open

    def bind_app(self, app: Any) -> None:
        """Remember the application, and leave the scheduler in its state, where the command line finds it."""
        self.app = app
        if self.life is Life.NEW:
            self.life = Life.INSTALLED
        if hasattr(app, "state"):
            app.state.onebeat = self._scheduler

    def overrides(self) -> Mapping[Callable[..., Any], Callable[..., Any]]:
        """Return the `dependency_overrides` of the application as they are now; a Starlette application has none."""
        return getattr(self.app, "dependency_overrides", None) or {}

    def served_idle(self, *, mounted: bool) -> None:
        """Remember that the application answers requests though the scheduler was never started; log it once."""
        if self.life is Life.INSTALLED:
            self.life = Life.MOUNTED if mounted else Life.SERVED
            self._scheduler._announce(SchedulerIdle(problem=why_not_started(repr(self._scheduler), self.life)))

    def activate(self) -> AbstractContextManager[None]:
        """Make this the scheduler that enqueues in the current context."""
        return current_scheduler.activate(self._scheduler._enqueuer)

    def new_database(self) -> Database:
        """Return a closed `Database` with the scheduler's settings; raises `ConfigurationError`."""
        owner = self._scheduler
        return new_database(owner._target, tables=owner._tables, settings=owner.settings, clock=owner._clock)
