"""A held lock on an event loop: its body is cancelled when it is lost, and an outer cancel is never eaten."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType

from onebeat.errors import LeaseLost, NotStarted, OnebeatError
from onebeat.locks.backend import Backend
from onebeat.locks.hold import REFUSED, Hold

log = logging.getLogger("onebeat.locks")

LOOK_AGAIN = 5.0  # seconds between looks at the deadline at most: loop timers stand still while a machine sleeps

GiveBack = Callable[[Backend, Hold], Awaitable[bool]]
Abandon = Callable[[Backend, Hold], None]


class LoopLost:
    """`lease.lost` on an event loop."""

    def __init__(self, hold: Hold) -> None:
        self._hold = hold
        self.event = asyncio.Event()

    def is_set(self) -> bool:
        """Return whether it is lost; true from the moment its deadline has passed, even if nobody was told yet."""
        return self._hold.expire()

    async def wait(self) -> bool:
        """Return True when it is lost; never returns when it is released instead."""
        while not self.is_set():
            await self.event.wait()
        return True


class HeldLease:
    """The `Lease` of every back end here."""

    def __init__(self, backend: Backend, hold: Hold, *, give_back: GiveBack, abandon: Abandon) -> None:
        self._backend = backend
        self._hold = hold
        self._give_back = give_back
        self._abandon = abandon
        self._loop = asyncio.get_running_loop()
        self._lost = LoopLost(hold)
        self._body: asyncio.Task[object] | None = None
        self._cancels_before = 0  # requests to cancel the body when it began
        self._cancelled = False  # by us
        self._timer: asyncio.TimerHandle | None = None
        hold.on_loss(self._tell_loop)
        self._watch()

    @property
    def name(self) -> str:
        """The lock's name."""
        return self._hold.name

    @property
    def fence(self) -> int:
        """A number larger than every fence of this name before."""
        return self._hold.fence

    @property
    def lost(self) -> LoopLost:
        """Set once the lease is lost."""
        return self._lost

    def __repr__(self) -> str:
        state = f"lost: {self._hold.why}" if self._hold.why else "over" if self._hold.over else "held"
        return f"<Lease of {self.name!r}, fence {self.fence}, {state}>"

    async def check(self) -> None:
        """Ask where the lock lives; raises `LeaseLost`, or `DatabaseUnavailable` when nobody answers."""
        self._same_loop()
        self._refuse_lost()
        if self._hold.over:
            raise LeaseLost(f"lock {self.name!r} was released; this lease holds nothing any more")
        if not await self._backend.holds(self.name, self._hold.owner):
            self._hold.lost(REFUSED)
        self._refuse_lost()

    async def release(self) -> None:
        """Give it back; raises `LeaseLost` when it was lost or given back before."""
        self._same_loop()
        self._unwatch()
        self._refuse_lost()
        if not self._hold.end():
            self._refuse_lost()
            raise LeaseLost(f"lock {self.name!r} was released already; a lease is released once")
        if not await self._give_back(self._backend, self._hold):
            raise LeaseLost(self._describe_loss("when it was to be released it was not this lease's any more"))

    # ── as a context manager ──────────────────────────────────────────────────────────────────────────────────────────
    async def __aenter__(self) -> HeldLease:
        self._same_loop()
        self._refuse_lost()
        task = asyncio.current_task()
        assert task is not None
        if self._hold.over or self._body is not None:
            raise LeaseLost(f"lock {self.name!r}: this lease was entered or released before; acquire it anew")
        self._body, self._cancels_before = task, task.cancelling()
        self._hold.holder, self._hold.alive = task, lambda: not task.done()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        body, self._body = self._body, None
        self._unwatch()
        if not self._hold.expire() and self._hold.end():
            await self._leave(error)
            return
        if self._hold.why is not None:
            self._abandon(self._backend, self._hold)
        if self._cancelled and body is not None:
            ours_alone = body.uncancel() <= self._cancels_before
            if not ours_alone and kind is asyncio.CancelledError:
                return  # somebody else cancelled as well: that one goes on
        if self._hold.why is None:
            return
        if error is None or (kind is asyncio.CancelledError and self._cancelled):
            raise LeaseLost(self._describe_loss(self._hold.why)) from error
        if not isinstance(error, LeaseLost):
            error.add_note(self._describe_loss(self._hold.why))

    async def _leave(self, error: BaseException | None) -> None:
        """Release at the end of the body; what the body raised is more important than what becomes of that."""
        try:
            kept = await self._give_back(self._backend, self._hold)
        except OnebeatError as trouble:
            log.warning("lock %r could not be released and ends with its lease: %s", self.name, trouble)
            return
        if not kept and error is None:
            raise LeaseLost(self._describe_loss("when its body ended it was not this lease's any more"))

    # ── watching ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def _tell_loop(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._notice)
        except RuntimeError:  # the loop is closed, and the body with it
            return

    def _notice(self) -> None:
        self._unwatch()
        self._lost.event.set()
        if self._body is not None and not self._cancelled:
            self._cancelled = True
            self._body.cancel(f"lock {self.name!r} was lost: {self._hold.why}")

    def _watch(self) -> None:
        """Look at the deadline when it should have come; renewals move it on."""
        if self._hold.over or self._hold.expire():
            return
        remaining = self._hold.remaining
        if remaining is not None:
            self._timer = self._loop.call_later(min(max(remaining, 0.001), LOOK_AGAIN), self._watch)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _same_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise NotStarted(
                f"the lease of lock {self.name!r} belongs to the event loop it was acquired in and is used in another; "
                "use it there, or acquire it here"
            )

    def _refuse_lost(self) -> None:
        if self._hold.expire():
            raise LeaseLost(self._describe_loss(self._hold.why))

    def _describe_loss(self, why: str | None) -> str:
        return describe_loss(self.name, self.fence, why)


def describe_loss(name: str, fence: int, why: str | None) -> str:
    """Return the message of `LeaseLost`: which lease was lost, why, and what to do."""
    return f"lock {name!r} (fence {fence}) was lost: {why}. Somebody else may hold it now: undo what is not committed"
