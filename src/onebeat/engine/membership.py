"""This process among the workers of the database: it registers, starts anew after a lost lease, and leaves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version

from onebeat.engine.heartbeat import Heartbeat, WorkerLease
from onebeat.engine.identity import WorkerIdentity
from onebeat.engine.run_file import RunFile, boot_id
from onebeat.errors import DatabaseUnavailable
from onebeat.model.definition import Definition
from onebeat.model.events import Event, WorkerLost
from onebeat.model.ids import token
from onebeat.model.protocols import Clock
from onebeat.store import workers
from onebeat.store.connection.database import Database
from onebeat.store.schedules import declare, rezone

FIRST_PAUSE = 0.1  # seconds before a registration that failed is tried again, doubled each time
LONGEST_PAUSE = 5.0  # seconds; the database may be back any moment
UNDONE_WITHIN = 2.0  # seconds to mark a worker stopped whose start failed
REZONED_AT_START = 5  # transactions, of one outdated zone each
LEAVING_LEASE = 5_000_000  # microseconds that others wait for work that could not be stopped, before they run it


class Membership:
    """Holds the worker's row, its lease and its run file, and keeps `identity` up to date.

    A lost lease is final: what runs is stopped through `lost`, and the process registers under a new random id.
    `rejoined` is called when that succeeded.
    """

    def __init__(
        self,
        *,
        database: Database,
        identity: WorkerIdentity,
        heartbeat: Heartbeat,
        tasks: Callable[[], Sequence[str]],
        definitions: Sequence[Definition],
        queues: Sequence[str] | None,
        slots: int,
        lease: int,
        lost: Callable[[], None],
        rejoined: Callable[[], None],
        clock: Clock,
        announce: Callable[[Event], None],
    ) -> None:
        self._database = database
        self._identity = identity
        self._heartbeat = heartbeat
        self._tasks = tasks
        self._definitions = definitions
        self._queues = queues
        self._slots = slots
        self._length = lease
        self._lost = lost
        self._rejoined = rejoined
        self._clock = clock
        self._announce = announce
        self._lease: WorkerLease | None = None
        self._run_file: RunFile | None = None
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self._rejoining: asyncio.Task[None] | None = None

    async def join(self) -> None:
        """Take a new worker id and its lease, and declare the schedules of this code."""
        self._event_loop = asyncio.get_running_loop()
        row = self._row()
        run_file = RunFile(row.id)
        run_file.hold()
        sent = self._clock.boot()
        try:
            await self._register(row)
        except BaseException:
            run_file.release()
            raise
        lease = WorkerLease(row.id, self._length, clock=self._clock, lost=partial(self._on_lost, row.id))
        lease.granted(sent)
        if self._run_file is not None:
            self._run_file.release()
        self._run_file, self._lease = run_file, lease
        self._identity.take(lease)
        self._heartbeat.add(lease)

    async def _register(self, row: workers.NewWorker) -> None:
        await self._database.write(workers.register, row)
        try:
            await self._database.write(declare.declare, self._definitions)
            await self._rezone()
        except BaseException:
            with contextlib.suppress(DatabaseUnavailable, TimeoutError):  # else its lease runs out
                async with asyncio.timeout(UNDONE_WITHIN):
                    await self._database.write(workers.stop, row.id)
            raise

    async def _rezone(self) -> None:
        """Move the next fires that other zone data gave, where a few transactions are enough."""
        try:
            for zone in (await self._database.read(rezone.outdated))[:REZONED_AT_START]:
                await self._database.write(rezone.rezone, zone)
        except DatabaseUnavailable:
            return  # no reason not to start: the sweeper does the same with all schedules, and reports what fails

    def _row(self) -> workers.NewWorker:
        return workers.NewWorker(
            id=token(),
            host=socket.gethostname(),
            boot_id=boot_id(),
            pid=os.getpid(),
            tasks=self._tasks(),
            definitions={definition.id: definition.hash for definition in self._definitions},
            queues=self._queues,
            slots=self._slots,
            version=_version(),
            lease=self._length,
        )

    # ── a lost lease ──────────────────────────────────────────────────────────────────────────────────────────────────
    def _on_lost(self, worker_id: str, reason: str) -> None:
        """Stop acting at once, then begin anew under another id. The heartbeat thread calls this."""
        assert self._event_loop is not None
        self._announce(WorkerLost(worker_id=worker_id, reason=reason))
        self._event_loop.call_soon_threadsafe(self._begin_anew, worker_id)

    def _begin_anew(self, worker_id: str) -> None:
        if self._lease is None or self._lease.worker_id != worker_id:
            return
        self._lost()
        self._lease = self._identity.lease = None
        if self._identity.claiming:
            self._rejoining = asyncio.create_task(self._rejoin())

    async def _rejoin(self) -> None:
        pause = FIRST_PAUSE
        while self._identity.claiming and self._lease is None:
            try:
                await self.join()
            except Exception as error:  # noqa: BLE001 - announced, and tried again
                reason = f"cannot register anew yet: {error}"
                self._announce(WorkerLost(worker_id=self._identity.last_id, reason=reason))
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
        self._rejoined()

    # ── the end ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def stop_rejoining(self) -> None:
        """Give up a registration that is under way: the worker drains."""
        if self._rejoining is not None:
            self._rejoining.cancel()

    async def leave(self, *, idle: bool, within: float) -> None:
        """End the lease and mark the worker stopped, within so many seconds; else the lease runs out by itself.

        While runs that cannot be stopped go on (not `idle`), it is marked leaving and keeps its run file: others take
        its jobs back as drained when the process is gone, or after `LEAVING_LEASE`.
        """
        lease = self._lease
        if lease is not None:
            self._heartbeat.remove(lease)
            if lease.trusted:
                try:
                    async with asyncio.timeout(within):
                        await self._mark(lease.worker_id, idle=idle)
                except Exception as error:  # noqa: BLE001 - announced; the lease runs out by itself
                    problem = "the database did not answer in time" if isinstance(error, TimeoutError) else error
                    reason = f"could not be marked {'stopped' if idle else 'leaving'}: {problem}"
                    self._announce(WorkerLost(worker_id=lease.worker_id, reason=reason))
        if self._run_file is not None and idle:
            self._run_file.release()
        self._lease = self._identity.lease = None

    def vanish(self) -> None:
        """Let the lease run out, as that of a killed process does."""
        self.stop_rejoining()
        if self._lease is not None:
            self._heartbeat.remove(self._lease)
        if self._run_file is not None:
            self._run_file.release()  # removed, so that the lease alone tells: another host would know no more
        self._lease = self._identity.lease = None

    async def _mark(self, worker_id: str, *, idle: bool) -> None:
        if idle:
            await self._database.write(workers.stop, worker_id)
        else:
            await self._database.write(workers.leave, worker_id, LEAVING_LEASE)


def _version() -> str:
    try:
        return version("onebeat")
    except PackageNotFoundError:
        return "unknown"
