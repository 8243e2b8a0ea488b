"""Runs a tick again and again: sleep, early wake, back-off after errors, stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import random

from onebeat.model.events import DatabaseBack, Event, trouble
from onebeat.model.protocols import Clock, Tick

SECOND = 1_000_000
LONGEST_SLEEP = 5 * SECOND  # timers count no suspended time; a bounded sleep notices a clock that jumped
LONGEST_BACKOFF = 5.0  # seconds: the database may be back any moment
MARGIN = 500  # microseconds to sleep longer, so that a wake-up is not a hair too early


class Loop:
    """One part of the engine at work. `wake` is safe to call as often as one likes."""

    def __init__(self, name: str, tick: Tick, *, clock: Clock, announce: Callable[[Event], None]) -> None:
        self.name = name
        self._tick = tick
        self._clock = clock
        self._announce = announce
        self._woken = asyncio.Event()
        self._stopping = False
        self._failures = 0
        self._failing_since = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to tick, at once."""
        self._task = asyncio.create_task(self._run(), name=f"onebeat-{self.name}")

    def wake(self) -> None:
        """Cut the present sleep short, or skip the next one."""
        self._woken.set()

    async def stop(self, timeout: float = 5.0) -> None:
        """Let the present tick end, and no other begin; one that hangs longer than `timeout` seconds is cancelled."""
        self._stopping = True
        self.wake()
        if self._task is not None:
            _, hanging = await asyncio.wait({self._task}, timeout=timeout)
            if hanging:
                self._task.cancel()
                await asyncio.wait(hanging)

    async def _run(self) -> None:
        while not self._stopping:
            self._woken.clear()
            now = self._clock.now()
            try:
                at = await self._tick(now)
            except Exception as error:  # noqa: BLE001 - one failed step must not end the part; it is announced
                at = self._after_failure(error)
            else:
                self._after_success()
            await self._sleep_until(at)

    async def _sleep_until(self, at: int | None) -> None:
        now = self._clock.now()
        delay = LONGEST_SLEEP if at is None else min(at - now + MARGIN, LONGEST_SLEEP)
        if delay <= MARGIN or self._woken.is_set() or self._stopping:
            await asyncio.sleep(0)
            return
        timer = asyncio.get_running_loop().call_later(delay / SECOND, self._woken.set)
        try:
            await self._woken.wait()
        finally:
            timer.cancel()

    def _after_failure(self, error: Exception) -> int:
        now = self._clock.now()
        self._failing_since = self._failing_since or now
        self._failures += 1
        longest = min(LONGEST_BACKOFF, 0.1 * 2 ** min(self._failures, 10))
        delay = longest * (0.5 + random() / 2)  # noqa: S311 - jitter, not a secret
        self._announce(trouble(self.name, error, delay))
        self._woken.clear()  # a wake that came during the outage must not turn the back-off into a busy loop
        return now + int(delay * SECOND)

    def _after_success(self) -> None:
        if self._failures:
            self._announce(DatabaseBack(part=self.name, after=(self._clock.now() - self._failing_since) / SECOND))
            self._failures = 0
            self._failing_since = 0
