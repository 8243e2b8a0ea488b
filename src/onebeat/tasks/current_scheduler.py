"""Which scheduler stores the jobs of a task: the one active in this context, else the only one that runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

from onebeat.errors import ConfigurationError, NotStarted

if TYPE_CHECKING:
    from onebeat.model.info import JobInfo
    from onebeat.tasks.task import Call, Task


class Enqueuer(Protocol):
    """What tasks need of a scheduler: it stores calls as jobs. Its `repr` names the scheduler in messages."""

    @property
    def has_tasks(self) -> bool:
        """Return whether the scheduler includes any task."""

    def owns(self, task: Task[Any, Any]) -> bool:
        """Return whether the scheduler includes the task."""

    async def enqueue_calls(self, calls: Sequence[Call[Any]]) -> list[JobInfo]:
        """Store the calls in one transaction, on the scheduler's event loop; raises `NotStarted`."""

    def enqueue_calls_sync(self, calls: Sequence[Call[Any]]) -> list[JobInfo]:
        """Store the calls from a thread or a script; blocks for one round trip. Raises `NotStarted`."""


active: ContextVar[Enqueuer | None] = ContextVar("onebeat_scheduler", default=None)
running: list[Enqueuer] = []  # of the schedulers started in this process
made: WeakSet[Enqueuer] = WeakSet()  # of every scheduler of this process, so that errors can name the right one


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
    idle = [enqueuer for enqueuer in made if enqueuer.owns(task)]
    if len(idle) == 1:
        return idle[0]  # it raises `NotStarted` and knows why it does not run
    raise NotStarted(
        f"task {task.name!r} cannot be enqueued: {_who_includes(task, idle)}. Start one that includes it: "
        "`install(app, scheduler)` and serve the app, `async with scheduler:`, or `with scheduler:` in a script"
    )


def _who_includes(task: Task[Any, Any], idle: Sequence[Enqueuer]) -> str:
    if idle:
        return f"none of the {len(idle)} schedulers that include it is running"
    words = "no scheduler that includes it is running"
    if running:
        words += f"; {', '.join(map(repr, running))} runs without it: is scheduler.include(router) missing?"
    return words
