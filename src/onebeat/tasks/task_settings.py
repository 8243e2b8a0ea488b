"""How the jobs of a task run: the options of its declaration, checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from onebeat.errors import ConfigurationError
from onebeat.model.checks import Seconds, check_name, check_priority, check_retry, duration
from onebeat.tasks.placement import RunIn, check_placement
from onebeat.timing.backoff import Retry

if TYPE_CHECKING:
    from onebeat.store.connection.callers_session import AsyncCaller, SyncCaller

IfTaken = Literal["keep", "replace"]
"""What an enqueue does when a job holds its unique key: leave that job alone, or give it the arguments and time."""
OnOverrun = Literal["wait", "replace"]
"""What becomes of a job whose run was told to end and goes on: it is waited for, or the job ends without it."""


class TaskOptions(TypedDict, total=False):
    """Options of `@task`; `@cron` and `@every` take them too, beside those of a schedule."""

    queue: str
    priority: int
    retry: Retry | None
    timeout: Seconds | None
    run_in: RunIn
    at_most_once: bool
    on_overrun: OnOverrun
    aliases: Sequence[str]


class CallChanges(TypedDict, total=False):
    """What `options()` changes for one job."""

    delay: Seconds | None
    run_at: datetime | None
    priority: int | None
    queue: str | None
    retry: Retry | None
    timeout: Seconds | None
    tracking_id: str | None
    tags: Iterable[str] | None
    unique_key: str | None
    unique_for: Seconds | None
    if_exists: IfTaken | None
    session: AsyncCaller | SyncCaller | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """How jobs of a task run unless a call says otherwise. `timeout`: microseconds; None takes the default timeout."""

    queue: str = "default"
    priority: int = 0
    retry: Retry = field(default_factory=Retry)
    timeout: int | None = None
    run_in: RunIn = "auto"
    at_most_once: bool = False
    on_overrun: OnOverrun = "wait"


def make_settings(function: Callable[..., Any], name: str, options: TaskOptions) -> TaskSettings:
    """Return the checked settings of the task `name`; raises `ConfigurationError` with what to change."""
    run_in, retry, timeout = options.get("run_in", "auto"), options.get("retry"), options.get("timeout")
    at_most_once, on_overrun = options.get("at_most_once", False), options.get("on_overrun", "wait")
    check_placement(function, name, run_in)
    if at_most_once:
        refuse_retry(name, retry)
    if on_overrun not in ("wait", "replace"):
        raise ConfigurationError(f"task {name!r}: on_overrun={on_overrun!r:.40}; give 'wait' or 'replace'")
    settings = TaskSettings(
        queue=check_name(options.get("queue", "default"), "queue"),
        priority=check_priority(options.get("priority", 0)),
        timeout=None if timeout is None else duration(timeout, "timeout", least=1),
        run_in=run_in,
        at_most_once=at_most_once,
        on_overrun=on_overrun,
    )
    if at_most_once:
        return replace(settings, retry=Retry(attempts=1))
    return settings if retry is None else replace(settings, retry=check_retry(retry))


def refuse_retry(name: str, retry: Retry | None) -> None:
    """Raise `ConfigurationError` when an `at_most_once` task is given a retry."""
    if retry is not None:
        raise ConfigurationError(f"task {name!r} is at_most_once: one start, whatever happens; leave out retry=")


def refuse_unknown(options: Mapping[str, Any]) -> None:
    """Raise `ConfigurationError` when a name among `options` is not an option of a task."""
    unknown = set(options) - set(TaskOptions.__annotations__)
    if unknown:
        known = ", ".join(sorted(TaskOptions.__annotations__))
        raise ConfigurationError(f"unknown task option {', '.join(sorted(unknown))}; there are {known}")


def default_name(function: Callable[..., Any]) -> str:
    """Return the function's own name; raises `ConfigurationError` for a lambda and for an object without a name."""
    name = getattr(function, "__name__", "")
    if not name or name == "<lambda>":
        raise ConfigurationError(
            f"{getattr(function, '__qualname__', '') or function!r} has no name of its own; "
            'give the task one: @scheduler.task(name="…")'
        )
    return str(name)


def refuse_method(function: Callable[..., Any]) -> None:
    """Raise `ConfigurationError` for a function of a class that takes `self` or `cls`: a job has no such object."""
    qualified = str(getattr(function, "__qualname__", ""))
    owner = qualified.rpartition(".")[0]
    if not owner or owner.endswith("<locals>"):
        return
    try:
        first = next(iter(inspect.signature(function).parameters), None)
    except (TypeError, ValueError):  # a class or a built-in function without a signature; its annotations are read next
        return
    if first in ("self", "cls"):
        raise ConfigurationError(
            f"{qualified} is a method, and a job has no {first!r} to call it with; declare a function outside the "
            f"class that makes or finds the object, or the bound method of one object: scheduler.task(object.method)"
        )
