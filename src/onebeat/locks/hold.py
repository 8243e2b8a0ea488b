"""One acquisition of a lock in this process: its trust deadline, its renewal, its loss."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any

from onebeat.concurrency.renewal import TOO_LATE, margin
from onebeat.model.protocols import Clock
from onebeat.timing.clock import SECOND

RENEWALS = 4  # in the time of one lease, so that some may fail
REFUSED = "it ran out, or was taken by force, or where it lived was emptied"  # what a back end's refusal means
NEVER = 1 << 63  # the deadline where no lease can run out


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
        renewal: Callable[[Any, Sequence[Hold]], Collection[Hold]],
        holder: object,
    ) -> None:
        self.name = name
        self.owner = owner
        self.fence = fence
        self.ttl = ttl
        self.interval = ttl // RENEWALS  # microseconds between renewals
        self.renewal = renewal
        self.alive = alive
        self.holder = holder  # the task or thread that acquired it
        self.over = False  # released or lost
        self.why: str | None = None  # it is lost, for this reason
        self._pid = os.getpid()
        self._leased = leased
        self._clock = clock
        self._deadline = sent + ttl - margin(ttl) if leased else NEVER
        self._mutex = threading.Lock()
        self._listeners: list[Callable[[], None]] = []

    @property
    def ours(self) -> bool:
        """Return whether it belongs to this process; a forked child neither renews nor releases its copy."""
        return self._pid == os.getpid()

    @property
    def deadline(self) -> int:
        """Return until when (`Clock.boot` microseconds) the last renewal lets this process trust the lease."""
        return self._deadline

    @property
    def remaining(self) -> float | None:
        """Return the seconds until the deadline; None where no lease can run out."""
        return (self._deadline - self._clock.boot()) / SECOND if self._leased else None

    @property
    def trusted(self) -> bool:
        """Return whether it may still be acted upon."""
        remaining = self.remaining
        return not self.over and (remaining is None or remaining > 0)

    def elapsed(self) -> float:
        """Return the seconds of a clock that never steps, for waiting."""
        return self._clock.boot() / SECOND

    def granted(self, sent: int) -> None:
        """Take note that a renewal sent at this instant of `Clock.boot` was granted."""
        self._deadline = max(self._deadline, sent + self.ttl - margin(self.ttl))

    def may_be_renewed(self) -> bool:
        """Return whether its holder still runs and trusts it; report the loss when not."""
        if self.over or not self.ours:
            return False
        if not self.alive():
            self.lost("the task or thread that held it has ended without releasing it")
        elif not self.trusted:
            self.lost(TOO_LATE)
        return not self.over

    def lost(self, reason: str) -> None:
        """End it for good and call the listeners once, on the calling thread."""
        with self._mutex:
            if self.over:
                return
            self.over, self.why = True, reason
            listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener()

    def end(self) -> bool:
        """End it before its release, and return False when it was over already."""
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
        """Report the loss when the deadline has passed, and return whether it is lost."""
        if not self.over and not self.trusted:
            self.lost(TOO_LATE)
        return self.why is not None
