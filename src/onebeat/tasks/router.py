"""TaskRouter: declares tasks and schedules, for a scheduler to include."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, Unpack, overload

from onebeat.errors import ConfigurationError, InvalidTrigger
from onebeat.model.checks import Seconds
from onebeat.model.protocols import Trigger
from onebeat.tasks.context import JobContext
from onebeat.tasks.declarations import Declarations
from onebeat.tasks.declared_schedule import ScheduleOptions, TaskLike, declared_schedule
from onebeat.tasks.job import Job, job_base
from onebeat.tasks.placement import RunIn
from onebeat.tasks.task import Task
from onebeat.tasks.task_settings import (
    OnOverrun,
    TaskOptions,
    default_name,
    refuse_method,
)
from onebeat.timing.backoff import Retry
from onebeat.timing.clock import seconds_us
from onebeat.timing.triggers import Cron, Every

P = ParamSpec("P")
R = TypeVar("R")


class TaskDecorator(Protocol):
    """What `@task(…)`, `@cron(…)` and `@every(…)` return.

    Callers do not pass a leading `JobContext` parameter; onebeat does.
    """

    @overload
    def __call__(self, function: Callable[Concatenate[JobContext, P], R], /) -> Task[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R] | Task[P, R], /) -> Task[P, R]: ...


class DeclareOptions(ScheduleOptions, total=False):
    """Options of `@cron` and `@every`: the schedule's and the task's."""

    name: str | None
    retry: Retry | None
    timeout: Seconds | None
    run_in: RunIn
    at_most_once: bool
    on_overrun: OnOverrun
    aliases: Sequence[str]


class TaskRouter(Declarations):
    """Tasks and schedules under a prefix, for `scheduler.include(router)`.

    >>> billing = TaskRouter(prefix="billing")
    >>> @billing.task
    ... async def charge(user_id: int) -> None: ...
    >>> charge.name
    'billing.charge'
    """

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
    ) -> TaskDecorator: ...

    def task(self, function: Any = None, /, *, name: str | None = None, **options: Unpack[TaskOptions]) -> Any:
        """Register a function as a task: `@router.task`, `@router.task(queue="mail")` or `router.task(function)`.

        `queue`, `priority` (the larger runs first), `retry`, `timeout` (seconds for each attempt), `run_in` ("auto":
        async functions on the event loop, sync ones in a thread), `at_most_once`, `aliases` (former names, under
        which jobs are still stored), `on_overrun` ("wait": a run that goes on after its timeout or cancel keeps its job
        running; "replace": its job ends `failed` with the reason `replaced`, and whatever waited for it may start).
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
        refuse_method(function)
        return self._declare_task(function, name if name is not None else default_name(function), options)

    @property
    def Job(self) -> type[Job]:
        """Return the base class of this router's job classes: `class Charge(billing.Job): …`.

        A type checker reads `class Charge(Job, router=billing)`, which means the same.
        """
        return job_base(self)

    def cron(
        self,
        expr: str,
        *,
        id: str | None = None,
        timezone: str | None = None,
        dst: str = "vixie",
        **options: Unpack[DeclareOptions],
    ) -> TaskDecorator:
        """Declare a function as a task that fires by a cron expression; the id defaults to the task's name.

        `dst` says what happens at a time that clocks skip or show twice: "vixie", "skip_missing" or "run_both".
        Raises `InvalidCron` with the position of the error, `ScheduleExists`, `ConfigurationError`.
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
    ) -> TaskDecorator:
        """Declare a function as a task that fires at a fixed interval, aligned to the Unix epoch in UTC.

        The interval is either `interval` (seconds or a timedelta) or the sum of the keywords; `id` defaults to the
        task's name. Raises `InvalidTrigger`, `ScheduleExists`, `ConfigurationError`.
        """
        try:
            parts = timedelta(seconds=seconds, minutes=minutes, hours=hours)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidTrigger(f"every(seconds=…, minutes=…, hours=…) takes numbers: {error}") from None
        if (interval is None) == (parts == timedelta()):
            raise ConfigurationError(
                "every() takes one interval: every(30), every(seconds=30), every(timedelta(minutes=5))"
            )
        return self._scheduling(Every(parts if interval is None else _interval(interval)), id, options)

    def _scheduling(self, trigger: Trigger, id: str | None, options: DeclareOptions) -> TaskDecorator:
        def decorate(function: Any, /) -> Any:
            of_schedule: dict[str, Any] = dict(options)
            name = of_schedule.pop("name", None)
            task = function
            if not isinstance(function, Task):
                of_task = {key: of_schedule.pop(key) for key in list(of_schedule) if key in TaskOptions.__annotations__}
                task = self._register(function, name, of_task)  # type: ignore[arg-type]  # selected by their names
            self.declare(id or task.name, task, trigger, **of_schedule)
            return task

        return decorate

    def declare(self, id: str, task: TaskLike, trigger: Trigger, **options: Unpack[ScheduleOptions]) -> None:
        """Declare a schedule; raises `ScheduleExists` when the id is taken by another one, `ConfigurationError`.

        An equal schedule may be declared again, and one of a task that was declared again replaces the former.
        """
        self._add_schedule(declared_schedule(id, task, trigger, options))


def _interval(value: Seconds) -> timedelta:
    try:
        return timedelta(microseconds=seconds_us(value))
    except (ValueError, OverflowError) as error:
        raise InvalidTrigger(f"every({value!r:.40}): {error}") from None
