"""onebeat's own connections to a database: what opens and closes them, and the verbs that run a store function."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from copy import copy
from functools import partial
from random import Random
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from onebeat.errors import NotStarted
from onebeat.model.protocols import Clock
from onebeat.store.connection.backend import ConnectionBackend, Rank
from onebeat.store.connection.callers_sqlite import real_file, refuse_in_own_write
from onebeat.store.connection.job_sessions import JobSessions
from onebeat.store.connection.server_pool import ServerPool
from onebeat.store.connection.sqlite_threads import SQLiteThreads
from onebeat.store.connection.targets import Target, read_target
from onebeat.store.dialects.base import Dialect
from onebeat.store.explain import explain_failed_open
from onebeat.store.faults import Fault
from onebeat.store.tables import Tables
from onebeat.store.tx import Points, TransactionRunner, Tx
from onebeat.timing.clock import SystemClock

P = ParamSpec("P")
R = TypeVar("R")

CALL_LIMIT = 30.0  # seconds for all tries of one call, since it was submitted
STEP = 10_000  # microseconds: by so much more do the local clocks differ after a step of the wall clock
HEARTBEAT_LIMIT = 10.0  # seconds; below the beat of 15
START_TIMEOUT = 30.0  # seconds
_INHERITED: list[ConnectionBackend] = []  # kept for ever, because finalising what a parent process opened could harm it


class Database:
    """A database with onebeat's tables; building it does no I/O.

    `read`, `write` and `write_one` run a plain function `fn(tx, *args)`; see `write` for what that function must keep.

    Args:
        target: a URL, an engine or a function that returns an engine.
        tables: the tables that all statements use.
        pool_size: connections to a server; a client has two at most.
        transaction_pool_size: connections for the transactions of jobs, opened on first use.
        sqlite_synchronous, sqlite_allow_network: see the settings of these names.
        database_clock: replaces the database's own clock in every transaction; UTC microseconds.
        points: where a test stops, counts or breaks a transaction.
        role: "client" for a process that runs no worker.
        call_limit: seconds for all tries of one call on a server.
        clock: the clocks of this process.
        random: the source of jitter.
        make_backend: makes another `ConnectionBackend` than the one for the target's kind of database. It may be called
            several times; all siblings share what the owner opened.
    """

    def __init__(
        self,
        target: str | URL | AsyncEngine | Callable[[], AsyncEngine],
        *,
        tables: Tables,
        pool_size: int = 3,
        transaction_pool_size: int = 5,
        sqlite_synchronous: str = "FULL",
        sqlite_allow_network: bool = False,
        database_clock: Callable[[], int] | None = None,
        points: Points | None = None,
        role: str = "all",
        call_limit: float = CALL_LIMIT,
        clock: Clock | None = None,
        random: Random | None = None,
        make_backend: Callable[[TransactionRunner], ConnectionBackend] | None = None,
    ) -> None:
        self._target: Target = read_target(target)
        self._given = target
        self._clock = clock or SystemClock()
        self._transactions = TransactionRunner(
            tables,
            self._target.dialect,
            database_clock=database_clock,
            points=points,
            clock=self._clock,
            random=random or Random(),  # noqa: S311 - jitter, no secret
        )
        self._make_other_backend = make_backend
        self._pool_size = min(pool_size, 2) if role == "client" else pool_size
        self._transaction_pool_size = transaction_pool_size
        self._job_sessions: JobSessions | None = None
        self._limit = call_limit
        self._synchronous = sqlite_synchronous
        self._allow_network = sqlite_allow_network
        self._role = role
        self._backend: ConnectionBackend | None = None
        self._owner: Database | None = None  # whose backend this sibling shares
        self._rank = Rank.ENGINE
        self._root = self  # what was measured and read of the database is kept there
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None  # the event loop that opened it
        self._instance_id: str | None = None
        self._offset_us = 0  # database minus local clock, as last measured
        self._wall = self._clock.now() - self._clock.boot()  # at that time
        self.cautions: list[str] = []  # what an operator should know about this server, found at open

    @property
    def tables(self) -> Tables:
        """The tables that all statements use."""
        return self._transactions.tables

    @property
    def dialect(self) -> Dialect:
        """The answers in which databases differ."""
        return self._transactions.dialect

    @property
    def transactions(self) -> TransactionRunner:
        """What makes a `Tx` for this database, also on a connection of the caller."""
        return self._transactions

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop on which this database was opened; raises `NotStarted` when it is not open here."""
        self._open_backend()
        assert self._root._loop is not None
        return self._root._loop

    @property
    def instance_id(self) -> str | None:
        """`meta.instance_id` of the tables, once it was read."""
        return self._root._instance_id

    @instance_id.setter
    def instance_id(self, found: str | None) -> None:
        self._root._instance_id = found

    @property
    def job_sessions(self) -> JobSessions:
        """Sessions on this database for the transactions of jobs; raises `NotStarted` when it is not open."""
        root = self._root
        if root._job_sessions is None:
            pooled = getattr(self._open_backend(), "pooled", False)
            root._job_sessions = JobSessions(
                self._target,
                size=self._transaction_pool_size,
                synchronous=self._synchronous,
                connect_arguments=self.dialect.pooled_arguments if pooled else None,
            )
        return root._job_sessions

    @property
    def url(self) -> URL:
        """The URL opened; its `repr` and `str` hide the password."""
        return self._target.url

    @property
    def where(self) -> str:
        """The database for people, without the password."""
        return self._target.where

    @property
    def call_limit(self) -> float:
        """The seconds that one try of one transaction may take on a server."""
        return self._limit

    @property
    def offset_us(self) -> int:
        """Microseconds of the database's clock minus the local one: as last measured, less local steps since then."""
        root = self._root
        step = self._clock.now() - self._clock.boot() - root._wall
        return root._offset_us - step if self._has_clock_of_its_own and abs(step) > STEP else root._offset_us

    @offset_us.setter
    def offset_us(self, measured: int) -> None:
        self._root._offset_us = measured
        self._root._wall = self._clock.now() - self._clock.boot()

    @property
    def _has_clock_of_its_own(self) -> bool:
        """Whether the database's clock is not the one of this machine; SQLite reads that one, steps and all."""
        return not self.dialect.one_writer or self._transactions.database_clock is not None

    def __repr__(self) -> str:
        return f"<Database {self.where}>"

    # ── open and close ────────────────────────────────────────────────────────────────────────────────────────────────
    async def open(self, timeout: float = START_TIMEOUT) -> None:
        """Connect, trying again within `timeout` seconds while the database cannot be reached.

        Raises `DatabaseUnavailable` when it stays so, at once for a refused login, a missing database, a read-only or
        damaged file; `ConfigurationError` for a server or library too old and for a file on a network file system.
        """
        self._leave_inherited()
        if self._backend is not None:
            return
        loop = self._loop = asyncio.get_running_loop()
        if self._owner is not None and self._owner._backend is not None:
            return
        backend = self._make_backend()
        deadline, pause = loop.time() + timeout, 0.1
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    self.cautions = [*self._target.cautions, *await backend.open()]
                break
            except Exception as error:
                await backend.close()
                fault = self.dialect.classify(error)
                if not fault.passing or fault is Fault.READ_ONLY or loop.time() + pause >= deadline:
                    final = explain_failed_open(fault, error, self.where)
                    if final is error:
                        raise
                    raise final from error
                backend = self._make_backend()
            except BaseException:  # the caller was cancelled
                await backend.close(0.0)
                raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)
        self._backend = backend
        self._pid = os.getpid()

    def _make_backend(self) -> ConnectionBackend:
        if self._make_other_backend is not None:
            return self._make_other_backend(self._transactions)
        if self.dialect.one_writer:
            return SQLiteThreads(
                self.url,
                self._transactions,
                synchronous=self._synchronous,
                allow_network=self._allow_network,
                where=self.where,
                is_client=self._role == "client",
            )
        return ServerPool(
            self._target.engine,
            self._transactions,
            size=self._pool_size,
            limit=self._limit,
            where=self.where,
            is_client=self._role == "client",
        )

    async def close(self, within: float | None = None) -> None:
        """Finish the calls under way and close what was opened; harmless when nothing is open.

        After `within` seconds (None: without limit) the calls that are left end with `DatabaseUnavailable`.
        """
        self._leave_inherited()
        sessions, self._job_sessions = self._job_sessions, None
        backend, self._backend = self._backend, None
        if sessions is not None:
            await sessions.close()
        if backend is not None:
            await backend.close(within)

    def _leave_inherited(self) -> None:
        """Forget, after a fork, what the parent opened: closing it here could harm the parent's connection."""
        if self._backend is not None and self._pid != os.getpid():
            _INHERITED.append(self._backend)
            self._backend = None

    async def __aenter__(self) -> Database:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # ── verbs ─────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def read(self, fn: Callable[Concatenate[Tx, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `fn(tx, …)` for its answer; it must not write. On a server each statement sees what is committed then."""
        return await self._run(partial(_call, fn, args, kwargs), write=False, single=True)

    async def write(self, fn: Callable[Concatenate[Tx, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `fn(tx, …)` in one transaction and return its value after the commit.

        `fn` has no effect but its SQL, for it may run more than once: after busy, deadlock and serialisation, beside a
        failing neighbour in a group commit, and **after a COMMIT whose answer was lost**. So running again after a
        success must be harmless and recognised: by ids and tokens made before the call (an insert that finds its own
        id, a compare-and-set whose outcome names its token), or by `tx.unanswered`, what the earlier try returned.
        `CommitUnknown` is raised when no later try got an answer.

        Raises `DatabaseUnavailable` when tries are over, `SchemaOutOfDate` when tables are missing, else what `fn` or
        SQLAlchemy raised. A caller cancelled in mid-call gets `CancelledError` at once; the transaction still runs to
        its end on its own.
        """
        return await self._run(partial(_call, fn, args, kwargs), write=True, single=False)

    async def write_one(self, fn: Callable[Concatenate[Tx, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """As `write`, for an `fn` whose only writing is one statement: on a server it commits by itself."""
        return await self._run(partial(_call, fn, args, kwargs), write=True, single=True)

    async def write_unflushed(self, fn: Callable[Concatenate[Tx, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """As `write_one`, for a change that a crash of the machine may undo; what `fn` sends is `Dialect.unflushed`."""
        return await self._run(partial(_call, fn, args, kwargs), write=True, single=True, flushed=False)

    async def exclusive(self, fn: Callable[[Tx], R], *, patience: float) -> R:
        """As `write`, for work that may wait and take long (migrations): `patience` seconds for locks, five minutes."""
        return await self._run(fn, write=True, single=False, patience=patience, limit=300.0)

    async def _run(self, call: Callable[[Tx], R], **options: Any) -> R:
        return await self._open_backend().run(call, rank=self._rank, **options)

    async def measure_offset(self) -> int:
        """Measure and keep `offset_us`, the database's clock minus the local one, by the midpoint of one read."""
        if not self._has_clock_of_its_own:
            return 0

        def timed(tx: Tx) -> int:
            before = self._clock.now()
            now = tx.now()
            return now - (before + self._clock.now()) // 2

        self.offset_us = await self.read(timed)
        return self.offset_us

    # ── siblings ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def heartbeat_database(self) -> Database:
        """Return a sibling for another thread's event loop, with one connection of its own.

        On SQLite it uses this database's threads, and its calls run ahead of all that wait there: a connection of its
        own would only compete for the same file lock.
        """
        sibling = self._sibling()
        sibling._rank = Rank.HEARTBEAT
        sibling._limit = min(self._limit, HEARTBEAT_LIMIT)
        return sibling

    def for_users(self) -> Database:
        """Return a view of this database for the calls of users: the engine's own calls go ahead of them.

        It shares the connections, and is neither opened nor closed.
        """
        view = copy(self)
        view._backend, view._owner = None, self
        view._rank = Rank.USER
        return view

    def refuse_in_own_write(self) -> None:
        """Raise `DatabaseUnavailable` when this task or thread has a write transaction open on the same SQLite file.

        Every write asks this by itself; ask it where another thread is going to write for this one.
        """
        if self.dialect.one_writer:
            refuse_in_own_write(real_file(self.url), self.where)

    def _sibling(self) -> Database:
        sibling = Database(
            self._given,
            tables=self.tables,
            pool_size=1,
            sqlite_synchronous=self._synchronous,
            sqlite_allow_network=self._allow_network,
            database_clock=self._transactions.database_clock,
            points=self._transactions.points,
            role=self._role,
            call_limit=self._limit,
            clock=self._clock,
            random=self._transactions.random,
            make_backend=self._make_other_backend,
        )
        if self.dialect.one_writer or self._make_other_backend is not None:
            sibling._owner = self
        return sibling

    def _open_backend(self) -> ConnectionBackend:
        owner = self if self._backend is not None or self._owner is None else self._owner
        if owner._backend is None:
            raise NotStarted("the database is not open; start the scheduler, or open the database, first")
        if owner._pid != os.getpid():
            raise NotStarted(
                f"the database was opened in process {owner._pid} and is used in its child {os.getpid()} after a fork; "
                "open it in the child (start the scheduler after the fork)"
            )
        return owner._backend


def _call(fn: Callable[..., R], args: Any, kwargs: Any, tx: Tx) -> R:
    return fn(tx, *args, **kwargs)
