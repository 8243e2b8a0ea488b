"""A schedule as code declares it: its options, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, Protocol, TypedDict, cast, get_args

from onebeat.errors import ConfigurationError, InvalidTrigger
from onebeat.model.checks import Seconds, check_name, check_names, check_priority, check_tag, check_text
from onebeat.model.policies import CatchUp, Policies
from onebeat.model.protocols import Trigger
from onebeat.tasks.task import Task

IfExists = Literal["error", "replace", "keep"]
"""What adding a schedule does when its id is taken."""


class ScheduleOptions(TypedDict, total=False):
    """Options of every schedule. Durations are seconds or timedeltas."""

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


@dataclass(frozen=True, slots=True)
class NewSchedule:
    """A schedule for `schedules.add_many`: the arguments of `schedules.add`.

    >>> from onebeat import Cron, NewSchedule
    >>> NewSchedule("report:7", "report", Cron("0 6 * * *"), args=(7,), tags=("customer:7",)).id
    'report:7'
    """

    id: str
    task: Task[Any, Any] | str
    trigger: Trigger
    _: KW_ONLY
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    if_exists: IfExists = "error"
    misfire_grace: Seconds | None = None
    catch_up: str | CatchUp = "latest"
    overlap: str = "skip"
    jitter: Seconds = 0
    max_fires: int | None = None
    queue: str | None = None
    priority: int | None = None
    tags: Iterable[str] = ()
    note: str | None = None

    def options(self) -> ScheduleOptions:
        """Return the options as `declared_schedule` takes them."""
        return cast(ScheduleOptions, {name: getattr(self, name) for name in ScheduleOptions.__annotations__})


def check_if_exists(value: str) -> None:
    """Raise `ConfigurationError` unless `value` says what to do when the id is taken."""
    if value not in get_args(IfExists):
        raise ConfigurationError(f"if_exists={value!r:.40} is unknown; give 'error', 'replace' or 'keep'")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredSchedule:
    """A schedule before it is stored; the scheduler fills in its time zone and packs its arguments at start."""

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


class HasTask(Protocol):
    """A job class: its jobs are those of one task."""

    @classmethod
    def task(cls) -> Task[..., Any]:
        """Return the task."""


TaskLike = Task[..., Any] | type[HasTask]
"""What a schedule runs: a task, or a class of jobs."""


def declared_schedule(id: str, task: TaskLike, trigger: Trigger, options: ScheduleOptions) -> DeclaredSchedule:
    """Return the schedule with its options checked; raises `ConfigurationError` with what to change."""
    if isinstance(task, type) and callable(getattr(task, "task", None)):
        task = task.task()
    if not isinstance(task, Task):
        raise ConfigurationError(f"schedule {id!r} needs a task, not {task!r}; decorate it with @scheduler.task")
    _check_trigger(id, trigger)
    _refuse_unknown(id, options)
    queue, priority, note = options.get("queue"), options.get("priority"), options.get("note")
    return DeclaredSchedule(
        id=check_name(id, "schedule id"),
        task=task,
        trigger=trigger,
        policies=_policies(options),
        args=tuple(options.get("args", ())),
        kwargs=dict(options.get("kwargs", {})),
        queue=None if queue is None else check_name(queue, "queue"),
        priority=None if priority is None else check_priority(priority),
        tags=check_names(options.get("tags", ()), "tags", check_tag),
        note=None if note is None else check_text(note, "note"),
    )


def _check_trigger(id: str, trigger: object) -> None:
    if not isinstance(trigger, Trigger):
        hint = (
            f"Cron({trigger!r:.60})"
            if isinstance(trigger, str)
            else "Cron(…), Every(…), At(…), Days(…), Weeks(…), Months(…) or AnyOf(…)"
        )
        raise InvalidTrigger(f"schedule {id!r} needs a trigger, not {trigger!r:.60}; write {hint}")


def _refuse_unknown(id: str, options: ScheduleOptions) -> None:
    unknown = set(options) - set(ScheduleOptions.__annotations__)
    if unknown:
        raise ConfigurationError(
            f"schedule {id!r}: unknown option {', '.join(sorted(unknown))}; "
            f"there are {', '.join(sorted(ScheduleOptions.__annotations__))}"
        )


def _policies(options: ScheduleOptions) -> Policies:
    return Policies(
        misfire_grace=options.get("misfire_grace"),
        catch_up=options.get("catch_up", "latest"),
        overlap=options.get("overlap", "skip"),
        jitter=options.get("jitter", 0),
        max_fires=options.get("max_fires"),
    )
