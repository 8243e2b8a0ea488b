"""Tasks that fail when nobody looks."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from fastapi import FastAPI
from onebeat import install
from onebeat.logs import TrackingFilter
from onebeat.tracking import tracking
from onebeat.tracking.orphans import orphans_tracked


async def _fail() -> None:
    raise ValueError("nobody awaits this")


async def _orphan(id: str) -> None:
    with tracking(id):
        task = asyncio.get_running_loop().create_task(_fail())
        await asyncio.wait([task])
    del task
    gc.collect()


@asynccontextmanager
async def _installed() -> AsyncIterator[None]:
    app = FastAPI()
    install(app)
    async with app.router.lifespan_context(app):
        yield


@asynccontextmanager
async def _by_hand() -> AsyncIterator[None]:
    with orphans_tracked():
        yield


@pytest.mark.parametrize("tracked", [_by_hand, _installed])
async def test_an_orphans_record_has_its_id_where_python_tells_a_tasks_context(
    tracked: Callable[[], AbstractAsyncContextManager[None]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.addFilter(TrackingFilter())
    async with tracked():
        with caplog.at_level(logging.ERROR, "asyncio"):
            await _orphan("order-7")
    [record] = [each for each in caplog.records if "nobody awaits this" in str(each.exc_info)]
    assert "never retrieved" in record.getMessage()
    assert record.__dict__["tracking_id"] == ("order-7" if sys.version_info >= (3, 12) else "-")


async def test_a_handler_that_was_there_is_asked_and_comes_back() -> None:
    said: list[dict[str, Any]] = []

    def own(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        said.append(context)

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(own)
    with orphans_tracked():
        await _orphan("order-7")
        assert [str(context["exception"]) for context in said] == ["nobody awaits this"]
    assert loop.get_exception_handler() is own
