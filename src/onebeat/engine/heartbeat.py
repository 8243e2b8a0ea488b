"""The heartbeat: renews the leases of a scheduler from its own thread and connection, and reports their loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from onebeat.concurrency.renewal import RenewalThread, margin
from onebeat.model.events import DatabaseBack, DatabaseTrouble, Event
from onebeat.model.protocols import Clock, Renewable
from onebeat.store import workers
from onebeat.store.connection.database import Database
from onebeat.store.tx import Tx

RETRY = 1.0  # seconds within which a failed renewal is tried again


class WorkerLease:
    """The lease of this worker: the heartbeat thread renews it, and the engine asks whether it may still act."""

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
        """Return whether this process may still act under its worker id; False is final."""
        return not self._over and self._clock.boot() < self._deadline

    def granted(self, sent: int) -> None:
        """Take note that the database granted the lease to a request sent at `sent` (`Clock.boot` microseconds)."""
        self._deadline = sent + self._lease - margin(self._lease)

    @property
    def deadline(self) -> int:
        """Return until when the last renewal is trusted, in `Clock.boot` microseconds."""
        return self._deadline

    def renew(self, tx: Tx) -> bool:
        """Prolong the lease of the worker's row; return False when it ran out or was taken."""
        return workers.renew(tx, self.worker_id, self._lease)

    def lost(self, reason: str) -> None:
        """Stop trusting the lease for good, and report why."""
        if not self._over:
            self._over = True
            self._lost(reason)


class Heartbeat(RenewalThread[Renewable]):
    """Renews everything added to it, from a thread that no blocked event loop can stop.

    `interval` is the number of microseconds between renewals of what has no interval of its own. An outage of the
    database and its end are announced on the thread.
    """

    def __init__(
        self,
        database: Database,
        *,
        interval: int,
        clock: Clock,
        announce: Callable[[Event], None] = lambda _: None,
        random: Random | None = None,
    ) -> None:
        super().__init__(
            lambda: DatabaseRenewer(database.heartbeat_database()),
            name="onebeat-heartbeat",
            interval=lambda item: item.interval or interval,
            now=clock.boot,
            random=random or Random(),  # noqa: S311 - jitter, not a secret
            refusal="the database says that the lease ran out or was taken",
            failed=lambda error: announce(DatabaseTrouble(part="heartbeat", problem=_reason(error), retry_in=RETRY)),
            recovered=lambda seconds: announce(DatabaseBack(part="heartbeat", after=seconds)),
        )


def _reason(error: Exception) -> str:
    """Return what the error says; a bare `TimeoutError`, as a limit of time raises it, says nothing."""
    if str(error):
        return str(error)
    return "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__


class DatabaseRenewer:
    """Renews leases over one connection to the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self, timeout: float) -> None:
        """Connect within `timeout` seconds; raises `DatabaseUnavailable`."""
        await self._database.open(timeout)

    async def renew(self, items: Sequence[Renewable]) -> list[Renewable]:
        """Renew these leases, each in a statement of its own, and return those that are still held."""
        return [item for item in items if await self._database.write_one(item.renew)]

    async def close(self) -> None:
        """Close the connection."""
        await self._database.close()
