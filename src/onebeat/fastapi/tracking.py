"""TrackingId: the tracking id as a dependency of a route or a task."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from onebeat.errors import ConfigurationError
from onebeat.tracking.context import tracking_id


async def _current() -> str:
    """Return the tracking id of this context; needs no request, so that tasks can depend on it as well."""
    id = tracking_id()
    if id is None:
        raise ConfigurationError("there is no tracking id here: call install(app) where the app is made")
    return id


TrackingId = Annotated[str, Depends(_current)]
"""A parameter annotated with it receives the tracking id: `async def route(id: TrackingId): ...`.

Without `install(app)` it raises `ConfigurationError`, which the client sees as status 500.
"""
