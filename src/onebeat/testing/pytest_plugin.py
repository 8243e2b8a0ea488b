"""The pytest plugin: fixtures `beat` and `sync_beat`, marker `onebeat`; the engine is loaded when they are used."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from onebeat.scheduler.scheduler import Scheduler
    from onebeat.testing.kit import SyncTestScheduler, TestScheduler

NAMED = "onebeat_scheduler"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the setting that names the scheduler."""
    parser.addini(NAMED, "the scheduler that the fixture `beat` runs, as module:attribute", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Add the marker."""
    config.addinivalue_line("markers", "onebeat(now=…, workers=…, …): the arguments of TestScheduler for `beat`")


@pytest.fixture
def onebeat_scheduler(request: pytest.FixtureRequest) -> Scheduler:
    """The application's scheduler: the one that the setting names, unless a fixture of this name returns another."""
    return scheduler_named(str(request.config.getini(NAMED)))


def scheduler_named(name: str) -> Scheduler:
    """Return the scheduler `module:attribute`; raises `UsageError` where there is none."""
    if not name:
        raise pytest.UsageError(
            f"the fixture `beat` does not know the scheduler; set {NAMED} = module:attribute in pytest's settings, "
            f"or write a fixture {NAMED} that returns it"
        )
    try:
        found: Scheduler = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise pytest.UsageError(f"{NAMED} = {name!r} names no scheduler: {error}; give module:attribute") from error
    return found


@pytest.fixture
def beat(request: pytest.FixtureRequest, onebeat_scheduler: Scheduler) -> Iterator[TestScheduler]:
    """The scheduler in virtual time, for an asynchronous test: `await beat.advance(hours=1)`."""
    kit = _kit(request, onebeat_scheduler)
    with kit:
        yield kit


@pytest.fixture
def sync_beat(request: pytest.FixtureRequest, onebeat_scheduler: Scheduler) -> Iterator[SyncTestScheduler]:
    """The scheduler in virtual time, for a test without an event loop: `sync_beat.advance(hours=1)`."""
    with _kit(request, onebeat_scheduler) as kit:
        yield kit


def _kit(request: pytest.FixtureRequest, scheduler: Scheduler) -> TestScheduler:
    """Return a kit with the arguments of the markers; that of the test goes before that of its class and module."""
    from onebeat.testing.kit import TestScheduler

    options: dict[str, Any] = {}
    for marker in request.node.iter_markers("onebeat"):
        if marker.args:
            raise pytest.UsageError("the marker onebeat takes named arguments: @pytest.mark.onebeat(now=…, workers=…)")
        options = {**marker.kwargs, **options}
    return TestScheduler(scheduler, **options)
