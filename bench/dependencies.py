"""Microseconds to resolve and close the dependencies of one run, onebeat's resolver beside FastAPI's own solver.

`python -m bench.dependencies`. Both resolve the same functions in one process, in turns of 500 runs; a figure is the
best turn of seven. No job is stored and no request is served: only the dependencies are measured.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Annotated, Any
from uuid import UUID

from fastapi.dependencies.utils import get_dependant, solve_dependencies

from fastapi import Depends, Request
from onebeat.engine.dependencies import DependencyResolver
from onebeat.tasks.context import JobContext
from onebeat.tasks.signature import Signature

RUNS, TURNS = 500, 7
Run = Callable[[], Awaitable[None]]


async def get_settings() -> int:
    return 1


async def get_session(settings: Annotated[int, Depends(get_settings)]) -> AsyncIterator[int]:
    yield settings


def in_a_thread() -> int:
    return 1


async def one_async(settings: Annotated[int, Depends(get_settings)]) -> None: ...
async def one_yield(session: Annotated[int, Depends(get_session)]) -> None: ...
async def one_thread(value: Annotated[int, Depends(in_a_thread)]) -> None: ...


def by_onebeat(function: Callable[..., Any]) -> Run:
    tree = Signature(function, "bench").dependencies
    resolver = DependencyResolver(dict)
    context = JobContext(id=UUID(int=1), attempt=1, task="bench", tracking_id="bench", fence=1)

    async def run() -> None:
        async with AsyncExitStack() as outer, AsyncExitStack() as inner:
            await resolver.resolve(tree, context, (outer, inner))

    return run


def by_fastapi(function: Callable[..., Any]) -> Run:
    tree = get_dependant(path="/", call=function)
    scope: dict[str, Any] = {"type": "http", "path_params": {}, "query_string": b"", "headers": []}

    async def run() -> None:
        async with AsyncExitStack() as outer, AsyncExitStack() as inner:
            request = Request(scope | {"fastapi_inner_astack": outer, "fastapi_function_astack": inner})
            await solve_dependencies(request=request, dependant=tree, async_exit_stack=outer, embed_body_fields=False)

    return run


async def turn(run: Run) -> float:
    began = time.perf_counter()
    for _ in range(RUNS):
        await run()
    return (time.perf_counter() - began) / RUNS * 1e6


async def main() -> None:
    for function in (one_async, one_yield, one_thread):
        solvers = {"onebeat": by_onebeat(function), "FastAPI": by_fastapi(function)}
        best = dict.fromkeys(solvers, float("inf"))
        for _ in range(TURNS):
            for name, run in solvers.items():
                best[name] = min(best[name], await turn(run))
        print(f"{function.__name__:12}" + "".join(f"  {name} {best[name]:7.1f} µs" for name in solvers), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
