"""Every public name imports from the module that the documentation names."""

from __future__ import annotations

from importlib import import_module

import pytest

NAMES = {
    "onebeat": """
        AnyOf At AttemptInfo Busy Call Cancel CatchUp ClockStepped ConfigurationError Cron Daily DatabaseBack
        DatabaseCaution DatabaseTrouble DatabaseUnavailable Dates Days DuplicateTask Event Every
        FailedAfterComplete Fire FireConflict Health InvalidArguments InvalidCron InvalidTrigger Job
        JobCancelled JobContext JobEvent JobExists JobFailed JobInfo JobNotFound JobRescued JobSettled
        JobStarted LeaseLost LockTimeout Months NewSchedule NoTasks NotStarted OnebeatError Page PartFailed
        Policies QueueInfo QueueUnserved RemoteError Retention Retry ScheduleExists ScheduleFired ScheduleInfo
        ScheduleNotFound ScheduleSkipping ScheduleUnreadable Scheduler SchedulerIdle SchemaOutOfDate Settings
        SettlementLost Snooze StaleRevision StopIgnored Stopped Task TaskRouter ThreadOverran UnknownTask
        ValueDropped Weekdays Weeks Why WorkerDied WorkerDraining WorkerInfo WorkerLost WorkerProcessDied
        WorkerStarted WorkerStopped configure_sqlite current_job fence_guard install
    """,
    "onebeat.offload": """
        Held Lane Watchdog all_lanes blocking checkpoint close_offload cpu_bound remaining setup_offload to_process
        to_process_sync to_thread
    """,
    "onebeat.tracking": """
        ContextThreadPoolExecutor Tracking TrackingMiddleware TrackingRules async_httpx_hook bind carry current
        httpx_hook new_id outgoing_headers propagate tracking tracking_id
    """,
    "onebeat.logs": "TrackingFilter flush_logs log_stats setup_logging uvicorn_log_config",
    "onebeat.locks": """
        Backend DatabaseLocks FileLocks Lease Lock LockInfo Locks LocksOn RedisLocks SyncLease fence_guard
    """,
    "onebeat.fastapi": "TrackingId install",
    "onebeat.alembic": "excluding include_name",
    "onebeat.testing.lock_contract": "LockContract",
}


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, text in NAMES.items() for name in text.split()]
)
def test_a_public_name_is_importable(module: str, name: str) -> None:
    assert getattr(import_module(module), name) is not None


def test_the_root_package_lists_its_names() -> None:
    assert import_module("onebeat").__all__ == sorted(NAMES["onebeat"].split())
