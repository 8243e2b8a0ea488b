"""What asyncio says about a failed task that nobody awaited has the tracking id of that task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def orphans_tracked() -> Iterator[None]:
    """While this is open, the running loop's exception handler is called in the context of the task it speaks of.

    The handler found stays in charge of what is said. Python 3.11 does not tell a task's context: no change there.
    Without an asyncio loop it does nothing.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        yield
        return
    former = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        def speak() -> None:
            if former is None:
                loop.default_exception_handler(context)
            else:
                former(loop, context)

        _in_context_of(context.get("task") or context.get("future"), speak)

    loop.set_exception_handler(handle)
    try:
        yield
    finally:
        if loop.get_exception_handler() is handle:  # somebody else's, set meanwhile, stays
            loop.set_exception_handler(former)


def _in_context_of(task: Any, speak: Callable[[], None]) -> None:
    known = getattr(task, "get_context", None)
    if known is None:
        speak()
    else:
        known().copy().run(speak)  # a copy, since the context itself may be in use
