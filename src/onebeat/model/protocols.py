"""The protocols between packages: Clock, Trigger, Runner, Carrier, Renewable, Tick."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import asyncio


# ── time ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
class Clock(Protocol):
    """Reads time for one process. A test replaces it; the engine and the store ask nothing else."""

    def now(self) -> int:
        """Wall clock, UTC microseconds since 1970; for humans and for knowing when to look, never for deciding."""

    def boot(self) -> int:
        """Microseconds on a clock that never steps and counts suspended time; for trust deadlines."""

    def monotonic(self) -> float:
        """Seconds on a clock that never steps; for pauses and limits within one process."""


class Due(Protocol):
    """One instant a trigger names. `timing` makes it; everybody else only reads it."""

    @property
    def at(self) -> int:
        """The nominal instant, UTC microseconds."""

    @property
    def key(self) -> str:
        """What must be unique within the schedule (the fire key)."""

    @property
    def mark(self) -> str | None:
        """'gap' or 'fold' where a clock change touches this fire, else None."""


@runtime_checkable
class Trigger(Protocol):
    """A time rule as a value: comparable, with a JSON round trip (`timing.triggers.load`)."""

    def next_after(self, moment: datetime) -> datetime | None:
        """The first instant strictly after `moment` (aware), or None when there is none."""

    def next_fire(self, after: int) -> Due | None:
        """The first fire strictly after `after` (UTC microseconds), with its key and mark; None when there is none."""

    def previous_before(self, moment: datetime) -> datetime | None:
        """The last instant strictly before `moment` (aware), or None."""

    @property
    def timezone(self) -> str | None:
        """The zone the rule is read in; None where it has none or was given none."""

    def with_timezone(self, name: str) -> Trigger:
        """The same rule read in this zone; a rule without wall times is left as it is."""

    def bind(self, seed: str) -> Trigger:
        """The same rule with its hashed fields (`H`) fixed by this seed."""

    def describe(self) -> str:
        """The rule in words."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `timing.triggers.load` makes an equal trigger."""


# ── running ───────────────────────────────────────────────────────────────────────────────────────────────────────────
class Running(Protocol):
    """One synchronous call that was started off the event loop."""

    @property
    def future(self) -> asyncio.Future[Any]:
        """Completes when the function has really ended: its value, its exception, or `WorkerProcessDied`.

        After `stop`: `Stopped` when it left at a `checkpoint()` or its process was ended.
        Cancelling this future does not end the function; `stop` does, as far as that is possible. So wait with
        ``asyncio.wait({running.future})`` or a shield where the waiting task itself may be cancelled.
        """

    def stop(self, reason: str) -> bool:
        """Ask the function to end. True: it ends at once (a process); False: it was only asked (a thread)."""


class Runner(Protocol):
    """Runs synchronous functions off the event loop, with the caller's context variables carried along.

    One runner serves threads, another processes; the executor picks by the task's `run_in`.
    """

    @property
    def free(self) -> int:
        """How many calls could start at once; the claimer never claims more than can start."""

    def start(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Running:
        """Start the call now; raises `Busy` when nothing is free. Called on the event loop.

        The time limit in force here (``with offload.limits.within(seconds):``) is what the function's `remaining()`
        and `checkpoint()` know; ending it at that time is the caller's, with `Running.stop`.
        """

    async def close(self) -> None:
        """Stop what can be stopped; threads still running are left behind as daemons."""


# ── context ───────────────────────────────────────────────────────────────────────────────────────────────────────────
class Unit(NamedTuple):
    """What is being run, for logs and for the tracking layer."""

    kind: str  # "request", "job", "task", …
    id: str
    task: str | None = None
    attempt: int | None = None
    queue: str | None = None
    schedule_id: str | None = None
    fire_time: str | None = None  # ISO 8601, UTC


class Carrier(Protocol):
    """Takes the tracking context from the enqueuing code to the job row and back."""

    def capture(self) -> tuple[str, str | None]:
        """The tracking id to store (made anew outside any unit) and at most 8 KiB of JSON text carried along."""

    def new_id(self) -> str:
        """A fresh tracking id, for a scheduled fire."""

    def restore(self, tracking_id: str, carried: str | None, unit: Unit) -> AbstractContextManager[None]:
        """Enter the job's own context; both texts come from the database and are validated again."""


# ── leases ────────────────────────────────────────────────────────────────────────────────────────────────────────────
class Renewable(Protocol):
    """Something with a lease that the heartbeat thread keeps alive (the worker's row, a held lock)."""

    @property
    def ttl(self) -> int:
        """Microseconds for which a renewal grants the lease."""

    @property
    def renewal(self) -> Callable[[Any, Sequence[Any]], Collection[Any]]:
        """A store function that renews leases of one kind and `ttl` in one statement, and returns those still held.

        It is called on the heartbeat thread; what it does not return is lost for good.
        """

    @property
    def interval(self) -> int | None:
        """Microseconds between renewals; None: as often as the worker's own lease."""

    @property
    def deadline(self) -> int:
        """Until when (`Clock.boot` microseconds) the last renewal lets this process trust itself."""

    def granted(self, sent: int) -> None:
        """A renewal that was sent at this instant of `Clock.boot` has been granted."""

    def lost(self, reason: str) -> None:
        """Called once, on the heartbeat thread, when the lease is lost."""


# ── ticks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
Tick = Callable[[int], Awaitable[int | None]]
"""One bounded step: takes `now` (wall microseconds), returns when to run again (same clock) or None: when woken."""
