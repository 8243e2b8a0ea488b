"""OpenTelemetry's FastAPI instrumentation, installed before and after onebeat's layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fastapi import FastAPI
from onebeat import install
from onebeat.tracking import current, outgoing_headers
from onebeat.tracking.carrier import ContextCarrier
from onebeat.tracking.context import Tracking
from onebeat.tracking.payload import read_payload
from onebeat.tracking.traceparent import read

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
seen: dict[str, Any] = {}


class Traced:
    """An application with both, and the spans it made."""

    def __init__(self, order: str) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.app = FastAPI()

        @self.app.get("/")
        async def home() -> str:
            unit = current()
            assert unit is not None
            seen.update(unit=unit, identity=unit.identity(), out=outgoing_headers())
            seen["carried"] = read_payload(ContextCarrier().capture()[1])
            return "ok"

        @self.app.get("/boom")
        async def boom() -> None:
            raise RuntimeError("boom")

        if order == "onebeat first":
            install(self.app)
        FastAPIInstrumentor.instrument_app(self.app, tracer_provider=provider)
        if order == "OpenTelemetry first":
            install(self.app)

    async def get(self, path: str = "/", **headers: str) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            return await client.get(path, headers=headers)

    @property
    def server_span(self) -> ReadableSpan:
        [span] = [span for span in self.exporter.get_finished_spans() if span.kind.name == "SERVER"]
        return span


@pytest.fixture(params=["onebeat first", "OpenTelemetry first"])
def traced(request: pytest.FixtureRequest) -> Iterator[Traced]:
    traced = Traced(request.param)
    yield traced
    FastAPIInstrumentor.uninstrument_app(traced.app)


def ids(span: ReadableSpan) -> tuple[str, str]:
    assert span.context is not None
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


async def test_span_and_tracking_id_are_both_there_and_the_span_gives_the_trace_fields(traced: Traced) -> None:
    response = await traced.get(**{"X-Request-ID": "order-7"})
    trace_id, span_id = ids(traced.server_span)
    unit: Tracking = seen["unit"]
    assert response.headers.get_list("x-request-id") == ["order-7"]
    assert seen["identity"]["tracking_id"] == "order-7"
    assert (seen["identity"]["trace_id"], seen["identity"]["span_id"]) == (trace_id, span_id)
    assert unit.identity()["trace_id"] == trace_id  # known after the span has ended, for the access record

    sent = read([seen["out"]["traceparent"].encode()])
    assert sent is not None
    assert (sent.trace_id, sent.span_id) == (trace_id, span_id)
    assert int(sent.flags, 16) & 1  # sampled
    assert seen["carried"].trace.trace_id == trace_id


async def test_a_traceparent_from_the_caller_is_the_trace_of_both(traced: Traced) -> None:
    response = await traced.get(traceparent=TRACE)
    assert ids(traced.server_span)[0] == TRACE[3:35] == response.headers["x-request-id"]
    assert seen["identity"]["trace_id"] == TRACE[3:35]


async def test_errors_have_span_and_id(traced: Traced) -> None:
    response = await traced.get("/boom")
    assert response.status_code == 500
    assert len(response.headers.get_list("x-request-id")) == 1
    assert traced.server_span.status.status_code.name == "ERROR"
    missing = await traced.get("/nothing")
    assert len(missing.headers.get_list("x-request-id")) == 1
