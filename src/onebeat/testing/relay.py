"""Relay: hands the wake-ups of the application's threads and event loops to the simulated engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import UUID

from onebeat.engine.wakeups import AT_ONCE, Wakeups


class Relay:
    """A `WakeupListener` that may be called in any thread, and wakes the engine on its own event loop."""

    def __init__(self, engine: Wakeups, home: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._home = home

    def _tell(self, wake: Callable[..., None], *args: object) -> None:
        try:
            here = asyncio.get_running_loop() is self._home
        except RuntimeError:
            here = False
        if here:
            wake(*args)
        else:
            self._home.call_soon_threadsafe(wake, *args)

    def jobs_queued(self) -> None:
        """Jobs may be claimed now."""
        self._tell(self._engine.jobs_queued)

    def jobs_delayed(self) -> None:
        """Jobs were stored for a later time."""
        self._tell(self._engine.jobs_delayed, AT_ONCE)

    def schedules_changed(self) -> None:
        """A schedule was added or changed."""
        self._tell(self._engine.schedules_changed)

    def job_ended(self, id: UUID, /) -> None:
        """An attempt of the job ended."""
        self._tell(self._engine.job_ended, id)

    def cancel_requested(self, id: UUID, /) -> None:
        """The running job is to be cancelled."""
        self._tell(self._engine.cancel_requested, id)

    def lock_released(self, name: str, /) -> None:
        """The lock is free."""
        self._tell(self._engine.lock_released, name)
