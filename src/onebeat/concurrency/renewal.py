"""A daemon thread that renews leases and reports a loss at its deadline, even while it waits for an answer."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from random import Random
from typing import Any, Generic, Protocol, TypeVar

from onebeat.concurrency.alarm import Alarm
from onebeat.concurrency.forks import ForkSafeLock

SECOND = 1_000_000
JITTER = 0.1  # of a delay, either way, so that many processes do not renew at the same moment
RETRY_PART = 0.1  # of the interval between renewals, after one that failed
RETRY_FIRST, RETRY_LAST = SECOND // 20, SECOND  # microseconds; a retry is neither sooner nor later
CONNECT_WITHIN = 5.0  # seconds
ANSWER_WITHIN = 1.0  # seconds at least for a renewal's answer; else one interval
TIMER_MARGIN = 0.001  # seconds to sleep longer, so that the thread does not wake just before the moment it waits for
EARLY = 0.25  # of its interval: how much sooner a lease is renewed when others are renewed anyway
SPLIT = 8  # leases whose common renewal failed are tried again in groups of an eighth, so that one harms few others
IN_FLIGHT = 1 << 63  # the moment of the next renewal while one is under way
TOO_LATE = "it could not be renewed in time"


def margin(lease: int) -> int:
    """Return how long before the end of a lease its holder stops trusting it; both in microseconds.

    It is a sixth of the lease, or 2 s where that is more and at most a third of the lease.

    >>> margin(60 * SECOND), margin(3 * SECOND)
    (10000000, 1000000)
    """
    return max(lease // 6, min(2 * SECOND, lease // 3))


class Expiring(Protocol):
    """A lease that ends unless it is renewed. Its methods are called on the renewal thread."""

    @property
    def deadline(self) -> int:
        """Until when the last renewal lets the holder trust the lease, in microseconds of the thread's clock."""

    def granted(self, sent: int) -> None:
        """Take note that a renewal sent at `sent`, in microseconds of the thread's clock, was granted."""

    def lost(self, reason: str) -> None:
        """Take note that the lease is lost for good; it is not renewed any more."""


T = TypeVar("T", bound=Expiring)


class Renewer(Protocol[T]):
    """The connection over which a renewal thread renews; it is used on that thread's event loop alone."""

    async def open(self, timeout: float) -> None:
        """Connect within `timeout` seconds; any exception means that the thread tries again with a new renewer."""

    async def renew(self, items: Sequence[T]) -> Collection[T]:
        """Renew these leases and return those that are still held; the others are lost.

        Any exception means that nothing is known: the thread tries again until the deadline.
        """

    async def close(self) -> None:
        """Close the connection."""


class RenewalThread(Generic[T]):
    """Renews every lease that was added to it, each at its own interval, from a thread with its own event loop.

    `add`, `remove` and `stop` may be called from any thread; the thread starts with the first lease. A lease that is
    refused, or whose deadline passes, is removed and its `lost` is called. In a forked child nothing of the parent is
    renewed: the child's first `add` starts afresh.

    At most `together` leases are renewed by one call of the renewer: those that are due and those that are due soon.

    `make` returns a new renewer. `interval` returns the microseconds between two renewals of a lease, `now` the
    microseconds of a clock that never steps. `refusal` is the reason told where a renewal is refused. `failed` is
    called with the first error of an outage, `recovered` with its length in seconds; both on the thread.
    """

    def __init__(
        self,
        make: Callable[[], Renewer[T]],
        *,
        name: str,
        interval: Callable[[T], int],
        now: Callable[[], int],
        random: Random,
        refusal: str,
        failed: Callable[[Exception], None],
        recovered: Callable[[float], None],
        together: int = 1,
    ) -> None:
        self._make = make
        self._name = name
        self._interval = interval
        self._now = now
        self._random = random
        self._refusal = refusal
        self._failed = failed
        self._recovered = recovered
        self._together = together
        self._mutex = ForkSafeLock()
        self._forget_all()

    def _forget_all(self) -> None:
        self._pid = os.getpid()
        self._held: dict[T, int] = {}  # each lease and the moment of its next renewal
        self._asleep_until: int | None = None  # so that only an earlier renewal wakes the thread; None: until woken
        self._alarm = Alarm()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._failing_since: int | None = None

    def add(self, item: T) -> None:
        """Renew this lease from now on; it was granted just now."""
        with self._mutex:
            if self._pid != os.getpid():
                self._forget_all()
            at = self._held[item] = self._after(self._interval(item))
            sleeps_too_long = self._asleep_until is None or self._asleep_until > min(at, item.deadline)
            if self._thread is None or not self._thread.is_alive():
                self._stopping = False
                self._thread = threading.Thread(target=self._main, name=self._name, daemon=True)
                self._thread.start()
        if sleeps_too_long:
            self._alarm.set_threadsafe()

    def remove(self, item: T) -> None:
        """Stop renewing this lease; nothing happens when it is not there."""
        with self._mutex:
            self._held.pop(item, None)

    def stop(self, timeout: float = 5.0) -> None:
        """End the thread and block until it has closed its connection, at most `timeout` seconds."""
        if self._pid != os.getpid():
            return
        self._stopping = True
        self._alarm.set_threadsafe()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _after(self, delay: float) -> int:
        """Return the moment after `delay` microseconds, with jitter."""
        return self._now() + round(delay * self._jitter())

    def _jitter(self) -> float:
        return 1 + JITTER * (2 * self._random.random() - 1)

    # ── on the thread ─────────────────────────────────────────────────────────────────────────────────────────────────
    def _main(self) -> None:
        self._renewer: Renewer[T] | None = None
        self._connecting = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._fewer: dict[T, int] = {}  # with how many others a lease is renewed after a failure
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._spawn(self._connect_early())
        try:
            while not self._stopping:
                expired, due, until = self._look()
                for item in expired:
                    self._lose(item, TOO_LATE)
                for items in self._groups(due):
                    self._spawn(self._renew(items))
                await self._alarm.wait(None if until is None else (until - self._now()) / SECOND + TIMER_MARGIN)
        finally:
            if self._tasks:
                await asyncio.wait(self._tasks)
            if self._renewer is not None:
                await self._renewer.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _look(self) -> tuple[list[T], list[T], int | None]:
        """Return the leases that are lost, those that are due, and when there is more to do; None: when woken.

        What is due is marked as under way, with what is due soon.
        """
        expired, due, soon, first, now = [], [], [], IN_FLIGHT, self._now()
        with self._mutex:
            for item, at in self._held.items():
                deadline = item.deadline
                if deadline <= now:
                    expired.append(item)
                elif at <= now:
                    due.append(item)
                    first = min(first, deadline)
                else:
                    first = min(first, at, deadline)
                    if self._together > 1 and at - EARLY * self._interval(item) <= now:
                        soon.append(item)
            if due:
                due += soon
            self._held.update(dict.fromkeys(due, IN_FLIGHT))
            self._asleep_until = first if first < IN_FLIGHT else None
            return expired, due, self._asleep_until

    def _groups(self, items: Sequence[T]) -> Iterator[Sequence[T]]:
        by_size: dict[int, list[T]] = {}
        for item in items:
            by_size.setdefault(self._fewer.get(item, self._together), []).append(item)
        for size, same in by_size.items():
            for first in range(0, len(same), size):
                yield same[first : first + size]

    async def _connect_early(self) -> None:
        """Connect before the first renewal needs the connection."""
        try:
            await self._connected()
        except Exception as error:  # noqa: BLE001 - reported; the first renewal tries again
            self._report_failure(error)

    async def _connected(self) -> Renewer[T]:
        async with self._connecting:
            if self._renewer is None:
                renewer = self._make()
                await renewer.open(CONNECT_WITHIN)
                self._renewer = renewer
            return self._renewer

    async def _renew(self, items: Sequence[T]) -> None:
        interval = min(self._interval(item) for item in items)
        try:
            renewer = await self._connected()
            sent = self._now()
            async with asyncio.timeout(max(interval / SECOND, ANSWER_WITHIN)):
                kept = await renewer.renew(items)
        except Exception as error:  # noqa: BLE001 - reported; the deadline, not the error, ends the trust
            self._report_failure(error)
            self._fewer.update(dict.fromkeys(items, max(1, len(items) // SPLIT)))
            retry = min(max(interval * RETRY_PART, RETRY_FIRST), RETRY_LAST)
            self._renew_after(dict.fromkeys(items, retry))
            return
        self._report_recovery()
        for item in items:
            self._fewer.pop(item, None)
            if item in kept:
                item.granted(sent)
            else:
                self._lose(item, self._refusal)
        self._renew_after({item: self._interval(item) for item in items})

    def _renew_after(self, delays: Mapping[T, float]) -> None:
        """Renew these leases after so many microseconds each; the jitter is the same for all, to keep them together."""
        jitter = self._jitter()
        now = self._now()
        with self._mutex:
            held = {item: now + round(delay * jitter) for item, delay in delays.items() if item in self._held}
            self._held.update(held)
            first = min(held.values(), default=IN_FLIGHT)
            sleeps_too_long = self._asleep_until is None or self._asleep_until > first
        if sleeps_too_long:
            self._alarm.set()

    def _lose(self, item: T, reason: str) -> None:
        self.remove(item)
        self._fewer.pop(item, None)
        try:
            item.lost(reason)
        except Exception as error:  # noqa: BLE001 - handed to the loop's handler; the other leases need this thread
            context = {"message": f"lost() of {item!r} raised", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)

    def _report_failure(self, error: Exception) -> None:
        if self._failing_since is None:
            self._failing_since = self._now()
            self._failed(error)

    def _report_recovery(self) -> None:
        if self._failing_since is not None:
            seconds = (self._now() - self._failing_since) / SECOND
            self._failing_since = None
            self._recovered(seconds)
