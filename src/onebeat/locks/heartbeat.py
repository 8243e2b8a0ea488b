"""The heartbeat of locks without a scheduler: renews them from its own thread and its own connection."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from operator import attrgetter
from random import Random

from onebeat.concurrency.renewal import RenewalThread
from onebeat.locks.backend import Backend, RenewsTogether
from onebeat.locks.hold import REFUSED, Hold
from onebeat.model.protocols import Clock

TOGETHER = 500  # locks in one request
log = logging.getLogger("onebeat.locks")


class LockHeartbeat(RenewalThread[Hold]):
    """Renews the locks that were added to it, from a thread that no blocked event loop can stop.

    `twin` returns a back end for the thread's event loop. `together`: it is one that `RenewsTogether`. An outage of the
    back end and its end are logged.
    """

    def __init__(self, twin: Callable[[], Backend], *, together: bool, clock: Clock, random: Random) -> None:
        super().__init__(
            lambda: BackendRenewer(twin()),
            name="onebeat-locks-heartbeat",
            interval=attrgetter("interval"),
            now=clock.boot,
            random=random,
            refusal=REFUSED,
            failed=_log_failure,
            recovered=lambda _: log.info("locks are renewed again"),
            together=TOGETHER if together else 1,
        )


class BackendRenewer:
    """Renews locks on a back end of its own."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def open(self, timeout: float) -> None:
        """Connect within `timeout` seconds."""
        await self._backend.open(timeout)

    async def renew(self, items: Sequence[Hold]) -> list[Hold]:
        """Renew these locks and return those that are still held: all of one `ttl` at once where the back end can."""
        holds = [hold for hold in items if hold.may_be_renewed()]
        backend = self._backend
        if not isinstance(backend, RenewsTogether):
            return [hold for hold in holds if await backend.renew(hold.name, hold.owner, hold.ttl)]
        owners: set[str] = set()
        for ttl in {hold.ttl for hold in holds}:
            owners |= set(await backend.renew_all([(hold.name, hold.owner) for hold in holds if hold.ttl == ttl], ttl))
        return [hold for hold in holds if hold.owner in owners]

    async def close(self) -> None:
        """Close the back end."""
        await self._backend.close()


def _log_failure(error: Exception) -> None:
    problem = "no answer in time" if isinstance(error, TimeoutError) else error
    log.warning("locks cannot be renewed at the moment, and are lost at their deadlines: %s", problem)
