"""Wake-ups: who must look now because something just happened here or in another process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar, TypeVarTuple
from uuid import UUID

Args = TypeVarTuple("Args")
F = TypeVar("F")
Unsubscribe = Callable[[], None]
AT_ONCE = 0  # an instant before all others: for jobs that wait until a time which the caller does not know


class Signal(Generic[*Args]):
    """One kind of wake-up. Calling it announces what happened in this process.

    An announcement calls every subscriber of this process, then every listener that tells other processes. Subscribers
    and listeners must return at once and must not raise. Everything runs on the event loop; another thread uses
    `loop.call_soon_threadsafe(signal)`.

    >>> released: Signal[str] = Signal()
    >>> unsubscribe = released.subscribe(print)
    >>> released("rebuild-index")
    rebuild-index
    """

    __slots__ = ("_listeners", "_subscribers")

    def __init__(self) -> None:
        self._subscribers: tuple[Callable[[*Args], object], ...] = ()
        self._listeners: tuple[Callable[[*Args], object], ...] = ()

    def __call__(self, *args: *Args) -> None:
        for notify in self._subscribers:
            notify(*args)
        for tell in self._listeners:
            tell(*args)

    def wake(self, *args: *Args) -> None:
        """Call the subscribers alone: another process sent this hint, and must not get it back."""
        for notify in self._subscribers:
            notify(*args)

    def subscribe(self, notify: Callable[[*Args], object]) -> Unsubscribe:
        """Call `notify` for what happens here and for what other processes report; return what ends that."""
        self._subscribers = (*self._subscribers, notify)

        def unsubscribe() -> None:
            self._subscribers = _without(self._subscribers, notify)

        return unsubscribe

    def forward(self, tell: Callable[[*Args], object]) -> Unsubscribe:
        """Call `tell` for what happens in this process alone; return what ends that."""
        self._listeners = (*self._listeners, tell)

        def unsubscribe() -> None:
            self._listeners = _without(self._listeners, tell)

        return unsubscribe


def _without(functions: tuple[F, ...], removed: F) -> tuple[F, ...]:
    return tuple(function for function in functions if function != removed)


class WakeupListener(Protocol):
    """Tells other processes what happened in this one. A hint may be lost: every part also polls."""

    def jobs_queued(self) -> None:
        """Jobs may be claimed now."""

    def jobs_delayed(self) -> None:
        """Jobs were stored for a later time."""

    def schedules_changed(self) -> None:
        """A schedule was added or changed, so the next fire may be earlier."""

    def job_ended(self, id: UUID, /) -> None:
        """An attempt of the job ended, and the job with it unless it is retried."""

    def cancel_requested(self, id: UUID, /) -> None:
        """The running job is to be cancelled."""

    def lock_released(self, name: str, /) -> None:
        """The lock is free."""


class Wakeups:
    """The wake-ups of one process: code that changes something announces it, code that waits for it subscribes.

    A wake-up only shortens a sleep and carries no data to decide by. The part that is woken reads the database.
    """

    def __init__(self) -> None:
        # Other processes want to know of these too: `attach` forwards them.
        self.jobs_queued: Signal[()] = Signal()
        self.jobs_delayed: Signal[int] = Signal()  # the earliest `run_at`, UTC microseconds on the database's clock
        self.schedules_changed: Signal[()] = Signal()
        self.job_ended: Signal[UUID] = Signal()
        self.cancel_requested: Signal[UUID] = Signal()
        self.lock_released: Signal[str] = Signal()
        # These concern the parts of this process alone.
        self.run_started: Signal[()] = Signal()  # the first run after an idle time
        self.run_ended: Signal[()] = Signal()  # its outcome waits to be written
        self.slots_freed: Signal[()] = Signal()  # outcomes were written: there is room for the next claim

    def attach(self, listener: WakeupListener) -> Unsubscribe:
        """Tell `listener` what happens in this process, so that it can tell others; return what ends that.

        The listener reports what other processes tell it through `Signal.wake`, for example
        `wakeups.jobs_queued.wake()` and `wakeups.jobs_delayed.wake(AT_ONCE)`. That wakes this process and is not sent
        on.
        """
        ends = (
            self.jobs_queued.forward(listener.jobs_queued),
            self.jobs_delayed.forward(lambda _: listener.jobs_delayed()),
            self.schedules_changed.forward(listener.schedules_changed),
            self.job_ended.forward(listener.job_ended),
            self.cancel_requested.forward(listener.cancel_requested),
            self.lock_released.forward(listener.lock_released),
        )

        def detach() -> None:
            for end in ends:
                end()

        return detach
