"""The threads of a SQLite file: one writes and commits waiting calls together, the other one reads."""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from copy import copy
from enum import Enum
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import URL

from onebeat.concurrency.forks import after_fork_in_child
from onebeat.errors import NotStarted
from onebeat.store.connection import sqlite_file
from onebeat.store.connection.queued_call import QueuedCall, complete_all
from onebeat.store.faults import Fault
from onebeat.store.retries import PATIENCE
from onebeat.store.tx import Moment, TransactionRunner, Tx
from onebeat.tracking.otel import no_root_spans

R = TypeVar("R")

GROUP = 200  # calls in one commit; more would only make the first of them wait
SUSPECTS = 3  # failing calls taken out of a group before each of the rest runs alone


class SQLiteThreads:
    """The `ConnectionBackend` of a SQLite file: a thread that writes and one that reads, each with one connection."""

    def __init__(
        self, url: URL, transactions: TransactionRunner, *, synchronous: str, allow_network: bool, where: str
    ) -> None:
        self._url = url
        self._transactions = transactions
        self._synchronous = synchronous
        self._allow_network = allow_network
        self._where = where
        self._is_urgent = False
        self._threads: tuple[SQLiteThread, SQLiteThread] | None = None  # writer, reader
        self._file: str | None = None  # counted in `_open_files`

    def urgent(self) -> SQLiteThreads:
        """Return a view of the same threads whose calls run ahead of all that wait."""
        view = copy(self)
        view._is_urgent = True
        return view

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
        self._threads = (writer, writer)  # a database in memory belongs to one connection
        if path is not None:
            reader = thread("onebeat-reader", write=False, prepare=sqlite_file.prepare_reader)
            self._threads = (writer, reader)
            reader.open().result()
        return sqlite_file.cautions(sqlite3.sqlite_version_info)

    async def close(self) -> None:
        """End both threads, the reader first; see `ConnectionBackend.close`."""
        threads, self._threads = self._threads, None
        for thread in reversed(threads or ()):
            await asyncio.to_thread(thread.close)
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
        patience: float = PATIENCE,
        limit: float | None = None,
        flushed: bool = True,
    ) -> R:
        """Queue a call and wait for its commit; `single` and `limit` have no effect here. See `ConnectionBackend`."""
        waiter: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        queued = QueuedCall(call, waiter, patience=patience, flushed=flushed)
        self._thread(write).submit(queued, urgent=self._is_urgent)
        return await waiter

    def _thread(self, write: bool) -> SQLiteThread:
        if self._threads is None:
            raise NotStarted("the database is closed; start the scheduler, or open the database, first")
        return self._threads[0 if write else 1]


class _Signal(Enum):
    WAKE = "look at the urgent calls"
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
        self._urgent: deque[QueuedCall] = deque()
        self._lock = threading.Lock()  # no call is queued behind the signal to end
        self._closing = False
        self._closed = threading.Event()
        self._connection: Connection | None = None
        self._opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def open(self) -> Future[None]:
        """Start the thread; the future completes when its connection works, or with the error that prevents it."""
        self._thread.start()
        return self._opened

    def submit(self, call: QueuedCall, *, urgent: bool = False) -> None:
        """Queue a call; an urgent one goes into the next commit, ahead of all that wait."""
        with self._lock:
            if self._closing:
                raise NotStarted("the database is closed; start the scheduler, or open the database, first")
            if urgent:
                self._urgent.append(call)
            self._queue.put(_Signal.WAKE if urgent else call)

    def close(self) -> None:
        """Finish what is queued and end the thread; returns when its connection is closed."""
        with self._lock:
            self._closing = True
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._queue.put(_Signal.END)
            self._closed.wait()
            self._thread.join()

    # ── on the thread ─────────────────────────────────────────────────────────────────────────────────────────────────
    def _run(self) -> None:
        try:
            try:
                self._connect()
            except BaseException as error:  # noqa: BLE001 - raised where the thread was opened
                self._opened.set_exception(error)
                return
            self._opened.set_result(None)
            while (calls := self._next()) is not None:
                with no_root_spans():  # this thread has no context of a caller
                    self._serve([call for call in calls if not call.is_cancelled])
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

    def _next(self) -> list[QueuedCall] | None:
        """Wait for a call, and return all that wait by then, urgent ones first; None when the thread is to end."""
        calls: list[QueuedCall] = []
        taken = self._queue.get()
        if taken is _Signal.END:
            return None
        while True:
            if isinstance(taken, QueuedCall):
                calls.append(taken)
            if not self._write or len(calls) >= GROUP or self._queue.empty():
                break
            taken = self._queue.get()
            if taken is _Signal.END:
                self._queue.put(taken)
                break
        while self._urgent:
            calls.insert(0, self._urgent.popleft())
        return calls

    def _serve(self, calls: list[QueuedCall]) -> None:
        suspects: list[QueuedCall] = []
        rest = calls
        while len(rest) > 1 and len(suspects) < SUSPECTS:
            suspect = self._run_together(rest)
            if suspect is None:
                break
            suspects.append(suspect)
            rest = [call for call in rest if call is not suspect]
        else:
            suspects.extend(rest)
        for call in suspects:
            self._run_alone(call)
        complete_all(calls)

    def _run_together(self, calls: list[QueuedCall]) -> QueuedCall | None:
        """Run all in one transaction; return None after the commit, else the call that failed: all is rolled back."""
        transactions, moment, call = self._transactions, Moment(), calls[0]
        try:
            connection = self._usable_connection(calls)
            transactions.dialect.begin(connection, write=True)
        except Exception:  # noqa: BLE001
            return call  # running it alone waits, tries again and explains the error
        try:
            for call in calls:
                tx = transactions.tx(connection, moment)
                tx.point("begin")
                call.result = call.run(tx)
            transactions.commit(tx)
        except BaseException:  # noqa: BLE001 - the call runs again alone and raises its own error
            transactions.roll_back(connection)
            return call
        self.commits += 1
        return None

    def _run_alone(self, call: QueuedCall) -> None:
        retries = self._transactions.retries(call.patience)
        while True:
            try:
                connection = self._usable_connection([call])
                call.result = self._transactions.run_transaction(connection, call.run, write=self._write)
                self.commits += 1
            except Exception as error:  # noqa: BLE001 - raised in the caller, by `complete_all`
                if retries.fault(error) is Fault.DISCONNECT:
                    self._disconnect()
                pause = retries.pause(error)
                if pause is None:
                    call.error = retries.final(error, self._where)
                    return
                time.sleep(pause)
            except BaseException as error:  # noqa: BLE001 - raised in the caller; it must not end this thread
                call.error = error
                return
            else:
                return

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
        rest = list(self._urgent)
        while not self._queue.empty():
            taken = self._queue.get()
            if isinstance(taken, QueuedCall):
                rest.append(taken)
        for call in rest:
            call.error = NotStarted("the database was closed before this call had its turn; nothing was written")
        complete_all(rest)


# ── after a fork ──────────────────────────────────────────────────────────────────────────────────────────────────────
_open_files: Counter[str] = Counter()  # in this process
_inherited: set[str] = set()  # files that were open in the parent when this process was forked from it


def _remember_inherited() -> None:
    _inherited.update(_open_files)
    _open_files.clear()


after_fork_in_child(_remember_inherited)
