"""TaskRouter: where tasks and schedules are declared, before and apart from any scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, Protocol, TypedDict, TypeVar, Unpack, overload

from onebeat.errors import ConfigurationError, InvalidTrigger, ScheduleExists
from onebeat.model.checks import Seconds, check_name, check_names, check_priority, check_tag, check_text
from onebeat.model.policies import CatchUp, Policies
from onebeat.model.protocols import Trigger
from onebeat.tasks.context import JobContext
from onebeat.tasks.placement import RunIn
from onebeat.tasks.task import Registry, Task, default_name, make_settings
from onebeat.timing.backoff import Retry
from onebeat.timing.clock import seconds_us
from onebeat.timing.triggers import Cron, Every

P = ParamSpec("P")
R = TypeVar("R")


class Decorator(Protocol):
    """What `@task(…)`, `@cron(…)` and `@every(…)` return; a leading `JobContext` parameter is onebeat's to fill."""

    @overload
    def __call__(self, function: Callable[Concatenate[JobContext, P], R], /) -> Task[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R] | Task[P, R], /) -> Task[P, R]: ...


class TaskOptions(TypedDict, total=False):
    """Options of `@task`, and of `@cron` and `@every` beside their schedule's."""

    queue: str
    priority: int
    retry: Retry | None
    timeout: Seconds | None
    run_in: RunIn
    at_most_once: bool
    aliases: Sequence[str]


class ScheduleOptions(TypedDict, total=False):
    """Options of every schedule (API §4). Durations are seconds or timedeltas."""

    misfire_grace: Seconds | None
    catch_up: str | CatchUp
    overlap: str
    jitter: Seconds
    max_fires: int | None
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    queue: str | None
    priority: int | None
    tags: Iterable[str]
    note: str | None


class DeclareOptions(ScheduleOptions, total=False):
    """Options of `@cron` and `@every`: the schedule's and the task's."""

    name: str | None
    retry: Retry | None
    timeout: Seconds | None
    run_in: RunIn
    at_most_once: bool
    aliases: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """A schedule as declared in code; the scheduler fills in its time zone and packs the arguments at start."""

    id: str
    task: Task[Any, Any]
    trigger: Trigger
    policies: Policies
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    queue: str | None = None
    priority: int | None = None
    tags: tuple[str, ...] = ()
    note: str | None = None


def declared(id: str, task: Task[Any, Any], trigger: Trigger, options: ScheduleOptions) -> Declared:
    """Check the options of a schedule; raises `ConfigurationError` with what to change."""
    if not isinstance(task, Task):
        raise ConfigurationError(f"schedule {id!r} needs a task, not {task!r}; decorate it with @scheduler.task")
    _check_trigger(id, trigger)
    unknown = set(options) - set(ScheduleOptions.__annotations__)
    if unknown:
        raise ConfigurationError(
            f"schedule {id!r}: unknown option {', '.join(sorted(unknown))}; "
            f"there are {', '.join(sorted(ScheduleOptions.__annotations__))}"
        )
    policies = Policies(
        misfire_grace=options.get("misfire_grace"),
        catch_up=options.get("catch_up", "latest"),
        overlap=options.get("overlap", "skip"),
        jitter=options.get("jitter", 0),
        max_fires=options.get("max_fires"),
    )
    queue = options.get("queue")
    return Declared(
        id=check_name(id, "schedule id"),
        task=task,
        trigger=trigger,
        policies=policies,
        args=tuple(options.get("args", ())),
        kwargs=dict(options.get("kwargs", {})),
        queue=None if queue is None else check_name(queue, "queue"),
        priority=None if (priority := options.get("priority")) is None else check_priority(priority),
        tags=check_names(options.get("tags", ()), "tags", check_tag),
        note=None if (note := options.get("note")) is None else check_text(note, "note"),
    )


def _check_trigger(id: str, trigger: object) -> None:
    if not isinstance(trigger, Trigger):
        hint = (
            f"Cron({trigger!r:.60})" if isinstance(trigger, str) else "Cron(…), Every(…), At(…), Months(…) or Weeks(…)"
        )
        raise InvalidTrigger(f"schedule {id!r} needs a trigger, not {trigger!r:.60}; write {hint}")


class TaskRouter:
    """Tasks and schedules under a prefix, for `scheduler.include(router)`.

    >>> billing = TaskRouter(prefix="billing")
    >>> @billing.task
    ... async def charge(user_id: int) -> None: ...
    >>> charge.name
    'billing.charge'
    """

    def __init__(self, prefix: str = "", **task_options: Unpack[TaskOptions]) -> None:
        self.prefix = prefix and check_name(prefix, "prefix")
        _refuse_unknown(task_options)
        self._defaults = task_options
        self.registry = Registry()
        self.declared: dict[str, Declared] = {}

    @overload
    def task(
        self,
        function: Callable[Concatenate[JobContext, P], R],
        /,
        *,
        name: str | None = None,
        **options: Unpack[TaskOptions],
    ) -> Task[P, R]: ...

    @overload
    def task(
        self, function: Callable[P, R], /, *, name: str | None = None, **options: Unpack[TaskOptions]
    ) -> Task[P, R]: ...

    @overload
    def task(
        self, function: None = None, /, *, name: str | None = None, **options: Unpack[TaskOptions]
    ) -> Decorator: ...

    def task(self, function: Any = None, /, *, name: str | None = None, **options: Unpack[TaskOptions]) -> Any:
        """Register a function as a task: `@router.task`, `@router.task(queue="mail")` or `router.task(function)`.

        `queue`, `priority` (larger first), `retry`, `timeout` (seconds for each attempt), `run_in` ("auto": async on
        the loop, sync in a thread), `at_most_once`, `aliases` (old names whose rows stay runnable).
        Raises `DuplicateTask` and `ConfigurationError`.
        """
        if function is None:
            return lambda decorated: self._register(decorated, name, options)
        return self._register(function, name, options)

    def _register(self, function: Callable[..., Any], name: str | None, options: TaskOptions) -> Task[Any, Any]:
        if isinstance(function, Task):
            return function
        if not callable(function):
            raise ConfigurationError(f"a task is a function, not {function!r}; decorate one with @scheduler.task")
        merged: dict[str, Any] = {**self._defaults, **options}
        _refuse_unknown(merged)
        own = name if name is not None else default_name(function)
        full = f"{self.prefix}.{own}" if self.prefix else own
        settings = make_settings(
            function=function,
            name=full,
            queue=merged.get("queue", "default"),
            priority=merged.get("priority", 0),
            retry=merged.get("retry"),
            timeout=merged.get("timeout"),
            run_in=merged.get("run_in", "auto"),
            at_most_once=merged.get("at_most_once", False),
        )
        task: Task[Any, Any] = Task(function, name=full, settings=settings, aliases=merged.get("aliases", ()))
        self.registry.add(task)
        return task

    def cron(
        self,
        expr: str,
        *,
        id: str | None = None,
        timezone: str | None = None,
        dst: str = "vixie",
        **options: Unpack[DeclareOptions],
    ) -> Decorator:
        """Declare a function as a task that fires by a cron expression; the id defaults to the task's name.

        `dst` says what becomes of a time that clocks skip or show twice: "vixie", "skip_missing" or "run_both".
        Raises `InvalidCron` with the position of the fault, `ScheduleExists`, `ConfigurationError`.
        """
        return self._scheduling(Cron(expr, timezone=timezone, dst=dst), id, options)

    def every(
        self,
        interval: Seconds | None = None,
        *,
        seconds: float = 0,
        minutes: float = 0,
        hours: float = 0,
        id: str | None = None,
        **options: Unpack[DeclareOptions],
    ) -> Decorator:
        """Declare a function as a task that fires at a fixed interval, aligned to the Unix epoch in UTC."""
        try:
            parts = timedelta(seconds=seconds, minutes=minutes, hours=hours)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidTrigger(f"every(seconds=…, minutes=…, hours=…) takes numbers: {error}") from None
        if (interval is None) == (parts == timedelta()):
            raise ConfigurationError(
                "every() takes one interval: every(30), every(seconds=30), every(timedelta(minutes=5))"
            )
        return self._scheduling(Every(parts if interval is None else _interval(interval)), id, options)

    def _scheduling(self, trigger: Trigger, id: str | None, options: DeclareOptions) -> Decorator:
        def decorate(function: Any, /) -> Any:
            said: dict[str, Any] = dict(options)
            name = said.pop("name", None)
            task = function
            if not isinstance(function, Task):
                chosen = {name: said.pop(name) for name in list(said) if name in TaskOptions.__annotations__}
                task = self._register(function, name, chosen)  # type: ignore[arg-type]  # chosen by their names
            self.declare(id or task.name, task, trigger, **said)
            return task

        return decorate

    def declare(self, id: str, task: Task[Any, Any], trigger: Trigger, **options: Unpack[ScheduleOptions]) -> None:
        """Declare a schedule in code. Raises `ScheduleExists` when the id is declared already."""
        if id in self.declared:
            raise ScheduleExists(f"two schedules are declared with the id {id!r}; give one of them id=")
        self.declared[id] = declared(id, task, trigger, options)


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    unknown = set(options) - set(TaskOptions.__annotations__)
    if unknown:
        known = ", ".join(sorted(TaskOptions.__annotations__))
        raise ConfigurationError(f"unknown task option {', '.join(sorted(unknown))}; there are {known}")


def _interval(value: Seconds) -> timedelta:
    try:
        return timedelta(microseconds=seconds_us(value))
    except (ValueError, OverflowError) as error:
        raise InvalidTrigger(f"every({value!r:.40}): {error}") from None
