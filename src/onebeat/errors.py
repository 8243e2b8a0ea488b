"""Every error onebeat raises: one tree, drawn here.

OnebeatError
├── ConfigurationError        a setting, URL or declaration cannot work
│   ├── DuplicateTask         two tasks of one name
│   └── SchemaOutOfDate       the tables are older or newer than this code
├── NotStarted                used before start or outside a running scheduler
├── DatabaseUnavailable       the database cannot be reached, or not yet
├── InvalidArguments          arguments that do not fit the task or do not fit the store
├── InvalidTrigger            a time rule that cannot work
│   └── InvalidCron           a cron expression, with the position of the fault
├── UnknownTask               no task of that name is registered
├── ScheduleExists            the id is taken
├── ScheduleNotFound
├── StaleRevision             someone else edited the schedule in between
├── JobNotFound
├── JobExists                 a job that has not ended is in the way
├── JobFailed                 the job ended in failure
├── JobCancelled              the job was cancelled
├── LeaseLost                 this process no longer holds what it acts upon
├── LockTimeout               the lock was not free in time
├── Busy                      a bounded queue or lane is full
├── Stopped                   a function off the event loop ended because it was asked to
├── RemoteError               what a child process raised and this process cannot rebuild
└── WorkerProcessDied         a child process ended by signal or exit code
"""

from __future__ import annotations

import re


class OnebeatError(Exception):
    """The root: `except OnebeatError` catches whatever onebeat itself raises.

    >>> issubclass(LeaseLost, OnebeatError)
    True
    """


class ConfigurationError(OnebeatError):
    """A setting, URL or declaration cannot work; the message says which and what would."""


class DuplicateTask(ConfigurationError):
    """Two tasks of one name; names are what the database stores, so they must differ."""


class SchemaOutOfDate(ConfigurationError):
    """The tables in the database are older or newer than this code can serve."""


class NotStarted(OnebeatError):
    """Something that needs a running scheduler was used before start or after stop."""


class DatabaseUnavailable(OnebeatError):
    """The database cannot be reached or refuses; the message never holds a password.

    `reason` is one word: `unreachable`, `disconnect`, `login`, `missing-database`, `permission`, `read-only`, `full`,
    `corrupt`, `retry` (busy all the time) or `timeout`.

    >>> DatabaseUnavailable("…").reason
    'unreachable'
    """

    def __init__(self, message: str, *, reason: str = "unreachable") -> None:
        super().__init__(message)
        self.reason = reason


class InvalidArguments(OnebeatError):
    """Arguments do not fit the task's signature, or are not JSON, or are too large."""


class InvalidTrigger(OnebeatError):
    """A time rule that cannot work."""


class InvalidCron(InvalidTrigger):
    """A cron expression that cannot be read; `position` is the offset of the fault in the text.

    >>> InvalidCron("minute 61 is over 59", position=0).position
    0
    """

    def __init__(self, message: str, *, position: int) -> None:
        super().__init__(message)
        self.position = position


class UnknownTask(OnebeatError):
    """No task of that name is registered in this process."""


class ScheduleExists(OnebeatError):
    """A schedule of that id exists; `if_exists` says what to do instead."""


class ScheduleNotFound(OnebeatError):
    """No schedule of that id."""


class StaleRevision(OnebeatError):
    """The schedule was edited since `expected_rev` was read."""


class JobNotFound(OnebeatError):
    """No job of that id; it may have been pruned."""


class JobExists(OnebeatError):
    """A job that has not ended is in the way: it can be neither retried nor deleted."""


class JobFailed(OnebeatError):
    """The awaited job ended in failure."""


class JobCancelled(OnebeatError):
    """The awaited job was cancelled."""


class LeaseLost(OnebeatError):
    """This process no longer holds the claim or lock it acts upon; nothing was written."""


class LockTimeout(OnebeatError):
    """The lock was not free within `wait`."""


class Busy(OnebeatError):
    """A bounded queue or lane is full; try again later or widen it."""


class Stopped(OnebeatError):
    """A function running off the event loop ended because it was asked to; the message is the reason given.

    It is the outcome of a `Running` whose function left at a `checkpoint()`, or whose process was ended by `stop`.
    """


class RemoteError(OnebeatError):
    """A child process raised something that cannot be rebuilt here: its class, its words and its traceback as text.

    `type_name` is the module and name of the exception's class (``"shop.errors.OutOfStock"``), `type_names` holds
    those of the class and all its bases, `traceback` is the text of the child's traceback.
    """

    def __init__(self, message: str, *, type_names: tuple[str, ...] = (), traceback: str = "") -> None:
        super().__init__(message)
        self.type_name = type_names[0] if type_names else ""
        self.type_names = type_names
        self.traceback = traceback


def qualified_names(kind: type) -> tuple[str, ...]:
    """Return the module and name of a class and of all its bases, the class first, as other processes know them.

    >>> qualified_names(KeyError)[:2]
    ('builtins.KeyError', 'builtins.LookupError')
    """
    names = (f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__ if base is not object)
    return tuple(re.sub(r"^__mp_main__\.", "__main__.", name) for name in names)  # multiprocessing's own name for it


class WorkerProcessDied(OnebeatError):
    """The child process that ran the call ended by itself.

    `exit_code` is its exit code, `signal` the number of the signal that ended it; one of them is None.
    """

    def __init__(self, message: str, *, exit_code: int | None = None, signal: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.signal = signal
