"""OpenTelemetry, if the application uses it: the active span, and no spans for what the engine does by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from sys import modules as _modules

from onebeat.tracking.traceparent import Trace


def active_span() -> Trace | None:
    """Ids of the active span, or None. OpenTelemetry is never imported here: only who uses it pays for it.

    FastAPI loads it wherever it is installed, so that it is there says little: an empty context does, and quickly.
    """
    context_api = _modules.get("opentelemetry.context")
    if context_api is None:
        return None
    try:
        if not context_api.get_current():
            return None
        context = _modules["opentelemetry.trace"].get_current_span().get_span_context()
        if not context.is_valid:
            return None
        state = context.trace_state.to_header() if context.trace_state else None
    except (AttributeError, KeyError):  # half imported by another thread, or not the module we think it is
        return None
    return Trace(f"{context.trace_id:032x}", f"{context.span_id:016x}", f"{context.trace_flags & 0xFF:02x}", state)


@contextmanager
def no_root_spans() -> Iterator[None]:
    """Let instrumented libraries make no spans inside the block, unless a span is active here already.

    The engine asks the database several times a second. With OpenTelemetry's instrumentation of SQLAlchemy each
    statement of that would be a trace of its own; an enqueue inside a request keeps its span.
    """
    utils = _modules.get("opentelemetry.instrumentation.utils")
    if utils is None or active_span() is not None or not hasattr(utils, "suppress_instrumentation"):
        yield
        return
    with utils.suppress_instrumentation():
        yield
