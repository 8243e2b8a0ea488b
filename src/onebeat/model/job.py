"""A job: states, legal moves, outcomes; settle() decides what becomes of an attempt."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from onebeat.errors import OnebeatError
from onebeat.model import payload
from onebeat.timing.backoff import Retry


class JobState(StrEnum):
    """Where a job stands; the last three are final."""

    SCHEDULED = "scheduled"
    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


UNFINISHED = (JobState.SCHEDULED, JobState.WAITING, JobState.QUEUED, JobState.RUNNING)
FINAL = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)

MAX_CRASHES = 3  # a job whose worker died this often is quarantined: it may be what kills them
SUSPECT_CRASHES = 2  # from here on it is run alone, so that it takes no neighbour with it


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """What an insert needs. `run_at` None: now, by the database's clock."""

    id: UUID
    task: str
    args: str
    tracking_id: str
    state: JobState = JobState.QUEUED
    queue: str = "default"
    priority: int = 0
    run_at: int | None = None
    waits_for: str | None = None
    signature: str | None = None
    max_attempts: int = 3
    retry: str | None = None
    timeout: int | None = None
    at_most_once: bool = False
    carried: str | None = None
    schedule_id: str | None = None
    fire_us: int | None = None
    fire_zone: str | None = None  # name of the zone in which the fire time is told; None: UTC
    unique_slot: str | None = None  # see `model.unique_key`
    unique_text: str | None = None
    unique_for: int | None = None  # microseconds for which the key stays taken, also when the job ends before
    replaces: bool = False  # the job that holds the key gets these arguments and this time
    tags: tuple[str, ...] = ()


class Claimed(NamedTuple):
    """A job this worker holds, under the lease token of its batch; fields are named as the row's columns."""

    id: UUID
    task: str
    args: str
    queue: str
    rank: int
    run_at_us: int
    attempt: int
    errors: int
    crashes: int
    max_attempts: int
    retry: str | None
    timeout_us: int | None
    at_most_once: bool
    lease_token: str
    fence: int
    schedule_id: str | None
    fire_us: int | None
    fire_zone: str | None
    tracking_id: str
    carried: str | None
    claimed_us: int
    unique_slot: str | None = None


class Ending(StrEnum):
    """How one attempt ended, as the attempt's history says it."""

    SUCCEEDED = "succeeded"
    ERROR = "error"
    TIMEOUT = "timeout"
    SNOOZED = "snoozed"
    CANCELLED = "cancelled"
    LOST = "lost"  # its worker died
    DRAINED = "drained"  # its worker stopped before it ended
    RETURNED = "returned"  # claimed, but never started
    UNDECODABLE = "undecodable"  # the stored arguments do not fit the code


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the executor saw. `delay` is for a snooze, in microseconds; `retryable` is the task's word on the error.

    `exception` is what the function raised, where it lives in this process; it is not stored.
    """

    ending: Ending
    value: str | None = None
    error: str | None = None
    traceback: str | None = None
    reason: str | None = None
    retryable: bool = True
    delay: int = 0
    exception: BaseException | None = field(default=None, repr=False, compare=False)


SUCCESS = Outcome(ending=Ending.SUCCEEDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What becomes of the job: its next state and the columns that change with it.

    `delay` is how long a retry waits, in microseconds, None when the job does not wait;
    `refund` takes the attempt back because nothing was started.
    """

    state: JobState
    reason: str | None = None
    delay: int | None = None
    errors: int = 0
    crashes: int = 0
    refund: bool = False

    @property
    def final(self) -> bool:
        """Whether the job has ended."""
        return self.state in FINAL


SUCCEEDED = Settlement(state=JobState.SUCCEEDED)  # of a job without a trouble: most are


def stored_retry(text: str | None, own: Retry) -> Retry:
    """The numbers on a job's row; `own` where there are none, or none that this version can read."""
    if text is None:
        return own
    try:
        return Retry.from_json(payload.decode(text))
    except (OnebeatError, ValueError, TypeError):
        return own


def settle(
    *,
    errors: int,
    crashes: int,
    max_attempts: int,
    at_most_once: bool,
    outcome: Outcome,
    retry: Retry,
    random: float,
    cancel_requested: bool = False,
) -> Settlement:
    """Decide what becomes of an attempt; the one place where that is decided.

    `random`, from 0 to 1, is the jitter of a delay. `errors` and `crashes` count what came before this attempt. Errors
    are held against `max_attempts`, worker deaths against `MAX_CRASHES`; a drain or a snooze uses neither.

    >>> settle(errors=2, crashes=0, max_attempts=3, at_most_once=False, retry=Retry(), random=0.5,
    ...        outcome=Outcome(ending=Ending.ERROR)).reason
    'exhausted'
    """
    ending = outcome.ending
    if outcome is SUCCESS and not (errors or crashes or cancel_requested):
        return SUCCEEDED
    if ending is Ending.SUCCEEDED:
        return Settlement(
            state=JobState.SUCCEEDED,
            reason="cancel ignored" if cancel_requested else outcome.reason,
            errors=errors,
            crashes=crashes,
        )
    if ending is Ending.RETURNED and cancel_requested:
        return Settlement(state=JobState.CANCELLED, reason="requested", errors=errors, crashes=crashes, refund=True)
    if ending is Ending.RETURNED:
        return Settlement(state=JobState.QUEUED, errors=errors, crashes=crashes, refund=True)
    if ending is Ending.CANCELLED:
        reason = outcome.reason or "requested"
        return Settlement(state=JobState.CANCELLED, reason=reason, errors=errors, crashes=crashes)
    if ending is Ending.UNDECODABLE:
        return Settlement(state=JobState.FAILED, reason="undecodable", errors=errors + 1, crashes=crashes)
    if ending in (Ending.LOST, Ending.DRAINED):
        return _interrupted(errors, crashes, at_most_once, ending, retry, random, cancel_requested)
    if cancel_requested:
        return Settlement(state=JobState.CANCELLED, reason="requested", errors=errors, crashes=crashes)
    if ending is Ending.SNOOZED and at_most_once:
        return Settlement(state=JobState.FAILED, reason="snoozed", errors=errors, crashes=crashes)
    if ending is Ending.SNOOZED:
        return Settlement(
            state=JobState.SCHEDULED, reason="snoozed", delay=outcome.delay, errors=errors, crashes=crashes
        )
    return _failed(errors + 1, crashes, max_attempts, at_most_once, outcome, retry, random)


def _interrupted(
    errors: int,
    crashes: int,
    at_most_once: bool,
    ending: Ending,
    retry: Retry,
    random: float,
    cancel_requested: bool,
) -> Settlement:
    """The worker died (`lost`) or stopped (`drained`) under a started attempt."""
    crashes += ending is Ending.LOST
    if at_most_once:
        return Settlement(state=JobState.FAILED, reason="lost", errors=errors, crashes=crashes)
    if cancel_requested:
        return Settlement(state=JobState.CANCELLED, reason="requested", errors=errors, crashes=crashes)
    if crashes >= MAX_CRASHES:
        return Settlement(state=JobState.FAILED, reason="quarantined", errors=errors, crashes=crashes)
    if ending is Ending.DRAINED or crashes <= 1:
        return Settlement(state=JobState.QUEUED, errors=errors, crashes=crashes)
    delay = retry.delay_us(crashes, random)
    return Settlement(state=JobState.SCHEDULED, reason="lost", delay=delay, errors=errors, crashes=crashes)


def _failed(
    errors: int,
    crashes: int,
    max_attempts: int,
    at_most_once: bool,
    outcome: Outcome,
    retry: Retry,
    random: float,
) -> Settlement:
    """The function raised or ran out of time."""
    if not outcome.retryable:
        return Settlement(state=JobState.FAILED, reason="gave up", errors=errors, crashes=crashes)
    if at_most_once or errors >= max_attempts:
        reason = "timeout" if outcome.ending is Ending.TIMEOUT and max_attempts == 1 else "exhausted"
        return Settlement(state=JobState.FAILED, reason=reason, errors=errors, crashes=crashes)
    delay = retry.delay_us(errors, random)
    return Settlement(state=JobState.SCHEDULED, reason=outcome.ending, delay=delay, errors=errors, crashes=crashes)
