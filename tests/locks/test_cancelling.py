"""A loss beside what else cancels: timeouts, task groups and cancel scopes, inside the body and around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from onebeat.errors import LeaseLost
from onebeat.locks import LocksOn
from onebeat.locks.lease import HeldLease
from tests.locks.memory_backend import MemoryBackend, MemoryStore

WITHIN = 20.0  # seconds


class Losing:
    """A lock in memory, and the moment of its loss."""

    def __init__(self, locks: LocksOn[MemoryBackend]) -> None:
        self.locks = locks
        self.lease: HeldLease | None = None

    @asynccontextmanager
    async def held(self) -> AsyncIterator[HeldLease]:
        """Held by the task that enters."""
        async with self.locks.lock("a", wait=0) as self.lease:
            yield self.lease

    def lose(self) -> None:
        """As the heartbeat thread would."""
        assert self.lease is not None
        self.lease._hold.lost("a test took it")


@pytest.fixture
async def losing() -> AsyncIterator[Losing]:
    async with LocksOn(MemoryBackend(MemoryStore())) as locks:
        yield Losing(locks)


def cancelling() -> int:
    """How many requests to cancel this task are open."""
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


def soon(act: Callable[[], object]) -> None:
    """In the next turn of the loop, when the caller waits."""
    asyncio.get_running_loop().call_soon(act)


async def for_ever() -> None:
    await asyncio.Event().wait()


async def together(*work: Coroutine[Any, Any, None]) -> None:
    async with asyncio.TaskGroup() as group:
        for each in work:
            group.create_task(each)


async def test_a_loss_leaves_no_request_to_cancel_behind(losing: Losing) -> None:
    async def held() -> None:
        async with losing.held():
            soon(losing.lose)
            await for_ever()

    with pytest.raises(LeaseLost, match="a test took it"):
        await held()
    assert cancelling() == 0
    async with asyncio.timeout(WITHIN):
        await asyncio.sleep(0)  # the task goes on as before, and its next timeout is its own
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await for_ever()


async def test_a_body_that_eats_its_cancel_is_told_at_its_end(losing: Losing) -> None:
    async def held() -> None:
        async with losing.held():
            soon(losing.lose)
            try:
                await for_ever()
            except asyncio.CancelledError:
                pass  # what a careless library does

    with pytest.raises(LeaseLost):
        await held()
    assert cancelling() == 0


async def test_an_error_of_the_cancelled_body_comes_through_and_names_the_loss(losing: Losing) -> None:
    async def held() -> None:
        async with losing.held():
            soon(losing.lose)
            try:
                await for_ever()
            finally:
                _ = 1 / 0

    with pytest.raises(ZeroDivisionError) as raised:
        await held()
    assert "lock 'a'" in raised.value.__notes__[0]
    assert "a test took it" in raised.value.__notes__[0]
    assert cancelling() == 0


async def test_a_timeout_around_the_lock_stays_a_timeout(losing: Losing) -> None:
    async def held() -> None:
        async with asyncio.timeout(0.01), losing.held():
            await for_ever()

    with pytest.raises(TimeoutError):
        await held()
    assert cancelling() == 0
    async with losing.held():
        pass  # it was released


async def test_a_timeout_and_a_loss_at_once_are_a_timeout(losing: Losing) -> None:
    async def held() -> None:
        async with asyncio.timeout(None) as limit, losing.held():
            soon(lambda: limit.reschedule(0))
            soon(losing.lose)
            try:
                await for_ever()
            finally:
                async with asyncio.timeout(WITHIN):
                    while cancelling() < 2:  # until both have asked
                        await asyncio.sleep(0)

    with pytest.raises(TimeoutError):
        await held()
    assert cancelling() == 0


async def test_a_timeout_inside_the_body_does_not_take_the_loss_for_its_own(losing: Losing) -> None:
    async def held() -> None:
        async with losing.held(), asyncio.timeout(WITHIN):
            soon(losing.lose)
            await for_ever()

    with pytest.raises(LeaseLost):
        await held()
    assert cancelling() == 0


async def test_a_task_group_in_the_body_ends_with_the_lease(losing: Losing) -> None:
    ended = []

    async def child() -> None:
        try:
            await for_ever()
        finally:
            ended.append("child")

    async def held() -> None:
        async with losing.held(), asyncio.TaskGroup() as group:
            group.create_task(child())
            group.create_task(child())
            await asyncio.sleep(0)
            soon(losing.lose)

    with pytest.raises(LeaseLost):
        await held()
    assert ended == ["child", "child"]
    assert cancelling() == 0


async def test_a_task_group_around_hears_of_the_loss_as_of_any_error(losing: Losing) -> None:
    async def child() -> None:
        async with losing.held():
            soon(losing.lose)
            await for_ever()

    with pytest.raises(ExceptionGroup) as raised:
        await together(child(), for_ever())
    assert raised.group_contains(LeaseLost)


async def test_a_sibling_that_fails_cancels_the_holder_who_releases(losing: Losing) -> None:
    entered = asyncio.Event()

    async def child() -> None:
        async with losing.held():
            entered.set()
            await for_ever()

    async def fails() -> None:
        await entered.wait()
        _ = 1 / 0

    with pytest.raises(ExceptionGroup) as raised:
        await together(child(), fails())
    assert raised.group_contains(ZeroDivisionError)
    assert not raised.group_contains(LeaseLost)
    async with asyncio.timeout(WITHIN), losing.locks.lock("a"):
        pass


async def test_a_cancel_scope_of_anyios_around_the_lock_ends_where_it_should(losing: Losing) -> None:
    with anyio.move_on_after(0.01) as scope:
        async with losing.held():
            await for_ever()
    assert scope.cancelled_caught
    assert cancelling() == 0
    async with asyncio.timeout(WITHIN), losing.locks.lock("a"):
        pass  # it was released, although each wait in that scope is cancelled


async def test_a_cancel_scope_and_a_loss_at_once_are_the_scopes(losing: Losing) -> None:
    with anyio.CancelScope() as scope:
        async with losing.held():
            soon(losing.lose)
            soon(scope.cancel)
            await for_ever()
    assert scope.cancelled_caught
    assert cancelling() == 0


async def test_a_cancel_scope_of_anyios_in_the_body_does_not_take_the_loss_for_its_own(losing: Losing) -> None:
    async def scoped() -> None:
        with anyio.move_on_after(WITHIN):
            soon(losing.lose)
            await anyio.sleep_forever()

    async def grouped() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            soon(losing.lose)
            await anyio.sleep_forever()

    async def held(body: Callable[[], Awaitable[None]]) -> None:
        async with losing.held():
            await body()

    for body in (scoped, grouped):
        with pytest.raises(LeaseLost):
            await held(body)
        assert cancelling() == 0
