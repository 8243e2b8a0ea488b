"""Resolves what a task depends on for one run, and closes it when the run has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Any

from onebeat.offload.limits import Limit
from onebeat.offload.pool.calls import AwaitedCall
from onebeat.offload.pool.lanes import Lane
from onebeat.offload.threads import wait_until_ended
from onebeat.tasks.context import JobContext
from onebeat.tasks.dependencies import Dependency, Overrides

UNBOUNDED = 1_000_000
THREADS = Lane("dependencies", width=40, queue=UNBOUNDED)  # as many as Starlette gives the dependencies of requests
CLEAN_UP = Lane("clean-up", width=UNBOUNDED)  # never waits: what holds the other threads may wait for this clean-up


class DependencyResolver:
    """Resolves the dependencies of tasks as FastAPI resolves those of a route, without a request.

    `overrides` is asked at each run, as a test may set an override at any time.
    """

    def __init__(self, overrides: Overrides) -> None:
        self._overrides = overrides
        self._replaced: dict[Dependency, Dependency] = {}  # with the last override of each

    async def resolve(
        self, tree: Iterable[Dependency], context: JobContext, stacks: tuple[AsyncExitStack, AsyncExitStack]
    ) -> dict[str, Any]:
        """Return the values of a task's parameters by name.

        The first of `stacks` closes what lives as long as a request would, the second what ends with the function.
        """
        return await _Run(self, context, stacks).values(tree)

    def in_force(self, dependency: Dependency) -> Dependency:
        """Return the dependency, or what the application overrides it with."""
        overrides = self._overrides()
        if not overrides:
            return dependency
        call = overrides.get(dependency.call, dependency.call)
        if call is dependency.call:
            return dependency
        replaced = self._replaced.get(dependency)
        if replaced is None or replaced.call is not call:
            replaced = self._replaced[dependency] = dependency.replaced(call)
        return replaced


class _Run:
    """The dependencies of one run: each is made once, unless it says otherwise."""

    __slots__ = ("_context", "_made", "_resolver", "_stacks")

    def __init__(
        self, resolver: DependencyResolver, context: JobContext, stacks: tuple[AsyncExitStack, AsyncExitStack]
    ) -> None:
        self._resolver = resolver
        self._context = context
        self._stacks = stacks
        self._made: dict[Any, Any] = {}

    async def values(self, dependencies: Iterable[Dependency]) -> dict[str, Any]:
        return {one.name: await self._value(one) for one in dependencies}

    async def _value(self, declared: Dependency) -> Any:
        used = self._resolver.in_force(declared)
        values = await self.values(used.needs) if used.needs else {}
        if used.use_cache and used.key in self._made:
            return self._made[used.key]
        for name in used.contexts:
            values[name] = self._context
        for name, make in used.security_scopes:
            values[name] = make()
        value = await self._make(used, values)
        self._made.setdefault(used.key, value)
        return value

    async def _make(self, used: Dependency, values: dict[str, Any]) -> Any:
        limit = used.concurrency
        if used.manager is not None:
            stack = self._stacks[used.closes_first]
            if limit is not None:
                await stack.enter_async_context(limit.get_semaphore())
            if used.kind == "async generator":
                return await stack.enter_async_context(used.manager(**values))
            return await stack.enter_async_context(_OnThreads(used.manager(**values)))
        if limit is None:
            return await _call(used, values)
        async with limit.get_semaphore():
            return await _call(used, values)


async def _call(used: Dependency, values: dict[str, Any]) -> Any:
    if used.kind == "async":
        return await used.call(**values)
    return await _in_thread(THREADS, partial(used.call, **values))


class _OnThreads:
    """A synchronous context manager that is entered and left on threads; a cancel waits for the thread."""

    __slots__ = ("_entered", "_manager")

    def __init__(self, manager: AbstractContextManager[Any]) -> None:
        self._manager = manager
        self._entered = False

    async def __aenter__(self) -> Any:
        try:
            return await _in_thread(THREADS, self._enter)
        except BaseException as error:
            if self._entered:  # the cancel came while the thread made the value, which must be given back
                await self.__aexit__(type(error), error, error.__traceback__)
            raise

    def _enter(self) -> Any:
        value = self._manager.__enter__()
        self._entered = True
        return value

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return bool(await _in_thread(CLEAN_UP, partial(self._manager.__exit__, kind, error, trace)))


async def _in_thread(lane: Lane, function: Callable[[], Any]) -> Any:
    """Run a function on a thread. When the job is told to end meanwhile, wait for the function first."""
    call = AwaitedCall(function, (), {}, Limit())
    lane.submit(call)
    try:
        return await call.future
    except asyncio.CancelledError:
        if not lane.withdraw(call) and not call.ended:
            call.stop("its job was told to end")
            await wait_until_ended(call)
        raise
