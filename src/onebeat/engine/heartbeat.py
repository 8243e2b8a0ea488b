"""Own thread, own event loop, own connection: renews leases (worker's, locks'), self-fences."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from random import random

from onebeat.model.events import DatabaseBack, DatabaseTrouble, Event
from onebeat.model.protocols import Clock, Renewable
from onebeat.store import workers
from onebeat.store.connection.database import Database
from onebeat.store.tx import Tx

SECOND = 1_000_000
JITTER = 0.1  # of the interval, either way, so that a fleet does not beat in step
RETRY = 1.0  # seconds between tries after a failed beat, or a tenth of the interval
CONNECT_WITHIN = 5.0  # seconds at least, for the thread's own connection
A_HAIR = 0.001  # seconds after a deadline, so that a timer is not a moment too early
ANSWER_WITHIN = 1.0  # seconds at least, for a renewal's answer; else one interval


def margin(lease: int) -> int:
    """How long before the lease's end a process stops trusting itself: a sixth of it, 2 s when that is more and fits.

    >>> margin(60_000_000), margin(3_000_000)
    (10000000, 1000000)
    """
    return max(lease // 6, min(2 * SECOND, lease // 3))


class WorkerLease:
    """The worker's own lease, as the heartbeat thread renews it and everybody else asks about it."""

    interval: int | None = None  # microseconds between renewals; None: the heartbeat's own

    def __init__(self, worker_id: str, lease: int, *, clock: Clock, lost: Callable[[str], None]) -> None:
        self.worker_id = worker_id
        self._lease = lease
        self._clock = clock
        self._lost = lost
        self._deadline = 0
        self._over = False

    @property
    def trusted(self) -> bool:
        """Whether this process may still act under its worker id; False is for good."""
        return not self._over and self._clock.boot() < self._deadline

    def granted(self, sent: int) -> None:
        """The database granted the lease in an answer to what was sent at `sent` (boot microseconds)."""
        self._deadline = sent + self._lease - margin(self._lease)

    @property
    def deadline(self) -> int:
        """Until when the last renewal holds, boot microseconds."""
        return self._deadline

    def renew(self, tx: Tx) -> bool:
        """Prolong the row's lease; False: it ran out or was taken."""
        return workers.renew(tx, self.worker_id, self._lease)

    def lost(self, reason: str) -> None:
        """The lease is over, for good."""
        if not self._over:
            self._over = True
            self._lost(reason)


class Heartbeat:
    """Renews everything added to it, from a thread that no blocked event loop can stop.

    `add` and `remove` are safe from any thread; the thread starts when the first thing is added.
    """

    def __init__(
        self, database: Database, *, interval: int, clock: Clock, announce: Callable[[Event], None] = lambda _: None
    ) -> None:
        self._database = database
        self._interval = interval
        self._clock = clock
        self._announce = announce
        self._held: dict[Renewable, int] = {}  # to when it is to be renewed, boot microseconds
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken: asyncio.Event | None = None
        self._stopping = False
        self._opened = False
        self._failing_since: int | None = None

    def add(self, held: Renewable) -> None:
        """Keep this alive from now on; it was granted just now."""
        with self._lock:
            self._held[held] = self._next(held)
            if self._thread is None or not self._thread.is_alive():
                self._stopping = False
                self._thread = threading.Thread(target=self._main, name="onebeat-heartbeat", daemon=True)
                self._thread.start()
        self._wake()

    def remove(self, held: Renewable) -> None:
        """Stop renewing this."""
        with self._lock:
            self._held.pop(held, None)

    def stop(self, timeout: float = 5.0) -> None:
        """End the thread; blocks until it has closed its connection, at most `timeout` seconds."""
        self._stopping = True
        self._wake()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
        self._thread = None

    def _wake(self) -> None:
        loop, woken = self._loop, self._woken
        if loop is not None and woken is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just closed: nothing to wake
                loop.call_soon_threadsafe(woken.set)

    # ── on the thread ─────────────────────────────────────────────────────────────────────────────────────────────────
    def _main(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._beat_until_stopped())

    async def _beat_until_stopped(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        database = self._database.heartbeat_database()
        self._opened = False
        try:
            while not self._stopping:
                delay = await self._beat(database)
                timer = self._loop.call_later(delay, self._woken.set)
                await self._woken.wait()
                timer.cancel()
                self._woken.clear()
        finally:
            self._loop = None
            await database.close()

    def _next(self, item: Renewable) -> int:
        interval = item.interval or self._interval
        return self._clock.boot() + round(interval * (1 + JITTER * (2 * random() - 1)))  # noqa: S311 - jitter, not a secret

    async def _beat(self, database: Database) -> float:
        """Renew what is due; the seconds until something else is."""
        now = self._clock.boot()
        with self._lock:
            due = [item for item, at in self._held.items() if at <= now]
        for item in due:
            renewed = await self._renew(database, item)
            interval = item.interval or self._interval
            at = self._next(item) if renewed else self._clock.boot() + min(RETRY * SECOND, interval // 10)
            with self._lock:
                if item in self._held:
                    self._held[item] = int(at)
        with self._lock:
            first = min(self._held.values(), default=self._clock.boot() + self._interval)
        return max((first - self._clock.boot()) / SECOND, 0.0)

    async def _renew(self, database: Database, item: Renewable) -> bool:
        sent = self._clock.boot()
        budget = max((item.interval or self._interval) / SECOND, ANSWER_WITHIN)
        try:
            with self._deadlines_kept():
                if not self._opened:
                    await database.open(timeout=max(budget, CONNECT_WITHIN))
                    self._opened = True
                async with asyncio.timeout(budget):
                    kept = await database.write_one(item.renew)
        except Exception as error:  # noqa: BLE001 - announced; the deadline, not the error, ends the trust
            self._trouble(error)
            self._check_deadlines()
            return False
        self._recovered()
        if kept:
            item.granted(sent)
        else:
            self._give_up(item, "the database says that the lease ran out or was taken")
        return True

    @contextlib.contextmanager
    def _deadlines_kept(self) -> Iterator[None]:
        """While an answer is awaited, trust ends at its deadline, not when the wait is given up."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None

        def watch() -> None:
            nonlocal timer
            now = self._clock.boot()
            with self._lock:
                ahead = [item.deadline - now for item in self._held if item.deadline > now]
            timer = loop.call_later(min(ahead) / SECOND + A_HAIR, expire) if ahead else None

        def expire() -> None:
            self._check_deadlines()
            watch()

        watch()
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()

    def _check_deadlines(self) -> None:
        """Of all that is held: while one waits for an answer, the others' time runs too."""
        with self._lock:
            held = list(self._held)
        for item in held:
            if self._clock.boot() >= item.deadline:
                self._give_up(item, "it could not be renewed in time")

    def _give_up(self, item: Renewable, reason: str) -> None:
        self.remove(item)
        item.lost(reason)

    def _trouble(self, error: Exception) -> None:
        if self._failing_since is None:
            self._failing_since = self._clock.boot()
            self._announce(DatabaseTrouble(part="heartbeat", problem=str(error), retry_in=RETRY))

    def _recovered(self) -> None:
        if self._failing_since is not None:
            after = (self._clock.boot() - self._failing_since) / SECOND
            self._failing_since = None
            self._announce(DatabaseBack(part="heartbeat", after=after))
