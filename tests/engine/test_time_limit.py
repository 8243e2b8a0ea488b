"""A limit of time for a coroutine: a timer only for one that waits, and every step as without it."""

from __future__ import annotations

import asyncio

import pytest

from onebeat.engine.time_limit import Limited


class Timers:
    """Counts the timers that were started and those that were cancelled."""

    def __init__(self) -> None:
        self.started = self.cancelled = 0

    def __call__(self) -> Timers:
        self.started += 1
        return self

    def cancel(self) -> None:
        self.cancelled += 1


async def test_what_ends_at_once_starts_no_timer() -> None:
    async def quick() -> int:
        return 7

    async def failing() -> None:
        raise ValueError("no")

    timers = Timers()
    assert await Limited(quick(), timers) == 7
    with pytest.raises(ValueError, match="no"):
        await Limited(failing(), timers)
    assert timers.started == 0


async def test_what_waits_has_one_timer_that_is_cancelled_at_its_end() -> None:
    async def slow() -> str:
        for _ in range(3):
            await asyncio.sleep(0)
        return (await asyncio.gather(asyncio.sleep(0, "a"), asyncio.sleep(0, "b")))[1]

    timers = Timers()
    assert await Limited(slow(), timers) == "b"
    assert (timers.started, timers.cancelled) == (1, 1)


async def test_a_cancel_is_raised_where_the_coroutine_waits_which_may_clean_up_and_wait_again() -> None:
    steps: list[str] = []

    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            steps.append("cancelled")
            await asyncio.sleep(0)
            steps.append("cleaned")
        await asyncio.sleep(0)
        return "went on"

    timers = Timers()

    async def driven() -> str:
        return await Limited(stubborn(), timers)

    task = asyncio.create_task(driven())
    await asyncio.sleep(0)
    task.cancel()
    assert await task == "went on"
    assert steps == ["cancelled", "cleaned"]
    assert timers.cancelled == 1


async def test_a_coroutine_that_swallows_its_cancel_and_returns_at_once_gives_its_value() -> None:
    async def swallows() -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return 5
        return 0

    async def driven() -> int:
        return await Limited(swallows(), Timers())

    task = asyncio.create_task(driven())
    await asyncio.sleep(0)
    task.cancel()
    assert await task == 5


def test_closing_it_closes_the_coroutine() -> None:
    closed: list[bool] = []

    async def waits() -> None:
        try:
            await asyncio.sleep(1)
        finally:
            closed.append(True)

    async def driven() -> None:
        await Limited(waits(), Timers())

    loop = asyncio.new_event_loop()
    coroutine = driven()

    async def step() -> None:
        coroutine.send(None)

    loop.run_until_complete(step())
    coroutine.close()
    loop.close()
    assert closed == [True]
