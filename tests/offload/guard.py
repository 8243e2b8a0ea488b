"""`python -m pytest -p tests.offload.guard …` counts the blocking calls onebeat makes on an event loop in any tests.

Counted are waits: sleeps, sockets, SQLite, locks. Not files: a scheduler made on a loop reads its time zone.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from blockbuster import BlockBuster, BlockingError, blockbuster

import onebeat

OURS = os.path.dirname(onebeat.__file__) + os.sep
HERE = os.path.dirname(os.path.dirname(__file__)) + os.sep
WAITS = ("time.", "socket.", "ssl.", "sqlite3.", "threading.")
SEEN: Counter[str] = Counter()
wrap = blockbuster._wrap_blocking


def noting(modules: Any, excluded: Any, function: Callable[..., Any], name: str, *rest: Any) -> Callable[..., Any]:
    """A function that notes who makes it wait on a loop, and waits all the same: no test goes another way."""
    checked = wrap(modules, excluded, function, name, *rest)

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return checked(*args, **kwargs)
        except BlockingError:
            frame = sys._getframe(1)
            while frame.f_back is not None and not frame.f_code.co_filename.startswith((OURS, HERE)):
                frame = frame.f_back
            if frame.f_code.co_filename.startswith(OURS):
                SEEN[f"{name}\n{''.join(traceback.format_stack(frame, 6))}"] += 1
            return function(*args, **kwargs)

    return call


@pytest.fixture(scope="session", autouse=True)
def _waits_are_noted() -> Iterator[None]:
    blockbuster._wrap_blocking = noting  # type: ignore[assignment]  # takes whatever that takes
    buster = BlockBuster("onebeat")
    buster.functions = {name: one for name, one in buster.functions.items() if name.startswith(WAITS)}
    buster.activate()
    yield
    buster.deactivate()
    blockbuster._wrap_blocking = wrap


def pytest_sessionfinish(session: pytest.Session) -> None:
    if SEEN:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"blocking calls of onebeat on an event loop: {SEEN.total()}")
    for stack, times in SEEN.most_common():
        terminalreporter.write_line(f"{times} times {stack}")
