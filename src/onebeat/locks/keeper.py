"""The heartbeat thread of locks without a scheduler: own event loop, own connection, started by the first lock."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from random import random

from onebeat.locks.backend import Backend
from onebeat.locks.hold import Hold
from onebeat.model.protocols import Clock
from onebeat.timing.clock import SECOND

log = logging.getLogger("onebeat.locks")

JITTER = 0.1  # of an interval, either way
RETRY = 0.25  # of an interval, after a renewal that failed
CONNECT_WITHIN = 5.0  # seconds; leases watch their own deadlines meanwhile
ANSWER_WITHIN = 1.0  # seconds at least for a renewal's answer; else one interval


class Keeper:
    """Renews what is added to it, from a thread that no blocked event loop can stop.

    `add` and `remove` are safe from any thread. What cannot be renewed before its deadline, or is refused, is lost.
    """

    def __init__(self, make: Callable[[], Backend], *, clock: Clock) -> None:
        self._make = make
        self._clock = clock
        self._mutex = threading.Lock()
        self._held: dict[Hold, int] = {}  # to when it is to be renewed, boot microseconds
        self._asleep_until: int | None = None  # so that only an earlier renewal wakes the thread; None: until woken
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken: asyncio.Event | None = None
        self._stopping = False
        self._failing = False

    def add(self, hold: Hold) -> None:
        """Keep this alive from now on; it was granted just now."""
        with self._mutex:
            at = self._held[hold] = self._next(hold, 1.0)
            soon_enough = self._asleep_until is not None and self._asleep_until <= at
            if self._thread is None or not self._thread.is_alive():
                self._stopping = False
                self._thread = threading.Thread(target=self._main, name="onebeat-locks-heartbeat", daemon=True)
                self._thread.start()
        if not soon_enough:
            self._wake()

    def remove(self, hold: Hold) -> None:
        """Stop renewing this."""
        with self._mutex:
            self._held.pop(hold, None)

    def stop(self, timeout: float = 5.0) -> None:
        """End the thread; blocks until it has closed its connection, at most `timeout` seconds."""
        self._stopping = True
        self._wake()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _next(self, hold: Hold, part: float) -> int:
        spread = 1 + JITTER * (2 * random() - 1)  # noqa: S311 - jitter, not a secret
        return self._clock.boot() + round(hold.interval * part * spread)

    def _wake(self) -> None:
        loop, woken = self._loop, self._woken
        if loop is not None and woken is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just closed: nothing to wake
                loop.call_soon_threadsafe(woken.set)

    # ── on the thread ─────────────────────────────────────────────────────────────────────────────────────────────────
    def _main(self) -> None:
        asyncio.run(self._beat_until_stopped())

    async def _beat_until_stopped(self) -> None:
        self._woken = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        backend: Backend | None = None
        try:
            while not self._stopping:
                if backend is None:
                    backend = await self._open()
                due = self._due()
                if due and backend is not None:
                    await asyncio.gather(*(self._renew(backend, hold) for hold in due))
                await self._sleep()
        finally:
            self._loop = None
            if backend is not None:
                await backend.close()

    async def _sleep(self) -> None:
        assert self._woken is not None
        with self._mutex:
            self._asleep_until = at = min(self._held.values(), default=None)
        timer = None
        if at is not None:
            delay = max((at - self._clock.boot()) / SECOND, 0.0)
            timer = asyncio.get_running_loop().call_later(delay, self._woken.set)
        await self._woken.wait()
        self._woken.clear()
        if timer is not None:
            timer.cancel()

    def _due(self) -> list[Hold]:
        now = self._clock.boot()
        with self._mutex:
            due = [hold for hold, at in self._held.items() if at <= now]
            for hold in due:
                self._held[hold] = self._next(hold, RETRY)
        return due

    async def _open(self) -> Backend | None:
        backend = self._make()
        try:
            await backend.open(CONNECT_WITHIN)
        except Exception as error:  # noqa: BLE001 - as below
            self._trouble(error)
            return None
        return backend

    async def _renew(self, backend: Backend, hold: Hold) -> None:
        """Renew one; an error is not yet a loss, its deadline is."""
        if hold.over or not hold.may_be_renewed():
            self.remove(hold)
            return
        sent = self._clock.boot()
        try:
            async with asyncio.timeout(max(hold.interval / SECOND, ANSWER_WITHIN)):
                kept = await backend.renew(hold.name, hold.owner, hold.ttl)
        except Exception as error:  # noqa: BLE001 - said; the deadline, not the error, ends the trust
            self._trouble(error)
            return
        self._recovered()
        if kept:
            hold.granted(sent)
            with self._mutex:
                if hold in self._held:
                    self._held[hold] = self._next(hold, 1.0)
        else:
            self.remove(hold)
            hold.lost("it ran out, or was taken by force, or where it lived was emptied")

    def _trouble(self, error: Exception) -> None:
        if not self._failing:
            self._failing = True
            words = "no answer in time" if isinstance(error, TimeoutError) else error
            log.warning("locks cannot be renewed at the moment, and are lost at their deadlines: %s", words)

    def _recovered(self) -> None:
        if self._failing:
            self._failing = False
            log.info("locks are renewed again")
