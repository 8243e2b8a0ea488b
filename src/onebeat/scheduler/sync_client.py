"""A scheduler for scripts: it runs on the event loop of another thread, behind `with scheduler:`."""

from __future__ import annotations

from typing import Protocol

from onebeat.concurrency.portal import Portal
from onebeat.settings import Settings


class Startable(Protocol):
    """What a script starts and stops: a scheduler."""

    settings: Settings

    async def start(self) -> None:
        """Open it in the running event loop."""

    async def stop(self) -> None:
        """Close it."""


class SyncClient:
    """Runs a scheduler in the role `client`: it enqueues and reads, and neither fires schedules nor claims jobs."""

    def __init__(self, scheduler: Startable) -> None:
        self._scheduler = scheduler
        self._settings = scheduler.settings
        self._portal = Portal("onebeat-script")

    def start(self) -> None:
        """Start the thread and open the scheduler in it; raises what opening raises."""
        self._portal.start()
        self._settings = self._scheduler.settings
        self._scheduler.settings = self._settings.model_copy(update={"role": "client"})
        try:
            self._portal.run(self._scheduler.start())
        except BaseException:
            self._end()
            raise

    def stop(self) -> None:
        """Close the scheduler and end the thread."""
        try:
            self._portal.run(self._scheduler.stop())
        finally:
            self._end()

    def _end(self) -> None:
        self._scheduler.settings = self._settings
        self._portal.stop()
