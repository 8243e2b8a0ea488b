"""SQLite's two threads: one writes, many waiting calls in one commit; one reads."""

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
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import URL

from onebeat.concurrency.forks import after_fork_in_child
from onebeat.errors import NotStarted
from onebeat.store.connection import sqlite_file
from onebeat.store.faults import Fault
from onebeat.store.tx import PATIENCE, Ground, Moment, Retries, Tx

R = TypeVar("R")

GROUP = 200  # calls in one commit; more would only make the first of them wait
SUSPECTS = 3  # failing calls taken out of a group before each of the rest runs alone


_open_files: Counter[str] = Counter()  # in this process
_inherited: set[str] = set()  # files that were open in the parent when this process was forked from it


def _remember_inherited() -> None:
    _inherited.update(_open_files)
    _open_files.clear()


after_fork_in_child(_remember_inherited)


class Call:
    """One store function waiting for its transaction, and whom to tell."""

    __slots__ = ("error", "flushed", "loop", "patience", "result", "run", "waiter")

    def __init__(
        self,
        run: Callable[[Tx], Any],
        waiter: asyncio.Future[Any] | Future[Any],
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        patience: float = PATIENCE,
        flushed: bool = True,
    ) -> None:
        self.patience = patience
        self.flushed = flushed  # whether its commit is to survive a power cut
        self.run = run
        self.waiter = waiter
        self.loop = loop
        self.result: Any = None
        self.error: BaseException | None = None

    def start(self) -> bool:
        """False: the caller was cancelled while it waited; nothing is done for it."""
        if isinstance(self.waiter, Future):
            return self.waiter.set_running_or_notify_cancel()
        return not self.waiter.cancelled()

    def tell(self) -> None:
        """Hand over the outcome, on the waiter's own thread."""
        if self.waiter.done():
            return
        if self.error is None:
            self.waiter.set_result(self.result)
        else:
            self.waiter.set_exception(self.error)


class Lane:
    """One thread with one connection. Calls are served in order; writers' calls that wait together commit together."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        ground: Ground,
        *,
        write: bool,
        prepare: Callable[[Any], None],
        flushing: Callable[[Any, bool], None] | None = None,
        where: str,
    ) -> None:
        self.name = name
        self.commits = 0  # transactions that were committed, for tests and figures
        self._engine = engine
        self._ground = ground
        self._write = write
        self._prepare = prepare
        self._flushing = flushing
        self._flushed = True  # what the connection does now
        self._where = where
        self._queue: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._urgent: deque[Call] = deque()
        self._gate = threading.Lock()  # no call slips in behind the last one
        self._closing = False
        self._closed = threading.Event()
        self._connection: Connection | None = None
        self._opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def open(self) -> Future[None]:
        """Start the thread; the future tells when its connection works, or what went wrong."""
        self._thread.start()
        return self._opened

    def submit(self, call: Call, *, urgent: bool = False) -> None:
        """Queue a call; an urgent one goes into the next commit, whatever else waits."""
        with self._gate:
            if self._closing:
                raise NotStarted("the database is closed; start the scheduler, or open the database, first")
            if urgent:
                self._urgent.append(call)
            self._queue.put(_WAKE if urgent else call)

    def close(self) -> None:
        """Finish what is queued and end the thread; returns when its connection is closed."""
        with self._gate:
            self._closing = True
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._queue.put(None)
            self._closed.wait()
            self._thread.join()

    # ── the thread ────────────────────────────────────────────────────────────────────────────────────────────────────
    def _run(self) -> None:
        try:
            try:
                self._connect()
            except BaseException as error:  # noqa: BLE001 - told to whoever opens
                self._opened.set_exception(error)
                return
            self._opened.set_result(None)
            while calls := self._next():
                self._serve([call for call in calls if call is not _WAKE and call.start()])
        finally:
            self._disconnect()
            with self._gate:
                self._closing = True
            self._refuse_rest()
            self._closed.set()

    def _connect(self) -> None:
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

    def _next(self) -> list[Call]:
        """What waits now, at least one call; empty when the lane is to end."""
        first = self._queue.get()
        if first is None:
            return []
        calls = [first]
        while self._write and len(calls) < GROUP and not self._queue.empty():
            call = self._queue.get()
            if call is None:
                self._queue.put(None)
                break
            calls.append(call)
        while self._urgent:
            calls.insert(0, self._urgent.popleft())
        return calls

    def _serve(self, calls: list[Call]) -> None:
        suspects: list[Call] = []
        rest = calls
        while len(rest) > 1 and len(suspects) < SUSPECTS:
            suspect = self._together(rest)
            if suspect is None:
                break
            suspects.append(suspect)
            rest = [call for call in rest if call is not suspect]
        else:
            suspects.extend(rest)
        for call in suspects:
            self._alone(call)
        _tell(calls)

    def _together(self, calls: list[Call]) -> Call | None:
        """Run all in one transaction; None: committed. Else all is undone, and the call is one that failed in it."""
        ground, moment, call = self._ground, Moment(), calls[0]
        try:
            connection = self._usable(calls)
            ground.dialect.begin(connection, write=True)
        except Exception:  # noqa: BLE001
            return call  # running it alone waits, tries again and finds the words
        try:
            for call in calls:
                tx = ground.tx(connection, moment)
                tx.point("begin")
                call.result = call.run(tx)
            ground.commit(tx)
        except BaseException:  # noqa: BLE001 - the call is run again alone and tells its own error
            ground.undo(connection)
            return call
        self.commits += 1
        return None

    def _alone(self, call: Call) -> None:
        retries = Retries(self._ground.dialect, call.patience)
        while True:
            try:
                call.result = self._ground.transact(self._usable([call]), call.run, write=self._write)
                self.commits += 1
            except Exception as error:  # noqa: BLE001 - the caller's, told below
                if retries.fault(error) is Fault.DISCONNECT:
                    self._disconnect()
                pause = retries.pause(error)
                if pause is None:
                    call.error = retries.final(error, self._where)
                    return
                time.sleep(pause)
            except BaseException as error:  # noqa: BLE001 - the caller's, not this thread's
                call.error = error
                return
            else:
                return

    def _usable(self, calls: list[Call]) -> Connection:
        """The connection, waiting for the disk if one of the calls needs that."""
        if self._connection is not None and self._connection.invalidated:
            self._disconnect()
        if self._connection is None:
            self._connect()
        assert self._connection is not None
        flushed = any(call.flushed for call in calls)
        if flushed != self._flushed and self._flushing is not None:
            self._flushing(self._connection.connection.driver_connection, flushed)
            self._flushed = flushed
        return self._connection

    def _refuse_rest(self) -> None:
        rest = list(self._urgent)
        while not self._queue.empty():
            call = self._queue.get()
            if call is not None and call is not _WAKE:
                rest.append(call)
        for call in rest:
            call.error = NotStarted("the database was closed before this call had its turn; nothing was written")
        _tell([call for call in rest if call.start()])


_WAKE = Call(lambda tx: None, Future())


def _tell(calls: list[Call]) -> None:
    """Tell all waiters, each event loop once: a wake-up costs as much as the call itself."""
    loops: dict[asyncio.AbstractEventLoop, list[Call]] = {}
    for call in calls:
        if call.loop is None:
            call.tell()
        else:
            loops.setdefault(call.loop, []).append(call)
    for loop, theirs in loops.items():
        try:
            loop.call_soon_threadsafe(_tell_here, theirs)
        except RuntimeError:  # the loop was closed while its calls ran; nobody is left to tell
            continue


def _tell_here(calls: list[Call]) -> None:
    for call in calls:
        call.tell()


class Lanes:
    """Both threads of one file; what `Database` talks to on SQLite."""

    def __init__(self, url: URL, ground: Ground, *, synchronous: str, allow_network: bool, where: str) -> None:
        self._url = url
        self._ground = ground
        self._synchronous = synchronous
        self._allow_network = allow_network
        self._where = where
        self._first = False
        self._lanes: tuple[Lane, Lane] | None = None  # writer, reader
        self._file: str | None = None  # counted as open

    def urgent(self) -> Lanes:
        """The same threads, ahead of whatever waits."""
        twin = copy(self)
        twin._first = True
        return twin

    async def open(self) -> list[str]:
        """Open the file; cautions for the operator, or what went wrong."""
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
        lane = partial(Lane, engine=sqlite_file.open_engine(self._url), ground=self._ground, where=self._where)
        prepare = partial(sqlite_file.prepare_writer, synchronous=self._synchronous)
        flushing = partial(sqlite_file.set_flushing, synchronous=self._synchronous)
        writer = lane("onebeat-writer", write=True, prepare=prepare, flushing=flushing)
        writer.open().result()
        self._lanes = (writer, writer)  # a database in memory belongs to one connection
        if path is not None:
            reader = lane("onebeat-reader", write=False, prepare=sqlite_file.prepare_reader)
            self._lanes = (writer, reader)
            reader.open().result()
        return sqlite_file.cautions(sqlite3.sqlite_version_info)

    async def close(self) -> None:
        """End both threads, the reader first."""
        lanes, self._lanes = self._lanes, None
        for lane in reversed(lanes or ()):
            await asyncio.to_thread(lane.close)
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
        """Queue a call and wait for its commit; whether it is `single` and its `limit` matter to servers only."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[R] = loop.create_future()
        self._lane(write).submit(Call(call, waiter, loop, patience=patience, flushed=flushed), urgent=self._first)
        return await waiter

    def run_blocking(self, call: Callable[[Tx], R], *, write: bool) -> R:
        """The same for a thread."""
        waiter: Future[R] = Future()
        self._lane(write).submit(Call(call, waiter), urgent=self._first)
        return waiter.result()

    def _lane(self, write: bool) -> Lane:
        if self._lanes is None:
            raise NotStarted("the database is closed; start the scheduler, or open the database, first")
        return self._lanes[0 if write else 1]
