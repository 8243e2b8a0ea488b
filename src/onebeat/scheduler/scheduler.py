"""Scheduler: assembles the parts; tasks, schedules, jobs, locks, lifespan."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from onebeat.engine.heartbeat import Heartbeat
from onebeat.engine.sweeper import RetentionAges, prune
from onebeat.engine.wakeups import Wakeups
from onebeat.engine.worker import Worker, WorkerOptions
from onebeat.errors import ConfigurationError, NotStarted, ScheduleExists
from onebeat.locks.database import DatabaseLocks
from onebeat.locks.lock import BackendLock
from onebeat.locks.locked import LockedDecorator
from onebeat.locks.request import Seconds
from onebeat.logs.events import word
from onebeat.model.events import DatabaseCaution, Event
from onebeat.model.info import JobInfo
from onebeat.model.protocols import Carrier, Clock
from onebeat.offload.runners import ProcessRunner, ThreadRunner
from onebeat.scheduler.enqueue import announce_stored, new_job, snapshot
from onebeat.scheduler.health import Health, check
from onebeat.scheduler.hooks import Announcer
from onebeat.scheduler.jobs import Jobs
from onebeat.scheduler.schedules import Schedules, definition_of
from onebeat.scheduler.signals import Signals, until_signalled
from onebeat.scheduler.sync_client import SyncClient
from onebeat.scheduler.watcher import Watcher
from onebeat.scheduler.workers import Queues, Workers
from onebeat.settings import Overrides, Settings, resolve
from onebeat.store import tables
from onebeat.store.connection.database import Database
from onebeat.store.connection.targets import told
from onebeat.store.jobs import insert
from onebeat.store.migrations import prepare
from onebeat.tasks.router import TaskRouter
from onebeat.tasks.task import Call, Task, active, started
from onebeat.timing.clock import SystemClock, seconds_us
from onebeat.tracking.carrier import ContextCarrier

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

E = TypeVar("E", bound=Event)


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
        self.settings = resolve(settings, app, overrides)
        self._target = database if database is not None else self.settings.database_url or "sqlite:///onebeat.db"
        self._tables = tables.build(self.settings.table_prefix, self.settings.schema_)
        self._clock: Clock = SystemClock()
        self._carrier: Carrier = ContextCarrier()
        self._announce = Announcer(word)
        self._wakeups = Wakeups()
        self._database: Database | None = None
        self._worker: Worker | None = None
        self._draining: Worker | None = None
        self._heartbeat: Heartbeat | None = None
        self._watcher: Watcher | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process: int | None = None  # where it was started
        self._starting = False
        self._stopping: asyncio.Task[None] | None = None
        self._script: SyncClient | None = None
        self._unsubscribe: Callable[[], None] = lambda: None
        self._app: Any = None
        self._signals = Signals(self._stop_claiming)
        self.jobs = Jobs(self._database_here, self._open_watcher, wakeups=self._wakeups, prune=self._prune)
        self.schedules = Schedules(
            self._database_here,
            wakeups=self._wakeups,
            scheduler=self,
            who=self._who,
            new_tracking_id=lambda: self._carrier.capture()[0],
        )
        self.workers = Workers(self._database_here)
        self.queues = Queues(self._database_here)
        self.locks = DatabaseLocks.for_scheduler(
            self._open_database, self._open_heartbeat, lambda: self._loop, clock=self._clock
        )

    def __repr__(self) -> str:
        name = "" if self.settings.app is None else f" {self.settings.app!r}"
        return f"<Scheduler{name} on {told(self._target)}, {len(list(self.registry))} tasks>"

    # ── definitions ───────────────────────────────────────────────────────────────────────────────────────────────────
    def include(self, router: TaskRouter) -> None:
        """Take over a router's tasks and schedules, as they are now. Raises `DuplicateTask`, `ScheduleExists`."""
        if not isinstance(router, TaskRouter):
            raise ConfigurationError(f"include() takes a onebeat.TaskRouter, not {type(router).__name__}")
        for task in router.registry:
            self.registry.add(task)
        for id, item in router.declared.items():
            if id in self.declared:
                raise ScheduleExists(f"two schedules are declared with the id {id!r}; give one of them id=")
            self.declared[id] = item

    def on(self, kind: type[E]) -> Callable[[Callable[[E], None]], Callable[[E], None]]:
        """Call the decorated function with each event of this class; it must be quick and may not raise."""

        def decorate(hook: Callable[[E], None]) -> Callable[[E], None]:
            self._announce.on(kind, hook)
            return hook

        return decorate

    # ── life ──────────────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def started(self) -> bool:
        """Whether it runs in this process."""
        return self._database is not None

    async def start(self) -> None:
        """Open the database, migrate it unless told not to, and run the engine in this event loop.

        Raises `DatabaseUnavailable` after `start_timeout`, `SchemaOutOfDate`, `ConfigurationError`.
        """
        if self.started or self._starting:
            raise ConfigurationError("this scheduler is running already; stop it before starting it again")
        self._starting = True
        try:
            await self._start()
        finally:
            self._starting = False

    def new_database(self) -> Database:
        """A closed `Database` with this scheduler's settings, for the command line; raises `ConfigurationError`."""
        settings = self.settings
        database = Database(
            self._target,
            tables=self._tables,
            pool_size=settings.pool_size,
            sqlite_synchronous=settings.sqlite_synchronous,
            sqlite_allow_network=settings.sqlite_allow_network,
            role=settings.role,
        )
        if database.dialect.one_writer and settings.schema_ not in (None, "main"):
            raise ConfigurationError(
                f"schema={settings.schema_!r} cannot be used: {database.where} is SQLite, which has none; "
                "use table_prefix, or a second file"
            )
        return database

    async def _start(self) -> None:
        for task in self.registry:
            task.signature.check()
        settings = self.settings
        database = self.new_database()
        try:
            await database.open(settings.start_timeout)
            await prepare(database, migrate=settings.migrate, app=settings.app)
            await database.measure_offset()
        except BaseException:
            await database.close()
            raise
        for caution in database.cautions:
            self._announce(DatabaseCaution(database=database.where, caution=caution))
        self._database, self._loop, self._process = database, asyncio.get_running_loop(), os.getpid()
        self._watcher = Watcher(database, self._announce)
        self._unsubscribe = self._wakeups.job_ended.subscribe(self._watcher.ended)
        self._heartbeat = Heartbeat(
            database, interval=seconds_us(settings.heartbeat), clock=self._clock, announce=self._announce
        )
        started.append(self)
        if settings.role == "all":
            try:
                await self._start_worker(database)
            except BaseException:
                worker, self._worker = self._worker, None
                try:
                    if worker is not None and worker.id is not None:  # its parts run already
                        await worker.drain(0)
                finally:
                    await self._close()
                raise

    async def _start_worker(self, database: Database) -> None:
        settings = self.settings
        own = settings.queues if isinstance(settings.queues, dict) else {}
        self._worker = Worker(
            options=WorkerOptions(
                slots=settings.slots,
                queues=settings.queues if isinstance(settings.queues, tuple) else None,
                own_slots=own,
                lease=seconds_us(settings.lease),
                heartbeat=seconds_us(settings.heartbeat),
                drain=seconds_us(settings.drain),
                default_timeout=seconds_us(settings.default_timeout),
                poll=seconds_us(settings.poll),
                connections=2 if database.dialect.one_writer else settings.pool_size + 1,  # the heartbeat's
                retention=_retention(settings),
            ),
            database=database,
            registry=self.registry,
            definitions=[definition_of(item, settings.timezone) for item in self.declared.values()],
            carrier=self._carrier,
            runners={"thread": ThreadRunner(settings.slots), "process": ProcessRunner()},
            heartbeat=self._open_heartbeat(),
            wakeups=self._wakeups,
            clock=self._clock,
            random=Random(),  # noqa: S311 - jitter; made here so that forked processes differ
            announce=self._announce,
            enqueuer=self,
        )
        await self._worker.start()
        self._signals.catch()

    async def stop(self) -> None:
        """Drain and close: SEMANTICS 8. Safe to call again: while one drain is under way, every call waits for it.

        A call that is cancelled leaves the drain to its end.
        """
        if self._stopping is None and self.started:
            self._stopping = asyncio.create_task(self._stop(), name="onebeat-stop")
        if self._stopping is not None:
            await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        self._signals.leave()
        worker, self._worker = self._worker, None
        self._draining = worker
        try:
            if worker is not None:
                await worker.drain()
        finally:
            self._draining = self._stopping = None
            await self._close()

    async def _close(self) -> None:
        if self in started:
            started.remove(self)
        if self._watcher is not None:
            self._unsubscribe()
            await self._watcher.close()
        if self._database is not None:
            await self.locks.close()
        if self._heartbeat is not None:
            await asyncio.to_thread(self._heartbeat.stop)
        database, self._database = self._database, None
        self._watcher = self._heartbeat = self._loop = self._process = None
        if database is not None:
            await database.close()

    async def __aenter__(self) -> Scheduler:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        """For `FastAPI(lifespan=scheduler.lifespan)`: the engine runs while the app does."""
        self.bind_app(app)
        async with self:
            yield

    def bind_app(self, app: Any) -> None:
        """Remember the application this scheduler serves; `install` calls it."""
        self._app = app
        if hasattr(app, "state"):
            app.state.onebeat = self  # where the command line finds it

    @contextmanager
    def activate(self) -> Iterator[None]:
        """Make this the scheduler that enqueues in the current context."""
        token = active.set(self)
        try:
            yield
        finally:
            active.reset(token)

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
        signalled = asyncio.create_task(until_signalled(self._stop_claiming))
        async with self._whole_app():
            await signalled

    @asynccontextmanager
    async def _whole_app(self) -> AsyncIterator[None]:
        """The app's lifespan, which starts this scheduler; or the scheduler alone."""
        if self._app is None:
            async with self:
                yield
            return
        async with self._app.router.lifespan_context(self._app):
            if not self.started:
                raise ConfigurationError(
                    "the app's lifespan did not start this scheduler; call install(app, scheduler)"
                )
            yield

    # ── locks ─────────────────────────────────────────────────────────────────────────────────────────────────────────
    def lock(self, name: str, *, ttl: Seconds = 30, wait: Seconds | None = None) -> BackendLock:
        """The lock of that name on this scheduler's database; see `DatabaseLocks.lock`.

        ``async with scheduler.lock("rebuild-index") as lease:`` on an event loop, ``with`` in threads and scripts.
        """
        return self.locks.lock(name, ttl=ttl, wait=wait)

    def locked(self, template: str, *, ttl: Seconds = 30, wait: Seconds | None = None) -> LockedDecorator:
        """Hold a lock while the decorated function runs: ``@scheduler.locked("mail-{user_id}")``."""
        return self.locks.locked(template, ttl=ttl, wait=wait)

    # ── enqueue ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def owns(self, task: Task[Any, Any]) -> bool:
        """Whether this scheduler includes the task."""
        return task in self.registry

    async def enqueue_calls(self, calls: Sequence[Call[Any]]) -> list[JobInfo]:
        """Store the calls in one transaction, and wake who runs or promotes them."""
        database = self._database_here()
        now, offset = self._clock.now(), database.offset_us
        new = [new_job(call, self._carrier, now=now + place, offset=offset) for place, call in enumerate(calls)]
        if not new:
            return []
        write = database.write_one if len(new) == 1 and not new[0].tags else database.write
        await write(insert.add, new)
        announce_stored(self._wakeups, new)
        return [snapshot(job, now + offset).bound(self.jobs) for job in new]

    def enqueue_calls_sync(self, calls: Sequence[Call[Any]]) -> list[JobInfo]:
        """The same from another thread; blocks for one round trip."""
        self._check_process()
        loop = self._loop
        if loop is None:
            raise NotStarted("this scheduler is not running; use `with scheduler:` in a script, or start the app")
        try:
            inside = asyncio.get_running_loop() is loop
        except RuntimeError:
            inside = False
        if inside:
            raise ConfigurationError(
                "enqueue_sync would block the event loop it waits for; use `await task.enqueue(…)`"
            )
        return asyncio.run_coroutine_threadsafe(self.enqueue_calls(calls), loop).result()

    # ── what the parts ask ────────────────────────────────────────────────────────────────────────────────────────────
    def _check_process(self) -> None:
        """A forked child has the parent's state, but neither its event loop nor its threads."""
        if self._process not in (None, os.getpid()):
            raise NotStarted(
                "this scheduler was started in the parent of this process, and a fork takes neither its event loop nor "
                "its threads along; start a scheduler after the fork, or start processes with spawn"
            )

    def _open_database(self) -> Database:
        self._check_process()
        if self._database is None:
            raise NotStarted(
                "this scheduler is not running. Start it: `install(app, scheduler)` and serve the app, "
                "`async with scheduler:`, or `with scheduler:` in a script"
            )
        return self._database

    def _database_here(self) -> Database:
        """The same, for what is awaited: in the event loop that opened it."""
        database = self._open_database()
        if asyncio.get_running_loop() is not self._loop:
            raise NotStarted(
                "this scheduler runs in another event loop than this one; enqueue from here with "
                "`await asyncio.to_thread(task.enqueue_sync, …)`, or start a scheduler in this loop"
            )
        return database

    def _open_watcher(self) -> Watcher:
        self._open_database()
        assert self._watcher is not None
        return self._watcher

    def _open_heartbeat(self) -> Heartbeat:
        self._open_database()
        assert self._heartbeat is not None
        return self._heartbeat

    def _stop_claiming(self) -> None:
        if self._worker is not None:
            self._worker.stop_claiming()

    def _who(self) -> str:
        """Who decides a fire by hand, for its record: this process's worker, or the word `client`."""
        return (self._worker.id if self._worker is not None else None) or "client"

    async def _prune(self) -> int:
        database = self._open_database()
        return await prune(database, _retention(self.settings))

    async def health(self) -> Health:
        """Whether this process can reach the database and acts as a worker; never raises."""
        return await check(self._database, self._worker or self._draining, role=self.settings.role)


def _retention(settings: Settings) -> RetentionAges:
    kept = settings.retention
    return RetentionAges(
        succeeded=_age(kept.succeeded),
        failed=_age(kept.failed),
        fires=_age(kept.fires),
        workers=_age(kept.workers),
    )


def _age(seconds: float | None) -> int | None:
    return None if seconds is None else seconds_us(seconds)
