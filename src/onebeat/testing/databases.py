"""The databases of simulations: one in memory, and the application's own, each used from any event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from onebeat.model.protocols import Clock
from onebeat.store.connection import sqlite_file
from onebeat.store.connection.backend import ConnectionBackend, Rank
from onebeat.store.connection.database import Database
from onebeat.store.tables import build
from onebeat.store.tx import TransactionRunner, Tx

if TYPE_CHECKING:
    import sqlite3

    from sqlalchemy import Connection

R = TypeVar("R")

IN_MEMORY = "sqlite://"
_made: dict[str, sqlite3.Connection] = {}  # by table prefix: databases with onebeat's tables and no rows, to copy
_copying = threading.Lock()


class MemoryBackend:
    """The `ConnectionBackend` of a SQLite database in memory: each call runs at once, on the thread that makes it.

    One connection serves every thread and event loop in turn, so no call waits for an event loop that is blocked.
    """

    def __init__(self, transactions: TransactionRunner, url: Any) -> None:
        self._transactions = transactions
        self._url = url
        self._lock = threading.RLock()
        self._connection: Connection | None = None

    async def open(self) -> list[str]:
        """Connect, and copy the tables that an earlier database in memory was given."""
        self._connection = sqlite_file.open_engine(self._url).connect()
        with _copying:
            if (made := _made.get(self._transactions.tables.prefix)) is not None:
                made.backup(self._driver)
        return []

    @property
    def _driver(self) -> sqlite3.Connection:
        assert self._connection is not None
        driver: sqlite3.Connection = self._connection.connection.driver_connection  # type: ignore[assignment]  # of sqlite3
        return driver

    def keep_tables(self) -> None:
        """Let later databases begin as a copy of this one, which has tables and no rows yet."""
        import sqlite3

        with _copying:
            if self._transactions.tables.prefix not in _made:
                kept = sqlite3.connect(":memory:", check_same_thread=False)
                self._driver.backup(kept)
                _made[self._transactions.tables.prefix] = kept

    def call(self, call: Callable[[Tx], R], *, write: bool = False) -> R:
        """Run `call` in a transaction and return its value after the commit. Any thread may call this."""
        with self._lock:
            assert self._connection is not None, "the database in memory is closed"
            if not write:
                return call(self._transactions.tx(self._connection))
            return self._transactions.run_transaction(self._connection, call)

    async def run(
        self,
        call: Callable[[Tx], R],
        *,
        write: bool,
        single: bool,
        patience: float | None = None,
        limit: float | None = None,
        flushed: bool = True,
        rank: Rank = Rank.ENGINE,
    ) -> R:
        """Run `call` at once; nothing is waited for, so only `write` matters. See `ConnectionBackend.run`."""
        try:
            return self.call(call, write=write)
        except Exception as error:
            final = self._transactions.retries().final(error, "the database in memory")
            if final is error:
                raise
            raise final from error

    async def close(self, within: float | None = None) -> None:
        """Throw the database away."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()


class MemoryDatabase(Database):
    """A database in memory under a virtual clock, with the tables of a scheduler."""

    def __init__(self, *, prefix: str, time: Callable[[], int], clock: Clock) -> None:
        super().__init__(
            IN_MEMORY, tables=build(prefix), database_clock=time, clock=clock, make_backend=self._make_memory
        )
        self.memory: MemoryBackend | None = None  # once it is open

    def _make_memory(self, transactions: TransactionRunner) -> MemoryBackend:
        self.memory = MemoryBackend(transactions, self.url)
        return self.memory


class OwnDatabase(Database):
    """The application's database in a simulation: calls from every event loop run on the one that opened it."""

    def _make_backend(self) -> ConnectionBackend:
        return _HomeBackend(super()._make_backend(), asyncio.get_running_loop())


class _HomeBackend:
    """Runs the calls of another backend on one event loop, whichever event loop makes them."""

    def __init__(self, backend: ConnectionBackend, home: asyncio.AbstractEventLoop) -> None:
        self._backend = backend
        self._home = home

    async def open(self) -> list[str]:
        """Connect; see `ConnectionBackend.open`."""
        return await self._backend.open()

    async def run(self, call: Callable[[Tx], R], **options: Any) -> R:
        """Run `call` on the home event loop; see `ConnectionBackend.run`."""
        return await run_on(self._home, self._backend.run(call, **options))

    async def close(self, within: float | None = None) -> None:
        """Close every connection; see `ConnectionBackend.close`."""
        await self._backend.close(within)


async def run_on(home: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, R]) -> R:
    """Await `work` on the event loop `home`, from whichever event loop this runs on."""
    if asyncio.get_running_loop() is home:
        return await work
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, home))
