"""The tracking id: made or accepted at the edge, and carried through tasks, threads, processes and jobs."""

from __future__ import annotations

from onebeat.tracking.carrying import ContextThreadPoolExecutor, carry
from onebeat.tracking.context import Tracking, bind, current, tracking, tracking_id
from onebeat.tracking.ids import new_id
from onebeat.tracking.middleware import TrackingMiddleware
from onebeat.tracking.outgoing import async_httpx_hook, httpx_hook, outgoing_headers
from onebeat.tracking.payload import propagate
from onebeat.tracking.rules import TrackingRules

__all__ = [
    "ContextThreadPoolExecutor",
    "Tracking",
    "TrackingMiddleware",
    "TrackingRules",
    "async_httpx_hook",
    "bind",
    "carry",
    "current",
    "httpx_hook",
    "new_id",
    "outgoing_headers",
    "propagate",
    "tracking",
    "tracking_id",
]
