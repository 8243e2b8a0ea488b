"""TrackingId: the tracking id as a dependency of a route or a task."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from onebeat.errors import ConfigurationError
from onebeat.tracking.context import tracking_id


async def _present() -> str:
    """The id in force; it needs no request, so a dependency that uses it serves tasks as well."""
    id = tracking_id()
    if id is None:
        raise ConfigurationError("there is no tracking id here: call install(app) where the app is made")
    return id


TrackingId = Annotated[str, Depends(_present)]
"""A parameter annotated with it receives the tracking id: `async def route(id: TrackingId): ...`.

Raises `ConfigurationError` (so 500) where `install(app)` was forgotten.
"""
