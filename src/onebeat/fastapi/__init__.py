"""onebeat in a FastAPI application: `install`, and dependencies of routes."""

from __future__ import annotations

from onebeat.fastapi.install import install
from onebeat.fastapi.tracking import TrackingId

__all__ = ["TrackingId", "install"]
