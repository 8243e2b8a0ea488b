"""The connection pool of a server: each call runs to its end on one connection, also when its caller is cancelled."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from onebeat.errors import DatabaseUnavailable, NotStarted
from onebeat.store.connection.backend import Rank
from onebeat.store.connection.turns import Turns
from onebeat.store.faults import Fault
from onebeat.store.retries import PATIENCE, CommitLost, Retries
from onebeat.store.tx import TransactionRunner, Tx
from onebeat.tracking.otel import no_root_spans

R = TypeVar("R")

CONNECT_LIMIT = 10.0  # seconds for one try
CONNECT_AT_LEAST = 1.0  # seconds for one try, also of a call that has waited for its turn as long as its patience
SECOND_TRY_AT_LEAST = 2.0  # seconds for the try after the first one, also when that used up the limit of the call
MAX_AGE = 1800.0  # seconds; then a connection is replaced, so that changed load balancers and certificates take effect
CLOSE_WITHIN = 3.0  # seconds for closing one connection in agreement with the server
CUT_WITHIN = 0.5  # seconds that a call gets to end, and to return its connection, after that was cut


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call(Generic[R]):
    """A call with its limits; times are of the event loop's clock."""

    run: Callable[[Tx], R]
    write: bool
    single: bool
    retries: Retries
    connect_until: float
    until: float
    unanswered: list[R] = field(default_factory=list)  # see `TransactionRunner.run_transaction`


class ServerPool:
    """A `ConnectionBackend` with at most `size` connections in driver autocommit; transactions begin and end in text.

    A connection stays checked out between calls, because checking it in and out would cost two round trips a call. A
    call that has its connection runs to its end in a task of its own, also when the caller is cancelled: so a cancel
    leaves neither a connection nor a lock behind. A call cancelled while it waits for a connection is not run at all.
    """

    def __init__(
        self,
        make_engine: Callable[[dict[str, Any]], AsyncEngine],
        transactions: TransactionRunner,
        *,
        size: int,
        limit: float,
        where: str,
        is_client: bool = False,
    ) -> None:
        self.pooled = False  # a transaction pooler stands between; then nothing is sent outside a transaction
        self.opened = 0  # connections opened so far
        self._make_engine = make_engine
        self._engine: AsyncEngine | None = None
        self._transactions = transactions
        self._limit = limit
        self._where = where
        self._size = size
        self._turns = Turns(size)
        self._kept = 0 if is_client or size == 1 else 1  # connections that reads of users leave to the engine
        self._trouble: Exception | None = None  # why the last try found no connection; None since one worked
        self._idle: deque[tuple[AsyncConnection, float]] = deque()
        self._busy: set[AsyncConnection] = set()  # those on which a call runs now
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False
        self._cut = False  # it was closed before every call had ended
        self._generation = 0  # grows with each lost connection; connections of an older generation are discarded

    async def open(self) -> list[str]:
        """Connect once and inspect the server; see `ConnectionBackend.open`."""
        self._loop = asyncio.get_running_loop()
        arguments = self._transactions.dialect.pooled_arguments
        self._engine = self._make_engine(arguments or {})
        connection = await self._connect()
        try:
            with no_root_spans():
                cautions, self.pooled = await connection.run_sync(self._transactions.dialect.inspect)
        finally:
            await self._discard(connection, lost=False)
        if arguments is not None and not self.pooled:
            await self._engine.dispose()
            self._engine = self._make_engine({})
        self._idle.append((await self.connect(), self._loop.time()))
        return cautions

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
        """Run one call; see `ConnectionBackend.run`.

        A call that has waited for a connection as long as its patience raises `DatabaseUnavailable`.

        With `single` the statement commits by itself, without a transaction around it. `flushed` has no effect here:
        the statement itself asks the server (`Dialect.unflushed`).
        """
        self._refuse_closed()
        if asyncio.get_running_loop() is not self._loop:
            raise NotStarted(
                "the database was opened in another event loop; use it there, or a `heartbeat_database()` here"
            )
        patience = PATIENCE if patience is None else patience
        now = self._loop.time()
        submitted = _Call(
            run=call,
            write=write,
            single=single,
            retries=self._transactions.retries(patience),
            connect_until=now + patience,
            until=now + (limit or self._limit),
        )
        spare = 0 if write or rank is not Rank.USER else self._kept
        if not self._turns.take_free(spare=spare):
            try:
                async with asyncio.timeout(patience):
                    await self._turns.take(rank, spare=spare)
            except TimeoutError as error:
                raise self._no_turn(submitted.retries) from error
        try:
            self._refuse_closed()
        except NotStarted:
            self._turns.give_back()
            raise
        task = self._loop.create_task(self._run_to_its_end(submitted))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if self._cut and task.cancelled():
                raise DatabaseUnavailable(f"{self._where} was closed before this call had an answer") from None
            raise

    def _no_turn(self, retries: Retries) -> Exception:
        """Return what to raise for a call that got no connection while its patience lasted."""
        if self._trouble is not None:
            return retries.final(self._trouble, self._where)
        return DatabaseUnavailable(
            f"none of the {self._size} connections to {self._where} was free within {retries.patience:g} s, so nothing "
            "was written; make pool_size larger, or look for slow queries and locks in the database",
            reason="timeout",
        )

    async def close(self, within: float | None = None) -> None:
        """Wait for the calls under way, then close the connections; see `ConnectionBackend.close`."""
        self._closing = True
        loop = asyncio.get_running_loop()
        until = None if within is None else loop.time() + within
        while self._tasks and (until is None or loop.time() < until):
            await asyncio.wait(self._tasks, timeout=None if until is None else until - loop.time())
        if self._tasks:
            await self._cut_calls()
        while self._idle:
            connection, _ = self._idle.popleft()
            if self._cut:
                cut(connection)
            await self._discard(connection, lost=self._cut)
        if self._engine is not None:
            await self._engine.dispose()

    async def _cut_calls(self) -> None:
        """End the calls under way without asking the server.

        A COMMIT is never cancelled: behind a synchronous replica that would leave a row that is visible and perhaps
        not replicated. Its connection is cut, which ends the call; a call without a connection is cancelled.
        """
        self._cut = True
        for connection in self._busy:
            cut(connection)
        await asyncio.wait(self._tasks, timeout=CUT_WITHIN)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CUT_WITHIN)

    def _refuse_closed(self) -> None:
        if self._closing:
            raise NotStarted("the database is closed; start the scheduler, or open the database, first")

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._turns.give_back()
        if not task.cancelled():
            task.exception()  # retrieved here, because the caller may have been cancelled

    async def _run_to_its_end(self, call: _Call[R]) -> R:
        loop = asyncio.get_running_loop()
        tries = 0
        while True:
            try:
                return await self._try_once(call)
            except Exception as error:
                tries += 1
                pause = call.retries.pause(error)
                if tries == 1:  # the connection may be dead without a word, so another one gets time for an answer
                    call = replace(call, until=max(call.until, loop.time() + SECOND_TRY_AT_LEAST))
                if pause is None or self._cut or loop.time() + pause >= call.until:
                    final = call.retries.final(error, self._where)
                    if final is error:
                        raise
                    raise final from error
            await asyncio.sleep(pause)

    async def _try_once(self, call: _Call[R]) -> R:
        try:
            connection, opened = await self._take(call.connect_until)
        except Exception as error:
            self._trouble = error
            raise
        generation = self._generation
        self._busy.add(connection)
        try:
            async with asyncio.timeout_at(call.until):
                if call.single and not self.pooled:
                    result = await connection.run_sync(self._run_autocommit, call)
                else:
                    result = await connection.run_sync(self._run_transaction, call)
        except BaseException as error:
            if self._is_unusable(connection, error):
                self._trouble = error if isinstance(error, Exception) else None
                self._generation += 1
                await self._discard(connection, lost=True)
            else:
                self._idle.append((connection, opened))
            if call.write and isinstance(error, TimeoutError):
                raise CommitLost("no answer within the limit of a call") from error
            raise
        finally:
            self._busy.discard(connection)
        self._trouble = None
        if generation == self._generation:
            self._idle.append((connection, opened))
        else:
            await self._discard(connection, lost=False)
        return result

    def _run_transaction(self, connection: Connection, call: _Call[R]) -> R:
        with no_root_spans():
            return self._transactions.run_transaction(
                connection, call.run, write=call.write, unanswered=call.unanswered
            )

    def _run_autocommit(self, connection: Connection, call: _Call[R]) -> R:
        with no_root_spans():
            return self._transactions.run_autocommit(connection, call.run, write=call.write)

    def _is_unusable(self, connection: AsyncConnection, error: BaseException) -> bool:
        """Return whether the error leaves the state of the connection unknown."""
        if not isinstance(error, Exception) or connection.closed or connection.invalidated:
            return True
        fault = self._transactions.dialect.classify(error)
        return fault in (Fault.DISCONNECT, Fault.UNREACHABLE, Fault.READ_ONLY, Fault.TIMEOUT)

    async def _take(self, until: float) -> tuple[AsyncConnection, float]:
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection, opened = self._idle.pop()
            if now - opened < MAX_AGE and not connection.invalidated:
                return connection, opened
            await self._discard(connection, lost=False)
        async with asyncio.timeout_at(max(until, now + CONNECT_AT_LEAST)):
            return await self.connect(), now

    async def connect(self) -> AsyncConnection:
        """Open one more connection and prepare it."""
        connection = await self._connect()
        try:
            async with asyncio.timeout(min(CONNECT_LIMIT, self._limit)):
                with no_root_spans():
                    await connection.run_sync(partial(self._transactions.dialect.setup, pooled=self.pooled))
        except BaseException:
            await self._discard(connection, lost=True)
            raise
        self.opened += 1
        return connection

    async def _connect(self) -> AsyncConnection:
        assert self._engine is not None
        with no_root_spans():
            async with asyncio.timeout(min(CONNECT_LIMIT, self._limit)):
                return await self._engine.connect()

    async def _discard(self, connection: AsyncConnection, *, lost: bool) -> None:
        """Close a connection; when it is `lost`, close it and every idle one without asking the server."""
        doomed = [connection]
        if lost:
            doomed.extend(idle for idle, _ in self._idle)
            self._idle.clear()
        for each in doomed:
            try:
                async with asyncio.timeout(CLOSE_WITHIN):
                    if lost and not each.closed:
                        await each.invalidate()
                    await each.close()
            except Exception:  # noqa: BLE001, S112 - it is being thrown away; the server's own limits end its session
                continue


def cut(connection: AsyncConnection) -> None:
    """Close a connection at once, without a word to the server; what waits for its answer learns of it."""
    driver = None if connection.closed or connection.invalidated else connection.sync_connection
    raw: Any = None if driver is None else driver.connection.driver_connection
    if raw is not None:
        getattr(raw, "terminate", raw.close)()  # asyncpg's `terminate`; asyncmy's `close` is the same
