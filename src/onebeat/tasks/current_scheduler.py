"""Which scheduler stores the jobs of a task: the one active in this context, else the only one that runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from onebeat.errors import ConfigurationError, NotStarted

if TYPE_CHECKING:
    from onebeat.model.info import JobInfo
    from onebeat.tasks.task import Call, Task


class Enqueuer(Protocol):
    """What tasks need of a scheduler: it stores calls as jobs. Its `repr` names the scheduler in messages."""

    def owns(self, task: Task[Any, Any]) -> bool:
        """Return whether the scheduler includes the task."""

    async def enqueue_calls(self, calls: Sequence[Call[Any]]) -> list[JobInfo]:
        """Store the calls in one transaction, on the scheduler's event loop; raises `NotStarted`."""

    def enqueue_calls_sync(self, calls: Sequence[Call[Any]]) -> list[JobInfo]:
        """Store the calls from a thread or a script; blocks for one round trip. Raises `NotStarted`."""


active: ContextVar[Enqueuer | None] = ContextVar("onebeat_scheduler", default=None)
running: list[Enqueuer] = []  # of the schedulers started in this process


@contextmanager
def activate(enqueuer: Enqueuer) -> Iterator[None]:
    """Make this scheduler the one that enqueues in the current context."""
    token = active.set(enqueuer)
    try:
        yield
    finally:
        active.reset(token)


def enqueuer_of(task: Task[Any, Any]) -> Enqueuer:
    """Return the scheduler that stores jobs of this task: the active one, else the only running one that includes it.

    Raises `NotStarted` when none runs, `ConfigurationError` when several do.
    """
    current = active.get()
    if current is not None and current.owns(task):
        return current
    owners = [enqueuer for enqueuer in running if enqueuer.owns(task)]
    if len(owners) == 1:
        return owners[0]
    if owners:
        raise ConfigurationError(
            f"task {task.name!r} is included by {len(owners)} running schedulers: {owners!r}; "
            "enqueue inside a request or job of one of them"
        )
    raise NotStarted(
        f"task {task.name!r} cannot be enqueued: no scheduler that includes it is running. Start one: "
        "`install(app, scheduler)` and serve the app, `async with scheduler:`, or `with scheduler:` in a script"
    )
