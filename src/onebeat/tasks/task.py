"""A task: a registered function with its options, its signature check; the registry."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property, update_wrapper
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, Protocol, TypeVar

from onebeat.errors import ConfigurationError, DuplicateTask, InvalidArguments, NotStarted, UnknownTask
from onebeat.model.checks import (
    Seconds,
    aware_us,
    check_name,
    check_names,
    check_priority,
    check_retry,
    check_tag,
    duration,
)
from onebeat.tasks.placement import RunIn, check_placement
from onebeat.tasks.signature import Signature
from onebeat.timing.backoff import Retry
from onebeat.tracking.ids import check_tracking_id

if TYPE_CHECKING:
    from onebeat.model.info import JobInfo

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """How jobs of a task run unless a call says otherwise. Durations are microseconds; None: the default."""

    queue: str = "default"
    priority: int = 0
    retry: Retry = field(default_factory=Retry)
    timeout: int | None = None
    run_in: RunIn = "auto"
    at_most_once: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """What one call changes; None leaves the task's own."""

    delay: int | None = None
    run_at: int | None = None
    priority: int | None = None
    queue: str | None = None
    retry: Retry | None = None
    timeout: int | None = None
    tracking_id: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """A described job: task, packed arguments and options; storing it is `enqueue_many`'s work."""

    task: Task[Any, R]
    args: str
    options: CallOptions = CallOptions()


class Enqueuer(Protocol):
    """Stores calls: a scheduler."""

    def owns(self, task: Task[Any, Any]) -> bool:
        """Whether this scheduler includes the task."""

    async def enqueue_calls(self, calls: Sequence[Call[Any]]) -> list[JobInfo]:
        """Store the calls in one transaction."""

    def enqueue_calls_sync(self, calls: Sequence[Call[Any]]) -> list[JobInfo]:
        """The same from a thread or a script."""


active: ContextVar[Enqueuer | None] = ContextVar("onebeat_scheduler", default=None)
started: list[Enqueuer] = []  # schedulers running in this process


class Task(Generic[P, R]):
    """A registered function. Calling it calls the plain function; `enqueue` makes a job of the call."""

    def __init__(
        self, function: Callable[P, R], *, name: str, settings: TaskSettings, aliases: Iterable[str] = ()
    ) -> None:
        self.function = function
        self.name = check_name(name, "task name")
        self.settings = settings
        self.aliases = check_names(aliases, "aliases")
        self.signature = Signature(function, name)
        self._options = CallOptions()
        update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    @cached_property
    def is_async(self) -> bool:
        """Whether the plain function is a coroutine function."""
        function = inspect.unwrap(self.function)
        return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)

    @cached_property
    def runs_in(self) -> Literal["loop", "thread", "process"]:
        """Where it runs: a sync function never runs on the event loop unless it says so."""
        if self.settings.run_in != "auto":
            return self.settings.run_in
        return "loop" if self.is_async else "thread"

    def options(
        self,
        *,
        delay: Seconds | None = None,
        run_at: datetime | None = None,
        priority: int | None = None,
        queue: str | None = None,
        retry: Retry | None = None,
        timeout: Seconds | None = None,
        tracking_id: str | None = None,
        tags: Iterable[str] | None = None,
    ) -> Task[P, R]:
        """A bound copy that enqueues with these options. `delay`: seconds or a timedelta; `run_at`: aware datetime.

        What an earlier `options()` said stays, unless it is said anew; `delay` and `run_at` take each other's place.
        """
        if delay is not None and run_at is not None:
            raise InvalidArguments("delay= and run_at= both say when to run; give one")
        before = self._options
        if delay is not None or run_at is not None:
            before = replace(before, delay=None, run_at=None)
        said: dict[str, Any] = {
            "delay": None if delay is None else duration(delay, "delay"),
            "run_at": None if run_at is None else aware_us(run_at, "run_at"),
            "priority": None if priority is None else check_priority(priority),
            "queue": None if queue is None else check_name(queue, "queue"),
            "retry": None if retry is None else self._one_start(check_retry(retry)),
            "timeout": None if timeout is None else duration(timeout, "timeout", least=1),
            "tracking_id": check_tracking_id(tracking_id),
            "tags": None if tags is None else check_names(tags, "tags", check_tag),
        }
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy._options = replace(before, **{name: value for name, value in said.items() if value is not None})
        return copy

    def _one_start(self, retry: Retry) -> Retry:
        if self.settings.at_most_once:
            raise ConfigurationError(
                f"task {self.name!r} is at_most_once: one start, whatever happens; leave out retry="
            )
        return retry

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Describe a job without storing it; raises `InvalidArguments` when the arguments do not fit."""
        return Call(self, self.signature.pack(args, kwargs), self._options)

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> JobInfo:
        """Store a job for this call and return it. Raises `InvalidArguments`, `NotStarted`, `DatabaseUnavailable`."""
        (info,) = await self._enqueuer().enqueue_calls([self.call(*args, **kwargs)])
        return info

    def enqueue_sync(self, *args: P.args, **kwargs: P.kwargs) -> JobInfo:
        """`enqueue` from a thread, a sync route or a script; blocks for one round trip."""
        (info,) = self._enqueuer().enqueue_calls_sync([self.call(*args, **kwargs)])
        return info

    async def enqueue_many(self, calls: Iterable[Call[R] | tuple[Any, ...]]) -> list[JobInfo]:
        """Store many jobs in one transaction; items are `task.call(...)` or tuples of positional arguments."""
        ready = [self._ready(item) for item in calls]
        enqueuer = self._enqueuer()
        for other in {call.task.name: call.task for call in ready}.values():
            if not enqueuer.owns(other):
                raise UnknownTask(f"{enqueuer!r}, which stores these jobs, does not include task {other.name!r}")
        return await enqueuer.enqueue_calls(ready)

    def _ready(self, item: Call[R] | tuple[Any, ...]) -> Call[R]:
        if isinstance(item, Call):
            return item
        if not isinstance(item, tuple | list):
            raise InvalidArguments(
                f"{self.name}: enqueue_many takes tuples of arguments, such as [(1,), (2,)], or calls made by "
                f"{self.name}.call(…); {item!r:.60} is neither"
            )
        return Call(self, self.signature.pack(item, {}), self._options)

    def _enqueuer(self) -> Enqueuer:
        current = active.get()
        if current is not None and current.owns(self):
            return current
        owners = [scheduler for scheduler in started if scheduler.owns(self)]
        if len(owners) == 1:
            return owners[0]
        if owners:
            raise ConfigurationError(
                f"task {self.name!r} is included by {len(owners)} running schedulers: {owners!r}; "
                "enqueue inside a request or job of one of them"
            )
        raise NotStarted(
            f"task {self.name!r} cannot be enqueued: no scheduler that includes it is running. Start one: "
            "`install(app, scheduler)` and serve the app, `async with scheduler:`, or `with scheduler:` in a script"
        )


class Registry:
    """Tasks by name and alias; names are what the database stores."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task[Any, Any]] = {}
        self._aliases: dict[str, Task[Any, Any]] = {}

    def add(self, task: Task[Any, Any]) -> None:
        """Register; raises `DuplicateTask` when the name or an alias is taken by another function."""
        for name in (task.name, *task.aliases):
            other = self._tasks.get(name) or self._aliases.get(name)
            if other is not None and other is not task:
                raise DuplicateTask(
                    f"two tasks are named {name!r}: {_where(other)} and {_where(task)}; give one of them name="
                )
        self._tasks[task.name] = task
        self._aliases.update(dict.fromkeys(task.aliases, task))

    def get(self, name: str) -> Task[Any, Any]:
        """The task of that name or alias; raises `UnknownTask`."""
        task = self._tasks.get(name) or self._aliases.get(name)
        if task is None:
            raise UnknownTask(
                f"no task named {name!r} is registered here; known: {', '.join(sorted(self._tasks)) or 'none'}"
            )
        return task

    def names(self) -> tuple[str, ...]:
        """Every name and alias a job row may carry for this process to run it."""
        return tuple(sorted({*self._tasks, *self._aliases}))

    def __iter__(self) -> Iterator[Task[Any, Any]]:
        return iter(self._tasks.values())

    def __contains__(self, task: object) -> bool:
        return (
            isinstance(task, Task)
            and (known := self._tasks.get(task.name)) is not None
            and (known.function is task.function)
        )


def make_settings(
    *,
    function: Callable[..., Any],
    name: str,
    queue: str,
    priority: int,
    retry: Retry | None,
    timeout: Seconds | None,
    run_in: RunIn,
    at_most_once: bool,
) -> TaskSettings:
    """Check the options of a declaration; raises `ConfigurationError` with what to change."""
    check_placement(function, name, run_in)
    if at_most_once and retry is not None:
        raise ConfigurationError(f"task {name!r} is at_most_once: one start, whatever happens; leave out retry=")
    settings = TaskSettings(
        queue=check_name(queue, "queue"),
        priority=check_priority(priority),
        timeout=None if timeout is None else duration(timeout, "timeout", least=1),
        run_in=run_in,
        at_most_once=at_most_once,
    )
    if at_most_once:
        return replace(settings, retry=Retry(attempts=1))
    return settings if retry is None else replace(settings, retry=check_retry(retry))


def default_name(function: Callable[..., Any]) -> str:
    """The function's own name; one made inside a function needs `name=`."""
    qualified = getattr(function, "__qualname__", "")
    name = getattr(function, "__name__", "")
    if not name or "<locals>" in qualified or name == "<lambda>":
        raise ConfigurationError(
            f'{qualified or function!r} has no lasting name; give the task one: @scheduler.task(name="…")'
        )
    return str(name)


def _where(task: Task[Any, Any]) -> str:
    function = inspect.unwrap(task.function)
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', '?')}"
