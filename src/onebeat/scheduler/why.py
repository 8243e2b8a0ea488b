"""Why: what happened at one instant of a schedule, in one sentence, with the records."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from onebeat.model.info import Fire, JobInfo, ScheduleInfo
from onebeat.model.job import JobState

INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Why:
    """One sentence, and the fire records that it reports; `str()` is the sentence."""

    sentence: str
    fires: tuple[Fire, ...] = ()

    def __str__(self) -> str:
        return self.sentence


def explain(info: ScheduleInfo, at: datetime, now: datetime, fires: Sequence[Fire]) -> Why:
    """Explain the instant `at` from its records; without any, from the trigger and the schedule's state."""
    name, when = f"schedule {info.id}", at.isoformat()
    at = at.astimezone(UTC)  # in its own zone a repeated hour compares equal to itself an hour later
    own = [fire for fire in fires if fire.decision != "gap"]
    if own:
        return Why(f"{when} of {name} was {_decisions(own)}", tuple(own))
    if fires:
        return _in_gap(info, at, when, fires)
    if info.problem is not None:
        return Why(f"{name} cannot be read by this version of onebeat ({info.problem}), so nothing of it fires here")
    if not _has_instant(info, at):
        following = info.trigger.next_after(at)
        hint = "never fires after it" if following is None else f"fires next at {following.isoformat()}"
        return Why(f"{when} is no fire time of {name}, which {hint}")
    if info.next_fire is not None and at >= info.next_fire:
        return Why(_undecided(info, name, when, due=at <= now))
    if at <= info.created_at:
        return Why(f"{when} lies before {name} was created, at {info.created_at.isoformat()}; nothing before is due")
    if info.state == "finished" and (info.last_fire is None or at > info.last_fire):
        count = f"{info.fires_count} fire{'' if info.fires_count == 1 else 's'}"
        return Why(f"{when} of {name} is not due: the schedule is finished, after {count}")
    return Why(f"{when} of {name} has no record: it was pruned, or the rule was edited since")


def jobs_named(fires: Iterable[Fire]) -> list[UUID]:
    """Return the jobs that these records made, and those that held them back, which their reasons name."""
    found = [fire.job_id for fire in fires if fire.job_id is not None]
    found += [UUID(text) for fire in fires for text in _JOB_ID.findall(fire.reason or "")]
    return list(dict.fromkeys(found))[:100]


def with_overruns(why: Why, jobs: Iterable[JobInfo]) -> Why:
    """Add which of these jobs have a run that was told to end and goes on."""
    stuck = [job for job in jobs if job.state is JobState.RUNNING and job.reason in ("timeout", "cancel ignored")]
    if not stuck:
        return why
    causes = {"timeout": "its timeout is over", "cancel ignored": "it was cancelled"}
    told = [f"job {job.id} was told to end and goes on ({causes[job.reason or '']})" for job in stuck]
    return replace(why, sentence="; ".join([why.sentence, *told]))


_JOB_ID = re.compile(r"\bjob ([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


def _decisions(fires: Sequence[Fire]) -> str:
    """Return the first decision, the last one by hand or by backfill, and the number between them."""
    first, *later = fires
    if not later:
        return _decision(first)
    between = f"; {len(later) - 1} more" if len(later) > 1 else ""
    return f"{_decision(first)}{between}; {_decision(later[-1])}"


def _decision(fire: Fire) -> str:
    how = {"manual": " by hand", "backfill": " by a backfill"}.get(fire.origin, "")
    made = f"; its job is {fire.job_id}" if fire.job_id is not None else ""
    return f"{fire.decision}{how}: {fire.reason}{made}"


def _in_gap(info: ScheduleInfo, at: datetime, when: str, fires: Sequence[Fire]) -> Why:
    gap = fires[-1]
    count = "an unknown number of" if gap.count is None else str(gap.count)
    ends = [end.astimezone(UTC) for end in (gap.fire_time, gap.until) if end is not None]
    if info.problem is not None or at in ends or _has_instant(info, at):
        sentence = f"{when} of schedule {info.id} is one of {count} fires left out together: {gap.reason}"
    else:
        sentence = f"{when} is no fire time of schedule {info.id}; {count} fires around it were left out: {gap.reason}"
    return Why(sentence, tuple(fires))


def _has_instant(info: ScheduleInfo, at: datetime) -> bool:
    """Return whether the trigger, as it is now, fires at this instant."""
    following = info.trigger.next_after(at - INSTANT)
    return following is not None and following.astimezone(UTC) == at  # in a repeated hour two zones never compare equal


def _undecided(info: ScheduleInfo, name: str, when: str, *, due: bool) -> str:
    """Return what an undecided instant waits for."""
    if info.state == "paused":
        paused = f"{name} has been paused ({info.paused_reason or 'no reason given'})"
        if due:
            return f"{paused}; {when} came due meanwhile and is left out at the resume"
        return f"{paused}; {when} fires only if it is resumed before"
    if info.state == "orphaned":
        orphaned = f"{name} is orphaned: no live worker runs the code that declares it"
        return f"{orphaned}; {when} {'is decided when one does' if due else 'fires only if one does by then'}"
    if due:
        return f"{when} of {name} is due and not decided yet; that is for the next worker that looks"
    return f"{when} of {name} is not decided yet, it lies ahead; the next fire is {_moment(info.next_fire)}"


def _moment(moment: datetime | None) -> str:
    return "unknown" if moment is None else moment.isoformat()
