"""To threads, timers, loops and processes that know nothing of onebeat."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import multiprocessing
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
from starlette.background import BackgroundTask

from onebeat.errors import ConfigurationError, InvalidArguments
from onebeat.tracking import ContextThreadPoolExecutor, carry, current, propagate, tracking, tracking_id
from onebeat.tracking.context import tracking_of

REGION = propagate(ContextVar("tests_region", default="nowhere"))
UNREGISTERED = ContextVar("tests_unregistered", default="nothing")


def look() -> tuple[str | None, str | None, str, str]:
    """What a function sees of the context, wherever it runs."""
    unit = current()
    return tracking_id(), unit and unit.unit_id, REGION.get(), UNREGISTERED.get()


def fail() -> None:
    raise KeyError("in the child")


async def test_run_in_executor_has_the_id_with_carry_and_none_without() -> None:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as pool, tracking("order-7"):
        assert await loop.run_in_executor(pool, tracking_id) is None
        assert await loop.run_in_executor(pool, carry(tracking_id)) == "order-7"
        assert await loop.run_in_executor(pool, tracking_id) is None
    with ContextThreadPoolExecutor(1) as pool:
        with tracking("order-8"):
            assert await loop.run_in_executor(pool, tracking_id) == "order-8"
        assert await loop.run_in_executor(pool, tracking_id) is None


@pytest.mark.parametrize("kind", ["thread", "timer"])
def test_a_raw_thread_and_a_timer_have_the_id_with_carry_and_none_without(kind: str) -> None:
    seen: list[str | None] = []

    def note() -> None:
        seen.append(tracking_id())

    with tracking("order-7"):
        for function in (note, carry(note)):
            thread = threading.Thread(target=function) if kind == "thread" else threading.Timer(0, function)
            thread.start()
            thread.join()
    assert seen == [None, "order-7"]


async def test_one_carried_function_may_run_in_many_threads_at_once() -> None:
    barrier = threading.Barrier(8, timeout=30)

    def meet() -> str | None:
        barrier.wait()
        return tracking_id()

    with tracking("order-7"):
        together = carry(meet)
    with ThreadPoolExecutor(8) as pool:
        assert {future.result() for future in [pool.submit(together) for _ in range(8)]} == {"order-7"}


async def ask(suffix: str = "") -> str:
    await asyncio.sleep(0)
    return f"{tracking_id()}{suffix}"


class Asker:
    async def __call__(self) -> str:
        return await ask()


@pytest.mark.parametrize("function", [ask, partial(ask, "!"), Asker()], ids=["function", "partial", "object"])
async def test_a_carried_coroutine_function_runs_in_its_context_and_is_awaited_by_others(
    function: Callable[[], Awaitable[str]],
) -> None:
    with tracking("order-7"):
        carried = carry(function)
    assert inspect.iscoroutinefunction(carried)
    assert (await carried()).startswith("order-7")
    assert (await asyncio.gather(*(carried() for _ in range(3))))[2].startswith("order-7")
    assert tracking_id() is None


async def test_a_background_task_runs_what_it_is_given_carried() -> None:
    """Starlette awaits coroutine functions and calls anything else in a thread, where nobody awaits what comes back."""
    seen: list[str] = []

    async def note() -> None:
        seen.append(str(tracking_id()))

    with tracking("order-7"):
        task = BackgroundTask(carry(note))
    await task()
    assert seen == ["order-7"]


def test_a_process_pool_gets_the_unit_and_the_registered_variable_and_keeps_neither() -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        context = contextvars.copy_context()

        def inside() -> None:
            REGION.set("north")
            UNREGISTERED.set("secret")
            with tracking("order-7") as unit:
                assert pool.submit(carry(look)).result(60) == ("order-7", unit.unit_id, "north", "nothing")
                assert pool.submit(look).result(60) == (None, None, "nowhere", "nothing")
                with pytest.raises(KeyError, match="in the child") as caught:
                    pool.submit(carry(fail)).result(60)
                left = tracking_of(caught.value)
                assert left is not None
                assert left.unit_id == unit.unit_id
                assert pool.submit(look).result(60) == (None, None, "nowhere", "nothing")
                REGION.set("x" * 9 * 1024)
                with pytest.raises(InvalidArguments, match=r"tests_region.*"):
                    pool.submit(carry(look)).result(60)
                REGION.set("south")
                assert pool.submit(carry(look)).result(60)[2] == "south"

        context.run(inside)


class Greeter:
    """A callable object whose attributes have the names that a carried function uses for itself."""

    def __init__(self) -> None:
        self._function = self._context = "mine"

    def __call__(self) -> str | None:
        return tracking_id()


def test_a_callable_object_is_carried_whatever_its_attributes_are_called() -> None:
    with tracking("order-7"):
        carried = carry(Greeter())
    assert carried() == "order-7"


def numbers() -> Iterator[int]:
    yield 1


async def asynchronous_numbers() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("function", [numbers, asynchronous_numbers])
def test_a_generator_function_is_refused_since_its_body_runs_where_it_is_iterated(function: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"the generator function {function.__name__}"):
        carry(function)
