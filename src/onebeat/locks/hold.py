"""One acquisition of a lock in this process: its trust deadline, its renewal, its loss."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from onebeat.model.protocols import Clock
from onebeat.timing.clock import SECOND

RENEWALS = 4  # in the time of one lease, so that some may fail
LATE = "it could not be renewed in time"


def margin(ttl: int) -> int:
    """How long before the lease's end this process stops trusting it: a sixth, 2 s when that is more and fits.

    >>> margin(30_000_000), margin(3_000_000)
    (5000000, 1000000)
    """
    return max(ttl // 6, min(2 * SECOND, ttl // 3))


class Hold:
    """A lock that this process holds, as the heartbeat thread renews it (a `Renewable`) and leases ask about it.

    Trust starts before the request was sent and is read on the clock that counts suspended time: whatever happens to
    an answer or to this process, it stops trusting itself before the lease can end anywhere else.
    `alive` tells whether the task or thread that holds it still runs: nothing renews for one that has ended.
    """

    def __init__(
        self,
        *,
        name: str,
        owner: str,
        fence: int,
        ttl: int,
        sent: int,
        leased: bool,
        clock: Clock,
        alive: Callable[[], bool],
        renewal: Callable[[Any, str, str, int], bool],
        holder: object,
    ) -> None:
        self.name = name
        self.owner = owner
        self.fence = fence
        self.ttl = ttl
        self.interval = ttl // RENEWALS  # microseconds between renewals
        self.alive = alive
        self.holder = holder  # the task or thread that acquired it
        self.over = False  # released or lost
        self.why: str | None = None  # it is lost, for this reason
        self._pid = os.getpid()
        self._leased = leased
        self._clock = clock
        self._renewal = renewal
        self._deadline = sent + ttl - margin(ttl)
        self._mutex = threading.Lock()
        self._listeners: list[Callable[[], None]] = []

    @property
    def ours(self) -> bool:
        """Whether it belongs to this process; a forked child only has a copy, and neither renews nor releases it."""
        return self._pid == os.getpid()

    @property
    def deadline(self) -> int:
        """Until when (`Clock.boot` microseconds) the last renewal lets this process trust the lease."""
        return self._deadline

    @property
    def remaining(self) -> float | None:
        """Seconds until the deadline; None where no lease can run out."""
        return (self._deadline - self._clock.boot()) / SECOND if self._leased else None

    @property
    def trusted(self) -> bool:
        """Whether it may still be acted upon."""
        remaining = self.remaining
        return not self.over and (remaining is None or remaining > 0)

    def granted(self, sent: int) -> None:
        """A renewal that was sent at this instant of `Clock.boot` has been granted."""
        self._deadline = max(self._deadline, sent + self.ttl - margin(self.ttl))

    def may_be_renewed(self) -> bool:
        """Whether somebody still holds it and trusts it; says that it is lost when not."""
        if self.over or not self.ours:
            return False
        if not self.alive():
            self.lost("the task or thread that held it has ended without releasing it")
        elif not self.trusted:
            self.lost(LATE)
        return not self.over

    def renew(self, tx: Any) -> bool:
        """Renew once, on a scheduler's heartbeat thread; False: it is lost for good."""
        return self.may_be_renewed() and self._renewal(tx, self.name, self.owner, self.ttl)

    def lost(self, reason: str) -> None:
        """It is over, for good; listeners are told once, on the calling thread."""
        with self._mutex:
            if self.over:
                return
            self.over, self.why = True, reason
            listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener()

    def end(self) -> bool:
        """It is about to be released; False: it was over already."""
        with self._mutex:
            if self.over:
                return False
            self.over = True
            self._listeners = []
        return self.ours

    def on_loss(self, listener: Callable[[], None]) -> None:
        """Call `listener` when it is lost; at once when that has happened."""
        with self._mutex:
            if not self.over:
                self._listeners.append(listener)
                return
        if self.why is not None:
            listener()

    def expire(self) -> bool:
        """Notice that the deadline has passed; True: it is lost."""
        if not self.over and not self.trusted:
            self.lost(LATE)
        return self.why is not None
