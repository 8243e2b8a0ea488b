"""Job: a task as a class. Its fields are the arguments, an instance is a call, and `run` is the function."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from pydantic import BaseModel, ConfigDict, ValidationError

from onebeat.errors import ConfigurationError, InvalidArguments
from onebeat.tasks.argument import problem
from onebeat.tasks.declarations import Declarations
from onebeat.tasks.job_signature import JobSignature
from onebeat.tasks.task import Call, Task
from onebeat.tasks.task_settings import CallChanges, TaskOptions

if TYPE_CHECKING:
    from onebeat.model.info import JobInfo

RESERVED = ("call", "enqueue", "enqueue_sync", "options", "task")
UNBOUND = Declarations()  # job classes without a router of their own; every scheduler includes them


class JobOptions(TaskOptions, total=False):
    """Options of a job class: those of a task, its name, and the router or scheduler that it belongs to."""

    name: str
    router: Declarations


class Job(BaseModel):
    """The base of job classes. A class is a task: it has the class's name, and its options stand beside the base.

    Fields are checked by pydantic when an instance is made. `run` takes `Depends` and `JobContext` parameters alone.
    A subclass inherits the options of its base, but not `name` and `aliases`. A class without `run`, with abstract
    methods or with type parameters is a base for others and no task. Every scheduler includes it, unless it belongs to
    a router: `class Charge(Job, router=billing)`. Raises `ConfigurationError` and `DuplicateTask` at its definition,
    and `InvalidArguments` for the values of an instance.

    >>> class Greet(Job, queue="mail"):
    ...     name: str
    ...     async def run(self) -> str:
    ...         return f"hello {self.name}"
    >>> Greet.task().name, Greet(name="Ada").name
    ('Greet', 'Ada')
    """

    model_config = ConfigDict(extra="forbid")

    _declared: ClassVar[Task[Any, Any] | None] = None
    _inherited: ClassVar[JobOptions] = {}

    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise InvalidArguments(f"{type(self).__name__}: {problem(error)}") from None

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # as a body of a route it stays pydantic's own

    def __init_subclass__(cls, **options: Unpack[JobOptions]) -> None:
        super().__init_subclass__()  # pydantic passes the options to the next method, once the fields are known
        for name in RESERVED:
            if name in vars(cls) or name in cls.__annotations__:
                raise ConfigurationError(
                    f"{cls.__qualname__}: {name!r} is a method of every Job; give your field or method another name"
                )

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        kept: JobOptions = {**cls._inherited, **options}  # type: ignore[typeddict-item]  # checked where it is declared
        own: dict[str, Any] = {"name": kept.pop("name", None), "aliases": kept.pop("aliases", None)}
        cls._declared, cls._inherited = None, kept
        if _is_base(cls):
            return
        _check_run(cls)
        of_task: dict[str, Any] = {name: value for name, value in kept.items() if name != "router"}
        if own["aliases"] is not None:
            of_task["aliases"] = own["aliases"]
        name = own["name"] or cls.__name__
        router = kept.get("router", UNBOUND)
        run = cls.run  # type: ignore[attr-defined]  # a class without it is a base
        full = f"{router.prefix}.{name}" if router.prefix else name
        cls._declared = router._declare_task(run, name, of_task, JobSignature(cls, run, full))  # type: ignore[arg-type]

    @classmethod
    def task(cls) -> Task[..., Any]:
        """Return the task of this class, for `enqueue_many` and what else takes a task.

        Raises `ConfigurationError` for a class that is only a base of others.
        """
        if cls._declared is None:
            raise ConfigurationError(f"{cls.__qualname__} is a base of job classes and no task; define `run` in it")
        return cls._declared

    def call(self) -> Call[Any]:
        """Describe the job without storing it; raises `InvalidArguments` when a field would not arrive as it is."""
        return self.task().call(self)

    async def enqueue(self) -> JobInfo:
        """Store the job and return it. Raises `InvalidArguments`, `NotStarted`, `DatabaseUnavailable`."""
        return await self.task().enqueue(self)

    def enqueue_sync(self) -> JobInfo:
        """Store the job as `enqueue` does, from a thread, a sync route or a script; blocks for one round trip."""
        return self.task().enqueue_sync(self)

    def options(self, **changes: Unpack[CallChanges]) -> BoundJob:
        """Return the job with options of its own, as `Task.options` takes them: `job.options(delay=10).enqueue()`."""
        return BoundJob(self, self.task().options(**changes))


class BoundJob:
    """A job of a class with options of its own."""

    def __init__(self, job: Job, task: Task[..., Any]) -> None:
        self._job = job
        self._task = task

    def call(self) -> Call[Any]:
        """Do what `Job.call` does."""
        return self._task.call(self._job)

    async def enqueue(self) -> JobInfo:
        """Do what `Job.enqueue` does."""
        return await self._task.enqueue(self._job)

    def enqueue_sync(self) -> JobInfo:
        """Do what `Job.enqueue_sync` does."""
        return self._task.enqueue_sync(self._job)

    def options(self, **changes: Unpack[CallChanges]) -> BoundJob:
        """Return the job with these options too."""
        return BoundJob(self._job, self._task.options(**changes))


def job_base(declarations: Declarations) -> type[Job]:
    """Return a base class whose subclasses belong to a router."""

    class RouterJob(Job, router=declarations):
        """The base of the job classes of one router."""

    return RouterJob


def _is_base(cls: type[Job]) -> bool:
    generic = cls.__pydantic_generic_metadata__
    return (
        not hasattr(cls, "run")
        or inspect.isabstract(cls)
        or bool(generic["parameters"])
        or generic["origin"] is not None
    )


def _check_run(cls: type[Job]) -> None:
    run = inspect.getattr_static(cls, "run")
    if not inspect.isfunction(run):
        raise ConfigurationError(
            f"{cls.__qualname__}.run is a {type(run).__name__}; define `def run(self)` or `async def run(self)`"
        )
