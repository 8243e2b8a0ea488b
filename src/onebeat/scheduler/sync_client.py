"""A scheduler as a client for scripts: a thread with its own event loop behind `with scheduler:`."""

from __future__ import annotations

import asyncio
import threading
from typing import Protocol

from onebeat.settings import Settings


class Startable(Protocol):
    """What a script starts and stops."""

    settings: Settings

    async def start(self) -> None:
        """Open it in the running event loop."""

    async def stop(self) -> None:
        """Close it."""


class Script:
    """Runs the scheduler in role `client`: it enqueues and looks, and neither fires nor claims."""

    def __init__(self, scheduler: Startable) -> None:
        self._scheduler = scheduler
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="onebeat-script", daemon=True)

    def start(self) -> None:
        """Start the thread and open the scheduler in it; what that raises is raised here."""
        self._thread.start()
        settings = self._scheduler.settings
        self._scheduler.settings = settings.model_copy(update={"role": "client"})
        try:
            asyncio.run_coroutine_threadsafe(self._scheduler.start(), self._loop).result()
        except BaseException:
            self._end(settings)
            raise
        self._before = settings

    def stop(self) -> None:
        """Close the scheduler and end the thread."""
        try:
            asyncio.run_coroutine_threadsafe(self._scheduler.stop(), self._loop).result()
        finally:
            self._end(self._before)

    def _end(self, settings: Settings) -> None:
        self._scheduler.settings = settings
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
