"""What the engine announces."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

from onebeat.errors import DatabaseUnavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The root of what the engine announces; `scheduler.on(EventType)` hears it and its subclasses."""


def is_heard(_: type[Event]) -> bool:
    """Say of every class of events that somebody listens: the answer where nobody knows better."""
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStarted(Event):
    """This process serves jobs now."""

    worker_id: str
    database: str  # without its password
    connections: int
    tasks: int
    schedules: int
    slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDraining(Event):
    """No more fires and claims; `running` jobs are still at work, named by `waiting_for`."""

    worker_id: str
    running: int
    waiting_for: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStopped(Event):
    """The last thing a worker says."""

    worker_id: str
    returned: int  # jobs given back for others to run


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost(Event):
    """This process may no longer act under its worker id: the lease ran out or was taken."""

    worker_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDied(Event):
    """Another worker was found dead; its jobs are rescued."""

    worker_id: str
    host: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleFired(Event):
    """One due instant was decided, by this process.

    `follows`: an earlier fire of the schedule was started in the same step, as after a restart.
    """

    schedule_id: str
    fire_key: str
    fire_us: int
    decision: str
    reason: str | None
    job_id: UUID | None
    late_us: int
    tracking_id: str | None = None
    follows: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FireConflict(Event):
    """A due instant already had a record though the schedule had not moved: restored tables or edited rows."""

    schedule_id: str
    fire_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSkipping(Event):
    """Three skips in a row: the task takes longer than its period."""

    schedule_id: str
    warning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleUnreadable(Event):
    """A due schedule's row makes no sense to this code; it stays due, and the other schedules go on."""

    schedule_id: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent(Event):
    """Something happened to one job."""

    job_id: UUID
    task: str
    attempt: int
    tracking_id: str
    queue: str = "default"
    schedule_id: str | None = None


class AboutJob(Protocol):
    """What every event of a job repeats."""

    @property
    def id(self) -> UUID: ...
    @property
    def task(self) -> str: ...
    @property
    def attempt(self) -> int: ...
    @property
    def tracking_id(self) -> str: ...
    @property
    def queue(self) -> str: ...
    @property
    def schedule_id(self) -> str | None: ...


def about(job: AboutJob) -> dict[str, Any]:
    """The fields of `JobEvent` for this job."""
    return {
        "job_id": job.id,
        "task": job.task,
        "attempt": job.attempt,
        "tracking_id": job.tracking_id,
        "queue": job.queue,
        "schedule_id": job.schedule_id,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStarted(JobEvent):
    """An attempt begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettled(JobEvent):
    """An attempt ended and its end is in the database.

    `exception` is what the function raised, with its traceback; None where another process raised it and it could not
    be sent here. A timeout has a `TimeoutError` with the traceback of the place that was interrupted.
    """

    ending: str
    state: str
    reason: str | None
    seconds: float
    error: str | None = None
    retry_in: float | None = None  # seconds
    exception: BaseException | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SettlementLost(JobEvent):
    """An attempt ended here, but the job was no longer ours; nothing was written."""

    ending: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedAfterComplete(JobEvent):
    """A function completed its job, and then ended in another way; the job stays succeeded."""

    ending: str
    error: str | None = None
    exception: BaseException | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRescued(JobEvent):
    """A job was taken back from a worker that died, or that stopped before the job ended."""

    state: str
    reason: str | None
    from_worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadOverran(JobEvent):
    """A thread ran past its timeout; it cannot be ended, keeps its slot, and the retry waits for it."""

    timeout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StopIgnored(JobEvent):
    """A run was told to end by `cause` ("timeout" or "cancel"), and still goes on after `seconds`.

    `replaced`: its job has ended without it, as ``on_overrun="replace"`` says; otherwise the job stays `running`.
    """

    cause: str
    seconds: float
    replaced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueDropped(JobEvent):
    """The function's value could not be stored; the job succeeded all the same. `again`: not the task's first here."""

    problem: str
    again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseCaution(Event):
    """Something an operator should know about this server or library, found when it was opened."""

    database: str  # without its password
    caution: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseTrouble(Event):
    """A part could not reach the database and will try again."""

    part: str
    problem: str
    retry_in: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseBack(Event):
    """The part reached the database again."""

    part: str
    after: float  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockStepped(Event):
    """The database's clock was set: it differs by more than 30 s from the time that passed in this process."""

    seconds: float | None  # forward, or back where negative; None: it was set back before this process started
    moved: int  # schedules that were given an earlier next fire, so that they do not stand still
    retries: int = 0  # jobs whose retry was given an earlier start
    delayed: int = 0  # jobs stored while the clock was ahead whose first start may be too late: `delay`, not `run_at`


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueUnserved(Event):
    """A task's queue is served by no live worker."""

    task: str
    queue: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoTasks(Event):
    """A scheduler was started without a task; `others` are the schedulers of this process that have some."""

    scheduler: str
    others: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerIdle(Event):
    """An application in which a scheduler is installed answers requests, but nothing has started the scheduler."""

    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFailed(Event):
    """A part of the engine raised something that is no database trouble: a defect worth reporting."""

    part: str
    problem: str  # the traceback
    retry_in: float


def trouble(part: str, error: Exception, retry_in: float) -> DatabaseTrouble | PartFailed:
    """What to announce of an error in a part of the engine: the database's in a sentence, a defect with its traceback.

    >>> trouble("settler", LookupError("no such thing"), 1.5).part
    'settler'
    """
    if isinstance(error, DatabaseUnavailable):
        return DatabaseTrouble(part=part, problem=str(error), retry_in=retry_in)
    return PartFailed(part=part, problem="".join(traceback.format_exception(error)), retry_in=retry_in)
