"""What became of one instant of a schedule, in one sentence and the records behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from onebeat.model.info import Fire, ScheduleInfo

INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Why:
    """One sentence, and the fire records it stands on; `str()` is the sentence."""

    sentence: str
    fires: tuple[Fire, ...] = ()

    def __str__(self) -> str:
        return self.sentence


def explain(info: ScheduleInfo, at: datetime, fires: Sequence[Fire]) -> Why:
    """Answer from the records, or from the rule where there is none."""
    name, when = f"schedule {info.id}", at.isoformat()
    at = at.astimezone(UTC)  # in its own zone a repeated hour compares equal to itself an hour later
    if fires:
        fire = fires[-1]
        if fire.decision == "gap":
            many = "an unknown number of" if fire.count is None else str(fire.count)
            return Why(f"{when} of {name} is one of {many} fires left out together: {fire.reason}", tuple(fires))
        made = f"; its job is {fire.job_id}" if fire.job_id is not None else ""
        return Why(f"{when} of {name} was {fire.decision}: {fire.reason}{made}", tuple(fires))
    if info.problem is not None:
        return Why(f"{name} cannot be read by this version of onebeat ({info.problem}), so nothing of it fires here")
    named = info.trigger.next_after(at - INSTANT)
    if named is None or named.astimezone(UTC) != at.astimezone(UTC):  # in a repeated hour two zones never compare equal
        following = info.trigger.next_after(at)
        hint = "never fires after it" if following is None else f"fires next at {following.isoformat()}"
        return Why(f"{when} is no fire time of {name}, which {hint}")
    if at < info.created_at:
        return Why(f"{when} lies before {name} was created, at {info.created_at.isoformat()}; nothing before is due")
    if info.state == "paused":
        return Why(f"{name} has been paused ({info.paused_reason or 'no reason given'}); {when} waits for the resume")
    if info.state == "orphaned":
        return Why(f"{name} is orphaned: no live worker runs the code that declares it")
    if info.next_fire is not None and at >= info.next_fire:
        return Why(f"{when} of {name} is not decided yet; the next fire to decide is {info.next_fire.isoformat()}")
    return Why(f"{when} of {name} has no record: it was pruned, or the rule was edited since")
