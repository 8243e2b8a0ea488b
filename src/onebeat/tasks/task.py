"""Task: a registered function, and the calls of it that become jobs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property, update_wrapper
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar, get_args

from onebeat.errors import ConfigurationError, InvalidArguments, UnknownTask
from onebeat.model.checks import (
    Seconds,
    aware_us,
    check_name,
    check_names,
    check_priority,
    check_retry,
    check_tag,
    check_text,
    duration,
)
from onebeat.tasks.argument import is_unresolved
from onebeat.tasks.current_scheduler import enqueuer_of
from onebeat.tasks.placement import refuse_in_a_process
from onebeat.tasks.signature import Signature
from onebeat.tasks.task_settings import IfTaken, TaskSettings, refuse_retry
from onebeat.timing.backoff import Retry
from onebeat.tracking.ids import check_tracking_id

if TYPE_CHECKING:
    from onebeat.model.info import JobInfo
    from onebeat.store.connection.callers_session import AsyncCaller, SyncCaller

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """What one call changes; None leaves the task's setting. Instants and durations are microseconds."""

    delay: int | None = None
    run_at: int | None = None
    priority: int | None = None
    queue: str | None = None
    retry: Retry | None = None
    timeout: int | None = None
    tracking_id: str | None = None
    tags: tuple[str, ...] = ()
    unique_key: str | None = None
    unique_for: int | None = None
    if_exists: IfTaken | None = None
    session: AsyncCaller | SyncCaller | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """A job that is described and not stored: task, packed arguments, options. `enqueue_many` stores it."""

    task: Task[Any, R]
    args: str
    options: CallOptions = CallOptions()


class Task(Generic[P, R]):
    """A registered function. Calling it calls the plain function; `enqueue` makes a job of the call."""

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str,
        settings: TaskSettings,
        aliases: Iterable[str] = (),
        signature: Signature | None = None,
    ) -> None:
        self.function = function
        self.name = check_name(name, "task name")
        self.settings = settings
        self.aliases = check_names(aliases, "aliases")
        self.signature = Signature(function, name) if signature is None else signature
        self._options = CallOptions()
        update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    @cached_property
    def is_async(self) -> bool:
        """Return whether the plain function is a coroutine function."""
        function = inspect.unwrap(self.function)
        return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)

    @cached_property
    def runs_in(self) -> Literal["loop", "thread", "process"]:
        """Return where it runs. A sync function runs on the event loop only when its declaration says so."""
        if self.settings.run_in != "auto":
            return self.settings.run_in
        return "loop" if self.is_async else "thread"

    def check_at_declaration(self) -> None:
        """Raise `ConfigurationError` for a parameter whose values can be neither stored nor passed.

        An annotation that names something which the module defines further down is left to `check`.
        """
        try:
            self.signature.check()
            refuse_in_a_process(self.name, self.runs_in, self.signature.injected)
        except ConfigurationError as error:
            if not is_unresolved(error.__cause__):
                raise

    def check(self) -> None:
        """Raise `ConfigurationError` as above, now that every name exists, and for what only a request provides."""
        self.signature.check()
        refuse_in_a_process(self.name, self.runs_in, self.signature.injected)
        _ = self.signature.dependencies

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
        unique_key: str | None = None,
        unique_for: Seconds | None = None,
        if_exists: IfTaken | None = None,
        session: AsyncCaller | SyncCaller | None = None,
    ) -> Task[P, R]:
        """Return a copy that enqueues with these options. Durations are seconds or timedeltas, `run_at` is aware.

        `unique_key` allows one unfinished job of this task with that text: another enqueue stores nothing and returns
        the job that holds the key, with `duplicate=True`. `unique_for` keeps the key for at least so long after the
        enqueue, also when the job ends before. `if_exists="replace"` gives the job that holds the key the new arguments
        and time, unless it runs or has ended (debounce); "keep", the default, changes nothing.

        `session` is an `AsyncSession`, `AsyncConnection`, `Session` or `Connection` on the database of the scheduler:
        the job is stored in its transaction, so it runs after that commit, and a rollback leaves nothing of it. Give
        the first two kinds to `enqueue` and `enqueue_many`, the others to `enqueue_sync`.

        Options of an earlier `options()` stay unless they are given again; `delay` and `run_at` replace each other.
        Raises `InvalidArguments` and `ConfigurationError`.
        """
        if delay is not None and run_at is not None:
            raise InvalidArguments("delay= and run_at= both say when to run; give one")
        before = self._options
        if delay is not None or run_at is not None:
            before = replace(before, delay=None, run_at=None)
        given: dict[str, Any] = {
            "delay": None if delay is None else duration(delay, "delay"),
            "run_at": None if run_at is None else aware_us(run_at, "run_at"),
            "priority": None if priority is None else check_priority(priority),
            "queue": None if queue is None else check_name(queue, "queue"),
            "retry": None if retry is None else self._checked_retry(retry),
            "timeout": None if timeout is None else duration(timeout, "timeout", least=1),
            "tracking_id": check_tracking_id(tracking_id),
            "tags": None if tags is None else check_names(tags, "tags", check_tag),
            "unique_key": None if unique_key is None else _checked_key(unique_key),
            "unique_for": None if unique_for is None else duration(unique_for, "unique_for", least=1),
            "if_exists": None if if_exists is None else _checked_choice(if_exists),
            "session": session,
        }
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy._options = replace(before, **{name: value for name, value in given.items() if value is not None})
        if copy._options.unique_key is None and (unique_for is not None or if_exists is not None):
            raise InvalidArguments(
                "unique_for= and if_exists= say how long and how a key is kept; give unique_key= too"
            )
        return copy

    def _checked_retry(self, retry: Retry) -> Retry:
        checked = check_retry(retry)
        if self.settings.at_most_once:
            refuse_retry(self.name, checked)
        return checked

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Describe a job without storing it; raises `InvalidArguments` when the arguments do not fit the function."""
        return Call(self, self.signature.pack(args, kwargs), self._options)

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> JobInfo:
        """Store a job for this call and return it.

        Raises `InvalidArguments`, `NotStarted`, `DatabaseUnavailable`; with `options(session=…)` also
        `ConfigurationError` for a session of another kind or database, and what the database raises in it.
        """
        (info,) = await enqueuer_of(self).enqueue_calls([self.call(*args, **kwargs)])
        return info

    def enqueue_sync(self, *args: P.args, **kwargs: P.kwargs) -> JobInfo:
        """Store a job as `enqueue` does, from a thread, a sync route or a script; blocks for one round trip.

        With `options(session=…)`, a `Session` or a `Connection`, it works on any thread, the event loop's too.
        """
        (info,) = enqueuer_of(self).enqueue_calls_sync([self.call(*args, **kwargs)])
        return info

    async def enqueue_many(self, calls: Iterable[Call[R] | tuple[Any, ...]]) -> list[JobInfo]:
        """Store many jobs in one transaction; an item is a `task.call(...)` or a tuple of positional arguments.

        With `options(session=…)` that is the transaction of the session.

        Raises `InvalidArguments`, `UnknownTask`, `NotStarted` and `DatabaseUnavailable`; then no job is stored.
        """
        ready = [self._ready(item) for item in calls]
        enqueuer = enqueuer_of(self)
        for other in {call.task.name: call.task for call in ready}.values():
            if not enqueuer.owns(other):
                raise UnknownTask(f"{enqueuer!r}, which stores these jobs, does not include task {other.name!r}")
        return await enqueuer.enqueue_calls(ready)

    def _ready(self, item: Call[R] | tuple[Any, ...]) -> Call[R]:
        if isinstance(item, Call):
            if item.options.session is None and self._options.session is not None:
                return replace(item, options=replace(item.options, session=self._options.session))
            return item
        if not isinstance(item, tuple | list):
            raise InvalidArguments(
                f"{self.name}: enqueue_many takes tuples of arguments, such as [(1,), (2,)], or calls made by "
                f"{self.name}.call(…); {item!r:.60} is neither"
            )
        return Call(self, self.signature.pack(item, {}), self._options)


def _checked_key(key: str) -> str:
    if not isinstance(key, str) or not key:
        raise InvalidArguments(f"unique_key={key!r:.60} cannot be used; give a text, such as f'invoice:{{id}}'")
    return check_text(key, "unique_key")


def _checked_choice(if_exists: IfTaken) -> IfTaken:
    if if_exists not in get_args(IfTaken):
        raise InvalidArguments(f"if_exists={if_exists!r:.40} is unknown; give 'keep' or 'replace'")
    return if_exists
