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
    from onebeat.facade.router import TaskRouter as TaskRouter
    from onebeat.fastapi.install import install as install
    from onebeat.locks.guard import fence_guard as fence_guard
    from onebeat.model.context import JobContext as JobContext, current_job as current_job
    from onebeat.model.info import (
        Fire as Fire,
        JobInfo as JobInfo,
        QueueInfo as QueueInfo,
        ScheduleInfo as ScheduleInfo,
        WorkerInfo as WorkerInfo,
    )
    from onebeat.model.policies import CatchUp as CatchUp, Policies as Policies
    from onebeat.model.task import Task as Task
    from onebeat.scheduler import Scheduler as Scheduler
    from onebeat.settings import Settings as Settings
    from onebeat.store.sqlite import configure_sqlite as configure_sqlite
    from onebeat.timing.backoff import Cancel as Cancel, Retry as Retry, Snooze as Snooze
    from onebeat.timing.calendars import Daily as Daily, Dates as Dates, Weekdays as Weekdays
    from onebeat.timing.periods import Months as Months, Weeks as Weeks
    from onebeat.timing.triggers import At as At, Cron as Cron, Every as Every

_HOME = {
    "At": "timing.triggers",
    "Busy": "errors",
    "Cancel": "timing.backoff",
    "CatchUp": "model.policies",
    "ConfigurationError": "errors",
    "Cron": "timing.triggers",
    "DatabaseUnavailable": "errors",
    "Daily": "timing.calendars",
    "Dates": "timing.calendars",
    "DuplicateTask": "errors",
    "Every": "timing.triggers",
    "Fire": "model.info",
    "InvalidArguments": "errors",
    "InvalidCron": "errors",
    "InvalidTrigger": "errors",
    "JobCancelled": "errors",
    "JobContext": "model.context",
    "JobExists": "errors",
    "JobFailed": "errors",
    "JobInfo": "model.info",
    "JobNotFound": "errors",
    "LeaseLost": "errors",
    "LockTimeout": "errors",
    "Months": "timing.periods",
    "NotStarted": "errors",
    "OnebeatError": "errors",
    "Policies": "model.policies",
    "QueueInfo": "model.info",
    "RemoteError": "errors",
    "Retry": "timing.backoff",
    "ScheduleExists": "errors",
    "ScheduleInfo": "model.info",
    "ScheduleNotFound": "errors",
    "Scheduler": "scheduler",
    "SchemaOutOfDate": "errors",
    "Settings": "settings",
    "Snooze": "timing.backoff",
    "StaleRevision": "errors",
    "Stopped": "errors",
    "Task": "model.task",
    "TaskRouter": "facade.router",
    "UnknownTask": "errors",
    "Weekdays": "timing.calendars",
    "Weeks": "timing.periods",
    "WorkerInfo": "model.info",
    "WorkerProcessDied": "errors",
    "configure_sqlite": "store.sqlite",
    "current_job": "model.context",
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
