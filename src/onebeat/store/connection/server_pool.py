"""A server's connections: a few held open, each call on one of them to its end, whatever becomes of its caller."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from onebeat.errors import NotStarted
from onebeat.store.faults import Fault
from onebeat.store.tx import PATIENCE, CommitLost, Ground, Retries, Tx

R = TypeVar("R")

CONNECT_LIMIT = 10.0  # seconds for one try
MAX_AGE = 1800.0  # seconds; then a connection is replaced, so that load balancers and certificates may change
CLOSE_WITHIN = 3.0  # seconds for a polite goodbye


class Pool:
    """At most `size` connections in driver autocommit; transactions are begun and ended in text.

    A connection is held as it is, not checked in and out: that would cost two round trips a call. A call that has its
    connection runs to its end in a task of its own, also when the caller is cancelled: so a cancel leaves neither a
    connection nor a lock behind. A call cancelled while it waits for a connection is not run at all.
    """

    def __init__(
        self,
        make_engine: Callable[[dict[str, Any]], AsyncEngine],
        ground: Ground,
        *,
        size: int,
        limit: float,
        where: str,
    ) -> None:
        self.pooled = False  # behind a transaction pooler nothing may be sent outside a transaction
        self.made = 0  # connections opened so far
        self._make_engine = make_engine
        self._engine: AsyncEngine | None = None
        self._ground = ground
        self._limit = limit
        self._where = where
        self._size = size
        self._free = asyncio.Semaphore(size)
        self._idle: deque[tuple[AsyncConnection, float]] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False
        self._era = 0  # a lost connection ends an era: the idle ones of it are not trusted

    def urgent(self) -> Pool:
        """A heartbeat's pool is its own, so nothing waits before it."""
        return self

    async def open(self) -> list[str]:
        """Connect once and look at the server; cautions for the operator, `ConfigurationError` for one too old."""
        self._loop = asyncio.get_running_loop()
        arguments = self._ground.dialect.pooled_arguments
        self._engine = self._make_engine(arguments or {})
        connection = await self._connect()
        try:
            cautions, self.pooled = await connection.run_sync(self._ground.dialect.inspect)
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
        patience: float = PATIENCE,
        limit: float | None = None,
        flushed: bool = True,
    ) -> R:
        """Run one call; `single`: its one statement commits by itself, without a transaction around it.

        Whether it is `flushed` its statement says here.
        """
        self._refuse_closed()
        if asyncio.get_running_loop() is not self._loop:
            raise NotStarted("the database was opened in another event loop; use `sync()` or a sibling there")
        await self._free.acquire()
        try:
            self._refuse_closed()
        except NotStarted:
            self._free.release()
            raise
        task = asyncio.get_running_loop().create_task(
            self._to_its_end(call, write, single, patience, limit or self._limit)
        )
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Wait for the calls under way, then close the connections."""
        self._closing = True
        while self._tasks:
            await asyncio.wait(self._tasks)
        while self._idle:
            await self._discard(self._idle.popleft()[0], lost=False)
        if self._engine is not None:
            await self._engine.dispose()

    def _refuse_closed(self) -> None:
        if self._closing:
            raise NotStarted("the database is closed; start the scheduler, or open the database, first")

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._free.release()
        if not task.cancelled():
            task.exception()  # looked at: the caller may be gone

    async def _to_its_end(self, call: Callable[[Tx], R], write: bool, single: bool, patience: float, limit: float) -> R:
        retries = Retries(self._ground.dialect, patience)
        while True:
            try:
                return await self._once(call, write, single, limit)
            except Exception as error:
                pause = retries.pause(error)
                if pause is None:
                    final = retries.final(error, self._where)
                    if final is error:
                        raise
                    raise final from error
            await asyncio.sleep(pause)

    async def _once(self, call: Callable[[Tx], R], write: bool, single: bool, limit: float) -> R:
        connection, opened = await self._take()
        era = self._era
        try:
            async with asyncio.timeout(limit):
                if single and not self.pooled:
                    result = await connection.run_sync(self._plain, call, write)
                else:
                    result = await connection.run_sync(self._transact, call, write)
        except BaseException as error:
            if self._spoiled(connection, error):
                self._era += 1
                await self._discard(connection, lost=True)
            else:
                self._idle.append((connection, opened))
            if write and isinstance(error, TimeoutError):
                raise CommitLost("no answer within the limit of a call") from error
            raise
        if era == self._era:
            self._idle.append((connection, opened))
        else:
            await self._discard(connection, lost=False)
        return result

    def _transact(self, connection: Connection, call: Callable[[Tx], R], write: bool) -> R:
        return self._ground.transact(connection, call, write=write)

    def _plain(self, connection: Connection, call: Callable[[Tx], R], write: bool) -> R:
        return self._ground.plain(connection, call, write=write)

    def _spoiled(self, connection: AsyncConnection, error: BaseException) -> bool:
        """Whether nothing is known any more about the connection's state."""
        if not isinstance(error, Exception) or connection.closed or connection.invalidated:
            return True
        fault = self._ground.dialect.classify(error)
        return fault in (Fault.DISCONNECT, Fault.UNREACHABLE, Fault.READ_ONLY, Fault.TIMEOUT)

    async def _take(self) -> tuple[AsyncConnection, float]:
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection, opened = self._idle.pop()
            if now - opened < MAX_AGE and not connection.invalidated:
                return connection, opened
            await self._discard(connection, lost=False)
        return await self.connect(), now

    async def connect(self) -> AsyncConnection:
        """Open one more connection and prepare it."""
        connection = await self._connect()
        try:
            async with asyncio.timeout(min(CONNECT_LIMIT, self._limit)):
                await connection.run_sync(partial(self._ground.dialect.setup, pooled=self.pooled))
        except BaseException:
            await self._discard(connection, lost=True)
            raise
        self.made += 1
        return connection

    async def _connect(self) -> AsyncConnection:
        assert self._engine is not None
        async with asyncio.timeout(min(CONNECT_LIMIT, self._limit)):
            return await self._engine.connect()

    async def _discard(self, connection: AsyncConnection, *, lost: bool) -> None:
        """Close a connection; a lost one, and with it all that are idle, without asking the server."""
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
