"""OpenTelemetry's instrumentation of SQLAlchemy makes no spans of the engine's own statements."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import sqlalchemy.ext.asyncio
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from onebeat import Scheduler
from onebeat.store.connection import targets


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[InMemorySpanExporter, TracerProvider]]:
    """As zero-code instrumentation does before the application is imported: every engine made here is watched."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # Its list of supported versions ends before SQLAlchemy 2.1, with which it works.
    SQLAlchemyInstrumentor().instrument(tracer_provider=provider, skip_dep_check=True)
    monkeypatch.setattr(targets, "create_async_engine", sqlalchemy.ext.asyncio.create_async_engine)
    yield exporter, provider
    SQLAlchemyInstrumentor().uninstrument()


async def test_the_engine_s_own_statements_make_no_spans(
    fresh_database_url: str, spans: tuple[InMemorySpanExporter, TracerProvider]
) -> None:
    exporter, provider = spans
    scheduler = Scheduler(fresh_database_url, poll=0.05, heartbeat=0.3, lease=3)
    seen: list[bool] = []

    @scheduler.every(seconds=1, name="tick")
    async def tick() -> None:
        from opentelemetry.instrumentation.utils import is_instrumentation_enabled

        seen.append(is_instrumentation_enabled())

    async with scheduler:
        while not seen:
            await asyncio.sleep(0.05)
        assert [span.name for span in exporter.get_finished_spans()] == []
        with provider.get_tracer("shop").start_as_current_span("request") as request:
            await tick.enqueue()
        children = [span for span in exporter.get_finished_spans() if span.name != "request"]
        if not fresh_database_url.startswith("sqlite"):  # there statements run in onebeat's threads, without a span
            assert children, "an enqueue inside a span has spans of its own"
        assert all(
            span.parent is not None and span.parent.span_id == request.get_span_context().span_id for span in children
        )
    assert seen[0], "the application's own statements inside a job keep their spans"
