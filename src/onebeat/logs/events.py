"""Log messages for the engine's events: the level and the text of each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, Final

from onebeat.logs.filter import noted
from onebeat.logs.redact import without_secrets
from onebeat.logs.text import CONTINUATION, one_line
from onebeat.model import events as e
from onebeat.model.protocols import Unit
from onebeat.timing.clock import from_us
from onebeat.tracking.context import Cell, Tracking
from onebeat.tracking.ids import is_valid

log = logging.getLogger("onebeat")
jobs = logging.getLogger("onebeat.jobs")
schedules = logging.getLogger("onebeat.schedules")

UNREADABLE: Final = "unreadable"
"""Stands for a stored tracking id that is none; the job itself runs under a new one."""


def word(event: e.Event) -> None:
    """Write the event to its logger; an event without words here is not logged.

    >>> word(e.QueueUnserved(task="charge", queue="billing"))
    """
    wording = _WORDS.get(type(event))
    if wording is not None:
        wording(event)


def is_logged(kind: type[e.Event]) -> bool:
    """Return whether an event of this class, also its least important kind, would be written now.

    >>> is_logged(e.JobStarted)
    False
    """
    return jobs.isEnabledFor(logging.INFO) if kind is e.JobSettled else kind in _WORDS


def _about(event: e.JobEvent) -> dict[str, Any]:
    """The job as the unit of the record, so that its ids stand where they stand on the job's own records.

    `job_id`, `task` and `attempt` are attributes of the record as well, for the handlers of other libraries.
    """
    job = str(event.job_id)
    unit = Unit(
        kind="job", id=job, task=event.task, attempt=event.attempt, queue=event.queue, schedule_id=event.schedule_id
    )
    about = {"job_id": job, "task": event.task, "attempt": event.attempt}
    return _noted(event.tracking_id, "job", job, unit) | about


def _noted(id: str, kind: str, unit_id: str, job: Unit | None = None) -> dict[str, Any]:
    """The unit as the record's; an id that breaks the rule, as others may write into the database, is not said."""
    return {"tracking_id": noted(Tracking(id if is_valid(id) else UNREADABLE, kind, unit_id, Cell(), job=job))}


def _settled(event: e.JobSettled) -> None:
    level = logging.INFO
    if event.state == "failed":
        level = logging.ERROR
    elif event.ending in ("error", "timeout", "lost", "undecodable"):
        level = logging.WARNING
    if not jobs.isEnabledFor(level):
        return
    template, args = "job %s %s after %.3f s", [_shown(event.task), _shown(event.ending), event.seconds]
    for more, value in _what_follows(event):
        template += more
        args.append(value)
    jobs.log(level, template, *args, exc_info=event.exception, extra=_about(event) | _outcome(event))


def _what_follows(event: e.JobSettled) -> Iterator[tuple[str, Any]]:
    """The rest of the message: constant texts, by which error trackers group records, and a value for each."""
    if event.state not in ("succeeded", event.ending):
        yield ", now %s", event.state
        if event.reason:
            yield " (%s)", _shown(event.reason)
    if event.retry_in is not None:
        yield ", again in %.1f s", event.retry_in
    if event.error:
        yield ": %s", _shown(event.error)


def _outcome(event: e.JobSettled) -> dict[str, Any]:
    values = {"state": event.state, "ending": event.ending, "reason": event.reason, "duration_ms": event.seconds * 1000}
    return {name: value for name, value in values.items() if value is not None}


def _fired(event: e.ScheduleFired) -> None:
    expected = event.decision == "started" or (event.decision == "skipped_overlap" and event.follows)
    level = logging.INFO if expected else logging.WARNING
    if schedules.isEnabledFor(level):
        about: dict[str, Any] = {
            "schedule_id": event.schedule_id,
            "fire_key": event.fire_key,
            "decision": event.decision,
        }
        if event.tracking_id is not None:
            about |= _noted(event.tracking_id, "fire", event.fire_key)
        words = f"schedule {event.schedule_id} {event.decision} for {from_us(event.fire_us).isoformat()}"
        schedules.log(level, "%s", _shown(words + (f": {event.reason}" if event.reason else "")), extra=about)


def _said(logger: logging.Logger, level: int, text: Callable[[Any], str]) -> Callable[[Any], None]:
    def wording(event: Any) -> None:
        if logger.isEnabledFor(level):
            extra = _about(event) if isinstance(event, e.JobEvent) else None
            logger.log(level, "%s", _shown(text(event)), extra=extra)

    return wording


def _elsewhere(event: e.NoTasks) -> str:
    if event.others:
        return (
            f"Others in this process have some: {', '.join(event.others)}. Is this one made twice, by a circular "
            "import or a module that is imported under two names?"
        )
    return "Import the modules that declare tasks before the start, or scheduler.include(router)."


def _shown(text: str) -> str:
    """One line without secrets: handlers of other libraries write it as it is."""
    return one_line(without_secrets(text))


def _failed(event: e.PartFailed) -> None:
    """A defect of onebeat itself, with its traceback."""
    rows = without_secrets(event.problem).rstrip().split("\n")
    log.error("%s failed, trying again: %s", _shown(event.part), CONTINUATION.join(map(one_line, rows)))


def _dropped(event: e.ValueDropped) -> str:
    return f"the value of {event.task} was not stored, the job succeeded: {event.problem}"


def _after_complete(event: e.FailedAfterComplete) -> None:
    if jobs.isEnabledFor(logging.ERROR):
        template = "job %s had completed itself and stays succeeded; then its function ended: %s"
        words = _shown(event.ending + (f", {event.error}" if event.error else ""))
        jobs.error(template, _shown(event.task), words, exc_info=event.exception, extra=_about(event))


def _stepped(event: e.ClockStepped) -> str:
    if event.seconds is not None and event.seconds > 0:
        return f"the database's clock was set forward by {event.seconds:.0f} s; what is due by it now fires as late"
    back = "" if event.seconds is None else f" by {-event.seconds:.0f} s"
    said = (
        f"the database's clock was set back{back}; {event.moved} schedules were given an earlier next fire, "
        "and what has made a job already does not fire again"
    )
    if event.retries:
        said += f"; {event.retries} retries start after the delay they were given"
    if event.delayed:
        said += (
            f"; {event.delayed} jobs were stored while it was ahead and start when their rows say: too late where they "
            "were given delay=, so cancel those and enqueue them anew"
        )
    return said


_DROPPED, _DROPPED_AGAIN = _said(jobs, logging.WARNING, _dropped), _said(jobs, logging.DEBUG, _dropped)

_WORDS: dict[type[e.Event], Callable[[Any], None]] = {
    e.WorkerStarted: _said(
        log,
        logging.INFO,
        lambda v: (
            f"worker {v.worker_id} serves {v.tasks} tasks and {v.schedules} schedules on {v.database}, "
            f"{v.slots} slots, up to {v.connections} connections"
        ),
    ),
    e.WorkerDraining: _said(
        log, logging.INFO, lambda v: f"waiting for {v.running} running jobs: {', '.join(v.waiting_for)}"
    ),
    e.WorkerStopped: _said(log, logging.INFO, lambda v: f"worker {v.worker_id} stopped; {v.returned} jobs given back"),
    e.WorkerLost: _said(
        log, logging.ERROR, lambda v: f"worker {v.worker_id} lost its lease ({v.reason}); its jobs here were stopped"
    ),
    e.WorkerDied: _said(
        log, logging.WARNING, lambda v: f"worker {v.worker_id} on {v.host} (pid {v.pid}) is dead; rescuing its jobs"
    ),
    e.ScheduleFired: _fired,
    e.FireConflict: _said(
        schedules,
        logging.ERROR,
        lambda v: (
            f"schedule {v.schedule_id}: {v.fire_key} has a record already though the schedule had not moved; "
            "was a table restored or edited? it was not fired again"
        ),
    ),
    e.ScheduleSkipping: _said(schedules, logging.WARNING, lambda v: v.warning),
    e.ScheduleUnreadable: _said(
        schedules,
        logging.ERROR,
        lambda v: f"schedule {v.schedule_id} is due and cannot be read here ({v.problem}); it waits for code that can",
    ),
    e.JobSettled: _settled,
    e.SettlementLost: _said(
        jobs,
        logging.WARNING,
        lambda v: f"job {v.task} ended here ({v.ending}), but it is no longer ours; nothing was written",
    ),
    e.JobRescued: _said(
        jobs,
        logging.WARNING,
        lambda v: (
            f"job {v.task} taken back from worker {v.from_worker}: {v.state}" + (f" ({v.reason})" if v.reason else "")
        ),
    ),
    e.ThreadOverran: _said(
        jobs,
        logging.WARNING,
        lambda v: (
            f"job {v.task} ran past its timeout of {v.timeout:g} s in a thread, which cannot be ended; "
            "its slot stays taken and the retry waits until it returns"
        ),
    ),
    e.StopIgnored: _said(
        jobs,
        logging.WARNING,
        lambda v: (
            f"job {v.task} was told to end ({v.cause}) and goes on {v.seconds:.0f} s later; "
            + ("its job ends without it" if v.replaced else "it stays running, and what waits for it waits on")
        ),
    ),
    e.FailedAfterComplete: _after_complete,
    e.ValueDropped: lambda v: (_DROPPED_AGAIN if v.again else _DROPPED)(v),
    e.DatabaseCaution: _said(log, logging.INFO, lambda v: f"{v.database}: {v.caution}"),
    e.DatabaseTrouble: _said(
        log, logging.WARNING, lambda v: f"{v.part}: {v.problem}; trying again in {v.retry_in:.1f} s"
    ),
    e.DatabaseBack: _said(log, logging.INFO, lambda v: f"{v.part}: the database answers again after {v.after:.1f} s"),
    e.ClockStepped: _said(log, logging.WARNING, _stepped),
    e.PartFailed: _failed,
    e.NoTasks: _said(log, logging.WARNING, lambda v: f"{v.scheduler} starts with 0 tasks. {_elsewhere(v)}"),
    e.SchedulerIdle: _said(log, logging.WARNING, lambda v: v.problem),
    e.QueueUnserved: _said(
        log, logging.WARNING, lambda v: f"no live worker serves queue {v.queue!r}, which task {v.task!r} uses"
    ),
}
