"""The public names, sorted and loaded on first use; nothing else."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onebeat.errors import (
        Busy as Busy,
        ConfigurationError as ConfigurationError,
        DatabaseUnavailable as DatabaseUnavailable,
        DuplicateTask as DuplicateTask,
        InvalidArguments as InvalidArguments,
        InvalidCron as InvalidCron,
        InvalidTrigger as InvalidTrigger,
        JobCancelled as JobCancelled,
        JobExists as JobExists,
        JobFailed as JobFailed,
        JobNotFound as JobNotFound,
        LeaseLost as LeaseLost,
        LockTimeout as LockTimeout,
        NotStarted as NotStarted,
        OnebeatError as OnebeatError,
        RemoteError as RemoteError,
        ScheduleExists as ScheduleExists,
        ScheduleNotFound as ScheduleNotFound,
        SchemaOutOfDate as SchemaOutOfDate,
        StaleRevision as StaleRevision,
        Stopped as Stopped,
        UnknownTask as UnknownTask,
        WorkerProcessDied as WorkerProcessDied,
    )
    from onebeat.fastapi.install import install as install
    from onebeat.locks.guard import fence_guard as fence_guard
    from onebeat.model.events import (
        ClockStepped as ClockStepped,
        DatabaseBack as DatabaseBack,
        DatabaseCaution as DatabaseCaution,
        DatabaseTrouble as DatabaseTrouble,
        Event as Event,
        FailedAfterComplete as FailedAfterComplete,
        FireConflict as FireConflict,
        JobEvent as JobEvent,
        JobRescued as JobRescued,
        JobSettled as JobSettled,
        JobStarted as JobStarted,
        NoTasks as NoTasks,
        PartFailed as PartFailed,
        QueueUnserved as QueueUnserved,
        ScheduleFired as ScheduleFired,
        SchedulerIdle as SchedulerIdle,
        ScheduleSkipping as ScheduleSkipping,
        ScheduleUnreadable as ScheduleUnreadable,
        SettlementLost as SettlementLost,
        StopIgnored as StopIgnored,
        ThreadOverran as ThreadOverran,
        ValueDropped as ValueDropped,
        WorkerDied as WorkerDied,
        WorkerDraining as WorkerDraining,
        WorkerLost as WorkerLost,
        WorkerStarted as WorkerStarted,
        WorkerStopped as WorkerStopped,
    )
    from onebeat.model.info import (
        AttemptInfo as AttemptInfo,
        Fire as Fire,
        JobInfo as JobInfo,
        Page as Page,
        QueueInfo as QueueInfo,
        ScheduleInfo as ScheduleInfo,
        WorkerInfo as WorkerInfo,
    )
    from onebeat.model.policies import CatchUp as CatchUp, Policies as Policies
    from onebeat.scheduler.health import Health as Health
    from onebeat.scheduler.scheduler import Scheduler as Scheduler
    from onebeat.scheduler.why import Why as Why
    from onebeat.settings import Retention as Retention, Settings as Settings
    from onebeat.store.connection.callers_sqlite import configure_sqlite as configure_sqlite
    from onebeat.tasks.context import JobContext as JobContext, current_job as current_job
    from onebeat.tasks.declared_schedule import NewSchedule as NewSchedule
    from onebeat.tasks.job import Job as Job
    from onebeat.tasks.router import TaskRouter as TaskRouter
    from onebeat.tasks.task import Call as Call, Task as Task
    from onebeat.timing.any_of import AnyOf as AnyOf
    from onebeat.timing.backoff import Cancel as Cancel, Retry as Retry, Snooze as Snooze
    from onebeat.timing.calendars import Daily as Daily, Dates as Dates, Weekdays as Weekdays
    from onebeat.timing.periods import Days as Days, Months as Months, Weeks as Weeks
    from onebeat.timing.triggers import At as At, Cron as Cron, Every as Every

_HOME = {
    "AnyOf": "timing.any_of",
    "At": "timing.triggers",
    "AttemptInfo": "model.info",
    "Busy": "errors",
    "Call": "tasks.task",
    "Cancel": "timing.backoff",
    "CatchUp": "model.policies",
    "ClockStepped": "model.events",
    "ConfigurationError": "errors",
    "Cron": "timing.triggers",
    "Daily": "timing.calendars",
    "DatabaseBack": "model.events",
    "DatabaseCaution": "model.events",
    "DatabaseTrouble": "model.events",
    "DatabaseUnavailable": "errors",
    "Dates": "timing.calendars",
    "Days": "timing.periods",
    "DuplicateTask": "errors",
    "Event": "model.events",
    "Every": "timing.triggers",
    "FailedAfterComplete": "model.events",
    "Fire": "model.info",
    "FireConflict": "model.events",
    "Health": "scheduler.health",
    "InvalidArguments": "errors",
    "InvalidCron": "errors",
    "InvalidTrigger": "errors",
    "Job": "tasks.job",
    "JobCancelled": "errors",
    "JobContext": "tasks.context",
    "JobEvent": "model.events",
    "JobExists": "errors",
    "JobFailed": "errors",
    "JobInfo": "model.info",
    "JobNotFound": "errors",
    "JobRescued": "model.events",
    "JobSettled": "model.events",
    "JobStarted": "model.events",
    "LeaseLost": "errors",
    "LockTimeout": "errors",
    "Months": "timing.periods",
    "NewSchedule": "tasks.declared_schedule",
    "NoTasks": "model.events",
    "NotStarted": "errors",
    "OnebeatError": "errors",
    "Page": "model.info",
    "PartFailed": "model.events",
    "Policies": "model.policies",
    "QueueInfo": "model.info",
    "QueueUnserved": "model.events",
    "RemoteError": "errors",
    "Retention": "settings",
    "Retry": "timing.backoff",
    "ScheduleExists": "errors",
    "ScheduleFired": "model.events",
    "ScheduleInfo": "model.info",
    "ScheduleNotFound": "errors",
    "ScheduleSkipping": "model.events",
    "ScheduleUnreadable": "model.events",
    "SchedulerIdle": "model.events",
    "Scheduler": "scheduler.scheduler",
    "SchemaOutOfDate": "errors",
    "Settings": "settings",
    "SettlementLost": "model.events",
    "Snooze": "timing.backoff",
    "StaleRevision": "errors",
    "Stopped": "errors",
    "Task": "tasks.task",
    "TaskRouter": "tasks.router",
    "StopIgnored": "model.events",
    "ThreadOverran": "model.events",
    "UnknownTask": "errors",
    "ValueDropped": "model.events",
    "Weekdays": "timing.calendars",
    "Weeks": "timing.periods",
    "Why": "scheduler.why",
    "WorkerDied": "model.events",
    "WorkerDraining": "model.events",
    "WorkerInfo": "model.info",
    "WorkerLost": "model.events",
    "WorkerProcessDied": "errors",
    "WorkerStarted": "model.events",
    "WorkerStopped": "model.events",
    "configure_sqlite": "store.connection.callers_sqlite",
    "current_job": "tasks.context",
    "fence_guard": "locks.guard",
    "install": "fastapi.install",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module 'onebeat' has no attribute {name!r}") from None
    return getattr(import_module(f"onebeat.{home}"), name)


def __dir__() -> list[str]:
    return __all__
