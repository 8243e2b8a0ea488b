"""The threads of a SQLite file: one writes and commits waiting calls together, the others read."""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from enum import Enum
from functools import partial
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import URL

from onebeat.concurrency.forks import after_fork_in_child
from onebeat.errors import DatabaseUnavailable, NotStarted
from onebeat.store.connection import sqlite_file
from onebeat.store.connection.backend import Rank
from onebeat.store.connection.callers_sqlite import refuse_in_own_write
from onebeat.store.connection.queued_call import QueuedCall, complete_all
from onebeat.store.faults import Fault
from onebeat.store.tx import Moment, TransactionRunner, Tx
from onebeat.tracking.otel import no_root_spans

R = TypeVar("R")

PATIENCE = 5.0  # seconds, since a call was submitted, of waiting for a lock that another connection holds
POLL = (
    0.0003,
    0.0015,
)  # seconds between two tries to take that lock; random, so that two who wait do not march in step
LOOK = 0.02  # seconds between two looks for calls whose patience has ended
GROUP = 200  # calls in one commit; more would only make the first of them wait
SUSPECTS = 3  # failing calls taken out of a group before each of the rest runs alone


class _Threads(NamedTuple):
    """The threads of one file; some may be the same one."""

    writer: SQLiteThread
    reader: SQLiteThread
    users: SQLiteThread  # reads for users, whose long queries make no fire and no job late


class SQLiteThreads:
    """The `ConnectionBackend` of a SQLite file: one thread writes, one reads for the engine, one for users.

    Each has one connection. A client has no engine, and one thread that reads.
    """

    def __init__(
        self,
        url: URL,
        transactions: TransactionRunner,
        *,
        synchronous: str,
        allow_network: bool,
        where: str,
        is_client: bool = False,
    ) -> None:
        self._url = url
        self._transactions = transactions
        self._synchronous = synchronous
        self._allow_network = allow_network
        self._where = where
        self._is_client = is_client
        self._threads: _Threads | None = None
        self._file: str | None = None  # counted in `_open_files`

    async def open(self) -> list[str]:
        """Open the file on both threads; see `ConnectionBackend.open`."""
        return await asyncio.to_thread(self._open)

    def _open(self) -> list[str]:
        sqlite_file.require_version(sqlite3.sqlite_version_info)
        path = sqlite_file.file_of(self._url)
        if path is not None:
            sqlite_file.require_place(path, allow_network=self._allow_network)
            file = os.path.realpath(path)
            if file in _inherited:
                raise NotStarted(
                    f"{path} was open when this process was forked from its parent, and SQLite keeps state about open "
                    "files that a fork makes wrong; start the scheduler after the fork, or start processes with spawn"
                )
            sqlite_file.make_private(self._url)
            _open_files[file] += 1
            self._file = file
        thread = partial(
            SQLiteThread,
            engine=sqlite_file.open_engine(self._url),
            transactions=self._transactions,
            where=self._where,
        )
        prepare = partial(sqlite_file.prepare_writer, synchronous=self._synchronous)
        set_flushing = partial(sqlite_file.set_flushing, synchronous=self._synchronous)
        writer = thread("onebeat-writer", write=True, prepare=prepare, set_flushing=set_flushing)
        writer.open().result()
        self._threads = _Threads(writer, writer, writer)  # a database in memory belongs to one connection
        if path is not None:
            reader = thread("onebeat-reader", write=False, prepare=sqlite_file.prepare_reader)
            self._threads = _Threads(writer, reader, reader)
            reader.open().result()
        if path is not None and not self._is_client:
            users = thread("onebeat-users", write=False, prepare=sqlite_file.prepare_reader)
            self._threads = _Threads(writer, reader, users)
            users.open().result()
        return sqlite_file.cautions(sqlite3.sqlite_version_info)

    async def close(self, within: float | None = None) -> None:
        """End the threads, the writer last; see `ConnectionBackend.close`.

        A thread that waits for another process's lock ends when that wait does, at most 5 s later.
        """
        threads, self._threads = self._threads, None
        for thread in reversed(threads or ()):
            await asyncio.to_thread(thread.close, None if within is None else within / 2)
        if self._file is not None:
            file, self._file = self._file, None
            _open_files[file] -= 1
            if not _open_files[file]:
                del _open_files[file]

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
        """Queue a call and wait for its commit; `single` and `limit` have no effect here. See `ConnectionBackend.run`.

        Raises `DatabaseUnavailable` at once for a write while the current task has a write transaction open on the
        same file.
        """
        if write:
            refuse_in_own_write(self._file, self._where)
        waiter: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        retries = self._transactions.retries(PATIENCE if patience is None else patience)
        queued = QueuedCall(call, waiter, retries=retries, flushed=flushed, rank=rank)
        self._thread(write, rank).submit(queued)
        return await waiter

    def _thread(self, write: bool, rank: Rank = Rank.ENGINE) -> SQLiteThread:
        if self._threads is None:
            raise NotStarted("the database is closed; start the scheduler, or open the database, first")
        if write:
            return self._threads.writer
        return self._threads.users if rank is Rank.USER else self._threads.reader


class _Signal(Enum):
    END = "close the connection and end the thread"


class SQLiteThread:
    """One thread with one connection.

    It serves calls in order; writing calls that wait at the same time commit together.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        transactions: TransactionRunner,
        *,
        write: bool,
        prepare: Callable[[Any], None],
        set_flushing: Callable[[Any, bool], None] | None = None,
        where: str,
    ) -> None:
        self.name = name
        self.commits = 0  # transactions that were committed, for tests and figures
        self._engine = engine
        self._transactions = transactions
        self._write = write
        self._prepare = prepare
        self._set_flushing = set_flushing
        self._flushed = True  # whether the connection's commits wait for the disk now
        self._where = where
        self._queue: queue.SimpleQueue[QueuedCall | _Signal] = queue.SimpleQueue()
        self._waiting: list[QueuedCall] = []  # taken from the queue, in the order in which they run
        self._suspects = 0  # groups that failed one after another
        self._ending = False  # nothing is submitted any more
        self._next_look = 0.0  # `clock.monotonic()` of the next look for calls whose patience has ended
        self._lock = threading.Lock()  # no call is queued behind the signal to end
        self._closing = False
        self._abandoned = False  # nobody waits for the end of the thread any more
        self._closed = threading.Event()
        self._connection: Connection | None = None
        self._opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def open(self) -> Future[None]:
        """Start the thread; the future completes when its connection works, or with the error that prevents it."""
        self._thread.start()
        return self._opened

    def submit(self, call: QueuedCall) -> None:
        """Queue a call; it goes ahead of all that wait with a higher rank."""
        with self._lock:
            if self._closing:
                raise NotStarted("the database is closed; start the scheduler, or open the database, first")
            self._queue.put(call)

    def close(self, within: float | None = None) -> None:
        """Finish what is queued and end the thread; returns when its connection is closed.

        After `within` seconds the statement under way is interrupted, the rest is refused, and this returns.
        """
        with self._lock:
            self._closing = True
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._queue.put(_Signal.END)
            if self._closed.wait(within):
                self._thread.join()
            else:
                self._abandon()

    def _abandon(self) -> None:
        """Let the thread end by itself as soon as its present step does."""
        self._abandoned = True
        connection = self._connection
        driver = None if connection is None or connection.invalidated else connection.connection.driver_connection
        if isinstance(driver, sqlite3.Connection):
            driver.interrupt()

    # ── on the thread ─────────────────────────────────────────────────────────────────────────────────────────────────
    def _run(self) -> None:
        try:
            try:
                self._connect()
            except BaseException as error:  # noqa: BLE001 - raised where the thread was opened
                self._opened.set_exception(error)
                return
            self._opened.set_result(None)
            while not self._abandoned and self._gather():
                with no_root_spans():  # this thread has no context of a caller
                    self._serve()
        finally:
            self._disconnect()
            with self._lock:
                self._closing = True
            self._refuse_rest()
            self._closed.set()

    def _connect(self) -> None:
        with no_root_spans():
            connection = self._engine.connect()
        try:
            self._prepare(connection.connection.driver_connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._flushed = True

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _gather(self, *, wait: bool = True) -> bool:
        """Take what was submitted, and put all that wait in order; return False when the thread is to end.

        With `wait`, this returns only when there is a call to run or the thread is to end.
        """
        wait = wait and not self._waiting and not self._ending
        while wait or not self._queue.empty():
            wait = False
            taken = self._queue.get()
            if isinstance(taken, QueuedCall):
                self._waiting.append(taken)
            else:
                self._ending = True
        self._waiting.sort(key=_rank)
        return bool(self._waiting) or not self._ending

    def _serve(self) -> None:
        """Run the next calls in one transaction, as soon as the lock is free."""
        while not self._abandoned and (group := self._group()):
            try:
                connection = self._usable_connection(group)
                self._transactions.dialect.begin(connection, write=self._write)
            except Exception as error:  # noqa: BLE001 - raised in the caller, by `complete_all`
                if self._transactions.dialect.classify(error) is not Fault.RETRY:
                    self._fail(group[0], error)
                    return
                self._wait_for_lock(error)
            else:
                self._run_group(connection, group)
                return

    def _group(self) -> list[QueuedCall]:
        """Return the calls that are to commit together next; calls whose callers were cancelled are dropped."""
        self._waiting = [call for call in self._waiting if not call.is_cancelled]
        first = self._waiting[:1]
        if not self._write or (first and first[0].alone):
            return first
        return [call for call in self._waiting[:GROUP] if not call.alone]

    def _wait_for_lock(self, error: Exception) -> None:
        """Pause; whoever has waited for as long as its patience is told.

        The pause is short and steady: SQLite's own busy handler sleeps longer and longer, up to 100 ms, so that whoever
        has waited longest would be served last.
        """
        clock, random = self._transactions.clock, self._transactions.random
        self._gather(wait=False)
        if clock.monotonic() >= self._next_look:
            self._next_look = clock.monotonic() + LOOK
            late = [call for call in self._waiting if call.retries.is_out_of_patience()]
            for call in late:
                call.error = _locked(self._where, call.retries.patience, error)
            self._complete(late)
        time.sleep(random.uniform(*POLL))

    def _run_group(self, connection: Connection, group: list[QueuedCall]) -> None:
        """Run all in the transaction that has begun, and complete them after the commit.

        When one of several calls fails, all is rolled back. That call then runs alone, and the others run without it;
        after `SUSPECTS` such failures each of the group runs alone.
        """
        transactions, moment, call = self._transactions, Moment(), group[0]
        try:
            for call in group:
                tx = transactions.tx(connection, moment)
                tx.point("begin")
                call.result = call.run(tx)
            if self._write:
                transactions.commit(tx)
            else:
                transactions.dialect.rollback(connection)
        except BaseException as error:  # noqa: BLE001 - raised in the caller; it must not end this thread
            failure = self._roll_back(connection) or error
            if len(group) == 1:
                self._fail(call, failure)
            else:
                self._suspect(call, group)
            return
        self.commits += 1
        if not group[0].alone:
            self._suspects = 0
        self._complete(group)

    def _roll_back(self, connection: Connection) -> Exception | None:
        """Return the error of a rollback that failed; then the connection is replaced before the next call."""
        try:
            self._transactions.roll_back(connection)
        except Exception as error:  # noqa: BLE001 - raised in the caller
            return error
        return None

    def _suspect(self, call: QueuedCall, group: list[QueuedCall]) -> None:
        """Take a call that failed out of its group; after `SUSPECTS` such failures take out every other one too."""
        self._suspects += 1
        for suspect in group if self._suspects >= SUSPECTS else [call]:
            suspect.alone = True

    def _fail(self, call: QueuedCall, error: BaseException) -> None:
        """Let a call run again, alone, after its pause; when that is of no use, give the error to its caller."""
        call.alone = True
        if isinstance(error, Exception):
            if call.retries.fault(error) is Fault.DISCONNECT:
                self._disconnect()
            if self._abandoned:
                return  # it is refused with the rest
            pause = call.retries.pause(error)
            if pause is not None:
                time.sleep(pause)
                return
            error = call.retries.final(error, self._where)
        call.error = error
        self._complete([call])

    def _complete(self, calls: list[QueuedCall]) -> None:
        """Give the outcomes of calls to their callers."""
        ended = set(calls)
        self._waiting = [call for call in self._waiting if call not in ended]
        complete_all(calls)

    def _usable_connection(self, calls: list[QueuedCall]) -> Connection:
        """Return the connection, whose commits wait for the disk if one of the calls needs that."""
        if self._connection is not None and self._connection.invalidated:
            self._disconnect()
        if self._connection is None:
            self._connect()
        assert self._connection is not None
        flushed = any(call.flushed for call in calls)
        if flushed != self._flushed and self._set_flushing is not None:
            self._set_flushing(self._connection.connection.driver_connection, flushed)
            self._flushed = flushed
        return self._connection

    def _refuse_rest(self) -> None:
        rest = self._waiting
        while not self._queue.empty():
            taken = self._queue.get()
            if isinstance(taken, QueuedCall):
                rest.append(taken)
        for call in rest:
            call.error = (
                DatabaseUnavailable(f"{self._where} was closed before this call was done; nothing was written")
                if self._abandoned
                else NotStarted("the database was closed before this call had its turn; nothing was written")
            )
        complete_all(rest)


def _rank(call: QueuedCall) -> Rank:
    return call.rank


def _locked(where: str, patience: float, error: Exception) -> DatabaseUnavailable:
    locked = DatabaseUnavailable(
        f"{where} could not be written within {patience:g} s, because other connections hold its write lock; commit "
        "your own transaction before you enqueue, keep writing transactions short, or give onebeat a file of its own",
        reason="retry",
    )
    locked.__cause__ = error
    return locked


# ── after a fork ──────────────────────────────────────────────────────────────────────────────────────────────────────
_open_files: Counter[str] = Counter()  # in this process
_inherited: set[str] = set()  # files that were open in the parent when this process was forked from it


def _remember_inherited() -> None:
    _inherited.update(_open_files)
    _open_files.clear()


after_fork_in_child(_remember_inherited)
