"""@blocking and @cpu_bound: declared once, awaited everywhere, refused at once when they cannot work."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from onebeat.errors import ConfigurationError
from onebeat.offload import Lane, blocking, cpu_bound
from onebeat.offload.processes import close_processes
from onebeat.offload.runners import ProcessRunner
from tests.offload import work


@pytest.fixture(autouse=True, scope="module")
def _children_end_with_the_module() -> Iterator[None]:
    yield
    close_processes()


async def test_a_blocking_function_runs_on_its_lane_with_its_keywords() -> None:
    @blocking(lane=Lane("letters"), timeout=30)
    def where(prefix: str, *, suffix: str = "") -> str:
        return prefix + threading.current_thread().name + suffix

    assert inspect.iscoroutinefunction(where)
    assert (await where("<", suffix=">")).startswith("<onebeat-letters-")
    assert (await where("<", suffix=">")).endswith(">")

    @blocking
    def plain() -> str:
        return threading.current_thread().name

    assert (await plain()).startswith("onebeat-default-")


async def test_the_timeout_of_a_declaration_holds() -> None:
    opened = threading.Event()

    @blocking(timeout=0.02, lane=Lane("timed", width=1, queue=0))
    def wait() -> None:
        opened.wait(30)

    with pytest.raises(TimeoutError):
        await wait()
    opened.set()

    with pytest.raises(TimeoutError):
        await cpu_bound(timeout=timedelta(seconds=0.5))(work.spin)()


async def test_a_cpu_bound_function_runs_in_a_child_though_its_name_means_the_decorated_one() -> None:
    assert await work.add(1, b=2) == 3
    runner = ProcessRunner(1)
    plain: Callable[..., int] = work.add.__wrapped__  # type: ignore[attr-defined]  # functools.wraps sets it
    assert await runner.start(plain, 1, b=5).future == 6
    await runner.close()


def test_what_cannot_work_is_refused_where_it_is_written() -> None:
    with pytest.raises(ConfigurationError, match="defined inside a function"):

        @cpu_bound
        def local() -> None: ...

    with pytest.raises(ConfigurationError, match="lambda"):
        cpu_bound(lambda: 1)
    for decorator in (blocking, cpu_bound):
        with pytest.raises(ConfigurationError, match="is a coroutine function"):
            decorator(asyncio.sleep)
        with pytest.raises(ConfigurationError, match="is a generator function"):
            decorator(work.counting)
        of_class: Any = classmethod(lambda cls: cls)
        of_nobody: Any = staticmethod(work.left)
        for method in (of_class, of_nobody):
            with pytest.raises(ConfigurationError, match=f"write @{type(method).__name__} above @{decorator.__name__}"):
                decorator(method)
        with pytest.raises(ConfigurationError, match="takes a function, not float"):
            decorator(5.0)  # type: ignore[call-overload]  # what the test is about
    with pytest.raises(ValueError, match="on_timeout='kill' is not one of 'abandon', 'wait'"):
        blocking(on_timeout="kill")  # type: ignore[call-overload]  # as above
    with pytest.raises(ValueError, match="cancel='kill' is not one of 'end', 'wait'"):
        cpu_bound(cancel="kill")  # type: ignore[call-overload]  # as above


async def test_methods_may_be_decorated_of_every_kind_and_inherited_ones_too() -> None:
    service = work.Service(3)
    assert await service.blocked(2) == 6
    assert await service.computed(2) == 6
    assert await work.Service.of_the_class(2) == ("Service", 2)
    assert await work.Derived.of_the_class(2) == ("Derived", 2)
    assert await service.of_nobody(2) == 2
    assert await work.Derived(3).computed(2) == 600, "its own, which is awaited through the same name"


async def test_a_decorated_route_keeps_its_signature_for_fastapi() -> None:
    from fastapi.testclient import TestClient

    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/double")
    @blocking(lane=Lane("routes"))
    def double(number: int) -> dict[str, int | str]:
        return {"value": 2 * number, "thread": threading.current_thread().name}

    def ask() -> None:
        with TestClient(app) as client:
            answer = client.get("/double", params={"number": 21}).json()
            assert answer["value"] == 42
            assert answer["thread"].startswith("onebeat-routes-")

    await asyncio.to_thread(ask)
