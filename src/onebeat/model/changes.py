"""Every other change of a schedule's fires: first fire, edit, resume, new zone data, fire_now, backfill."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from onebeat.errors import InvalidArguments, InvalidTrigger
from onebeat.model.policies import Origin, Overlap
from onebeat.model.schedule import PlannedFire, Schedule, Unfinished, gap_row, meet, started, waits_for
from onebeat.timing.any_of import AnyOf
from onebeat.timing.clock import MINUTE
from onebeat.timing.rule import DueFire, Rule
from onebeat.timing.triggers import At
from onebeat.timing.zones import changed, fingerprint, stale

AT_GRACE = MINUTE  # how far in the past an `At` may lie when it is declared
BACKFILL = 1_000  # fires of one backfill without a `limit`


def first_fire(trigger: Rule, now_us: int) -> int:
    """`next_fire_us` of a new schedule: nothing before its creation is due, but an `At` at most a minute ago.

    Raises `InvalidTrigger` when the trigger will never fire.
    """
    parts = trigger.parts if isinstance(trigger, AnyOf) else (trigger,)
    fires = [each.at_us for each in parts if isinstance(each, At) and now_us - AT_GRACE <= each.at_us]
    following = trigger.next_fire(now_us)
    if following is not None:
        fires.append(following.at)
    if not fires:
        raise InvalidTrigger(trigger.over(now_us))
    return min(fires)


def edited(
    before: Rule | None, trigger: Rule, now_us: int, *, next_fire_us: int | None, last_fire_us: int | None
) -> int | None:
    """`next_fire_us` after an edit: as it was, or for another trigger or zone the first after now and the last fire.

    `before` is None where the old rule could not be read. Raises `InvalidTrigger` when the new one will never fire.
    """
    if trigger == before:
        return next_fire_us
    return first_fire(trigger, max(now_us, last_fire_us or now_us))


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumption:
    """What resuming a paused schedule does: its next fire, and the one row for what the pause left out."""

    next_fire_us: int | None
    finished: bool
    fires: tuple[PlannedFire, ...]


def resumed(schedule: Schedule, now_us: int) -> Resumption:
    """Decide a resume at `now_us`: one gap row with reason `paused` where fires were left out; none is caught up."""
    following = schedule.trigger.next_fire(now_us)
    next_us = None if following is None else following.at
    fires: tuple[PlannedFire, ...] = ()
    since = schedule.next_fire_us
    if since is not None and since <= now_us:
        first = schedule.trigger.next_fire(since - 1)
        last = schedule.trigger.previous_fire(now_us + 1)
        if first is not None and last is not None and first.at <= last.at:
            count = schedule.trigger.count(since - 1, now_us)
            fires = (gap_row(first, last.at, count, "paused"),)
    return Resumption(next_fire_us=next_us, finished=next_us is None, fires=fires)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rezoning:
    """What a look at the zone's data says: the fingerprint to store, and the next fire under today's data."""

    fingerprint: str
    next_fire_us: int | None


def rezoned(
    schedule: Schedule, stored: str | None, now_us: int, *, since_us: int, name: str | None = None
) -> Rezoning | None:
    """Compare the zone's data with the stored fingerprint; None: nothing to write.

    `since_us`: all before this instant is decided (the latest of creation, edit and resume). An overdue schedule keeps
    its due fires: the new next fire is the first after its last one. `name` is the zone that the schedule's row names,
    which a trigger without wall times has none of.
    """
    name = name or schedule.trigger.timezone or "UTC"
    if stored is not None and not changed(name, stored):
        if not stale(stored, now_us):
            return None
        return Rezoning(fingerprint=fingerprint(name, now_us), next_fire_us=schedule.next_fire_us)
    current = schedule.next_fire_us
    if stored is not None and current is not None:
        decided = max(since_us, schedule.last_fire_us or since_us)
        following = schedule.trigger.next_fire(decided if current <= now_us else max(decided, now_us))
        current = None if following is None else following.at
    return Rezoning(fingerprint=fingerprint(name, now_us), next_fire_us=current)


def next_fire_after_set_back(schedule: Schedule, now_us: int, started: Collection[str]) -> int | None:
    """`next_fire_us` after the clock was set back to `now_us`: the first fire whose key is not in `started`.

    It is never later than before.
    """
    current = schedule.next_fire_us
    if current is not None:
        for due in schedule.trigger.fires_after(now_us, current - 1):
            if due.key not in started:
                return due.at
    return current


def fire_now(
    schedule: Schedule, now_us: int, unfinished: tuple[Unfinished, ...], *, unique: str, force: bool = False
) -> PlannedFire:
    """One fire by hand, keyed `manual:<unique>`; it moves neither the next fire nor a counter.

    It meets `overlap` as any other fire does, unless `force`; it works on paused and finished schedules.
    """
    due = DueFire(now_us, f"manual:{unique}")
    if force:
        return started(due, Origin.MANUAL, now_us, "asked for, by force")
    return meet(schedule, due, Origin.MANUAL, now_us, "asked for", list(unfinished))


def backfill(
    schedule: Schedule,
    start_us: int,
    end_us: int,
    now_us: int,
    unfinished: tuple[Unfinished, ...] = (),
    *,
    limit: int | None = None,
    again: str | None = None,
) -> tuple[PlannedFire, ...]:
    """The fires from `start_us` up to, not including, `end_us` once more, keyed `backfill:<key>`.

    The store leaves out keys that exist, so a second backfill of a range makes nothing; `again` (unique text) makes new
    keys. With `overlap="allow"` all jobs may run at once, else they run one after the other. `limit` takes the oldest.
    Raises `InvalidArguments` for an empty or future range and for more than 1,000 fires without a `limit`.
    """
    if start_us >= end_us:
        raise InvalidArguments("backfill: the range is empty; start must lie before end")
    if end_us > now_us:
        raise InvalidArguments("backfill: the range reaches into the future; end it at now")
    if limit is not None and not 1 <= limit <= 10 * BACKFILL:
        raise InvalidArguments(f"backfill: limit={limit!r:.20} must be from 1 to {10 * BACKFILL}")
    most = BACKFILL if limit is None else limit
    fires: list[PlannedFire] = []
    held = bool(unfinished)
    alone = schedule.policies.overlap is not Overlap.ALLOW
    for due in schedule.trigger.fires_after(start_us - 1, end_us - 1):
        if len(fires) == most:
            if limit is None:
                raise InvalidArguments(f"backfill: over {BACKFILL} fires in the range; give limit=, or a shorter range")
            break
        key = f"backfill:{due.key}" + (f";again:{again}" if again else "")
        wait = waits_for(schedule.id) if alone and (held or fires) else None
        named = DueFire(due.at, key, due.mark)
        fires.append(started(named, Origin.BACKFILL, now_us, "asked for", waits=wait))
    return tuple(fires)
