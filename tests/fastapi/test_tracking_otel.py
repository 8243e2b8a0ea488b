"""OpenTelemetry's FastAPI instrumentation, installed before and after onebeat's layer."""

from __future__ import annotations

import json
import logging
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
from onebeat.logs import access
from onebeat.logs.record import RecordEncoder
from onebeat.tracking import current, outgoing_headers
from onebeat.tracking.carrier import ContextCarrier
from onebeat.tracking.context import Tracking
from onebeat.tracking.payload import read_payload
from onebeat.tracking.traceparent import read

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
seen: dict[str, Any] = {}
_log = logging.getLogger("tests.otel")


class Traced:
    """An application with both, and the spans it made."""

    def __init__(self, order: str) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.app = FastAPI()
        tracer = provider.get_tracer("shop")

        @self.app.get("/lines")
        async def lines() -> str:
            _log.info("before")
            with tracer.start_as_current_span("SELECT"):
                _log.info("within")
            _log.info("after")
            return "ok"

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


class Lines(logging.Handler):
    """Keeps what onebeat makes of each record, by its message."""

    def __init__(self) -> None:
        super().__init__()
        self._encoder = RecordEncoder()
        self.found: dict[str, dict[str, Any]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        line = json.loads(self._encoder.encode(record)[2])
        self.found["access" if line["logger"] == access.LOGGER else line["msg"]] = line

    def ids(self, name: str) -> tuple[str | None, str | None]:
        return self.found[name].get("trace_id"), self.found[name].get("span_id")


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler = Lines()
    loggers = [_log, logging.getLogger(access.LOGGER)]
    levels = [logger.level for logger in loggers]
    access.want(True)
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    yield handler
    access.want(False)
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.mark.parametrize("headers", [{}, {"traceparent": TRACE}])
async def test_a_line_has_the_span_it_was_written_in_and_the_access_record_that_of_the_server(
    traced: Traced, lines: Lines, headers: dict[str, str]
) -> None:
    await traced.get("/lines", **headers)
    [query] = [span for span in traced.exporter.get_finished_spans() if span.name == "SELECT"]
    server = ids(traced.server_span)
    assert [lines.ids(name) for name in ("before", "within", "after", "access")] == [server, ids(query), server, server]


async def test_the_span_of_a_caller_is_not_ours(lines: Lines) -> None:
    app = FastAPI()

    @app.get("/lines")
    async def route() -> None:
        _log.info("plain")

    install(app)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://shop") as client:
        await client.get("/lines", headers={"traceparent": TRACE})
    assert lines.ids("plain") == lines.ids("access") == (TRACE[3:35], None)
