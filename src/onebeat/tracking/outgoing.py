"""The tracking id on calls to other services: headers for any HTTP client, hooks for httpx."""

from __future__ import annotations

from typing import Any

from onebeat.tracking.context import VARIABLE
from onebeat.tracking.otel import active_span


def outgoing_headers(*, header: str = "X-Request-ID") -> dict[str, str]:
    """Headers for a call made from here: the tracking id, and the trace if there is one. Empty outside any unit.

    With an active OpenTelemetry span that span is the parent; else the call gets a span id of its own. A `traceparent`
    is never invented: it would tell the next service that this trace is not sampled.

    >>> from onebeat.tracking import tracking
    >>> with tracking("order-7"):
    ...     outgoing_headers()
    {'X-Request-ID': 'order-7'}
    """
    headers: dict[str, str] = {}
    unit = VARIABLE.get()
    if unit is not None:
        headers[header] = unit.tracking_id
    if (span := active_span()) is not None:
        headers["traceparent"] = span.header(span.span_id)
        state = span.state
    elif unit is not None and unit.trace is not None:
        headers["traceparent"] = unit.trace.header()
        state = unit.trace.state
    else:
        return headers
    if state:
        headers["tracestate"] = state
    return headers


def httpx_hook(request: Any) -> None:
    """For `httpx.Client(event_hooks={"request": [httpx_hook]})`; headers set by the caller stay."""
    traced = "traceparent" in request.headers or "tracestate" in request.headers  # the two belong together
    for name, value in outgoing_headers().items():
        if name not in request.headers and not (traced and name.startswith("trace")):
            request.headers[name] = value


async def async_httpx_hook(request: Any) -> None:
    """For `httpx.AsyncClient(event_hooks={"request": [async_httpx_hook]})`; headers set by the caller stay."""
    httpx_hook(request)
