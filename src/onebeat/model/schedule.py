"""A schedule: trigger and policies; plan() decides what is due and what is skipped, and why.

Everything here is pure: rows come in as values, the decision goes out as a value, the store carries it out.

How the store uses it, in the one transaction of a tick, with `now_us` its first read:

1. Lock the due schedules (`state = 'active' AND next_fire_us <= now`); for each, read its unfinished jobs in age order
   as `Unfinished` (not needed when `policies.overlap` is `allow`) and call `plan(schedule, now_us, unfinished)`.
2. `UPDATE schedules SET next_fire_us, last_fire_us, fires_count, consecutive_skips, fire_seq + 1` (and
   `state = 'finished'` where `finished`) `WHERE id, rev, next_fire_us` are as read; no row: someone else owns the fire.
3. For each `PlannedFire`, in order: insert the fire row; for `decision == "started"` insert a job with `run_at_us`,
   born `waiting` with `waits_for` where that is set, else `scheduled` or `queued` by `run_at_us`.
4. Then, never before step 3, cancel each id of `cancel`: what has not started ends at once, what runs is asked to.
   Whoever ends a job of a schedule releases the oldest job with `waits_for = waits_for(schedule_id)`, in the same
   transaction, once no other job of the schedule is scheduled, queued or running; so a job inserted first cannot miss
   its release.
5. Log `warning` where it is set.

`model/changes.py` answers the other changes of a schedule in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b

from onebeat.model.policies import DEFAULT, CatchUp, Decision, Origin, Overlap, Policies, ScheduleState
from onebeat.timing.clock import HOUR, SECOND, from_us
from onebeat.timing.rule import DueFire, Rule, describe_duration

ON_TIME = 5 * SECOND  # a fire this little late is on time: polling and a busy database are ordinary
BACKLOG = 60 * SECOND  # a worker may take this long over what is due at once, and none of it is late for that
ONE_BY_ONE = 1_000  # due fires decided one by one; more become one gap row
OTHER_DATA = 26 * HOUR  # no zone's offset changes by more
QUEUE_ALL = 100  # waiting jobs `queue_all` keeps
SKIPS_WARNED = 3  # skips in a row that make one warning


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What `plan` needs to know of a schedule's row."""

    id: str
    trigger: Rule
    policies: Policies = DEFAULT
    state: ScheduleState = ScheduleState.ACTIVE
    next_fire_us: int | None = None
    last_fire_us: int | None = None
    fires_count: int = 0
    consecutive_skips: int = 0


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A job of the schedule that has not ended: waiting, scheduled, queued or running."""

    id: str
    state: str
    fire_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFire:
    """One fire row to write, and for `started` the job to insert."""

    key: str
    fire_us: int
    decision: Decision
    reason: str
    origin: Origin = Origin.SCHEDULE
    until_us: int | None = None  # gap rows: the last instant left out
    count: int | None = None  # gap rows: how many; None: too many to count
    run_at_us: int | None = None  # started: when the job may run
    waits_for: str | None = None  # started: the job is born `waiting`, held by this
    cancel: tuple[str, ...] = ()  # started: unfinished jobs to cancel
    mark: str | None = None  # "gap" or "fold": a clock change touches this fire


@dataclass(frozen=True, slots=True, kw_only=True)
class FirePlan:
    """What one tick does to one schedule; the values are those of the row afterwards."""

    fires: tuple[PlannedFire, ...]
    next_fire_us: int | None
    last_fire_us: int | None
    finished: bool
    fires_count: int
    consecutive_skips: int
    warning: str | None = None


def plan(
    schedule: Schedule, now_us: int, unfinished: tuple[Unfinished, ...] = (), since_us: int | None = None
) -> FirePlan:
    """Decide every instant of the schedule that is due at `now_us`.

    `since_us`: when the worker began with what is due, if that is more than one batch. What was on time then stays on
    time for `BACKLOG`, so that load alone makes no fire `misfired` or `coalesced`.

    >>> from onebeat.timing.triggers import Every
    >>> made = plan(Schedule(id="beat", trigger=Every(60), next_fire_us=0), 2 * SECOND)
    >>> made.fires[0].decision, made.next_fire_us // SECOND
    (<Decision.STARTED: 'started'>, 60)
    """
    first = schedule.next_fire_us
    if first is None or first > now_us or schedule.state is not ScheduleState.ACTIVE:
        return _unchanged(schedule)
    if spent(schedule.policies, schedule.fires_count):  # an edit lowered `max_fires` below what it has had
        return replace(_unchanged(schedule), next_fire_us=None, finished=True)
    due, gap, following = _due(schedule.trigger, _since(schedule, first), now_us)
    next_us = None if following is None else following.at
    if len(due) == 1 and (made := _one_on_time(schedule, due[0], now_us, next_us, unfinished, since_us)) is not None:
        return made
    verdicts = _Verdicts(schedule, now_us, next_us, unfinished)
    if gap is not None:
        verdicts.fires.append(gap_row(*gap, f"more than {ONE_BY_ONE} fires were missed; these are the oldest"))
    for fire, run_at, verdict, reason in _before_overlap(
        schedule, due, now_us, next_us, verdicts.fires, _on_time(now_us, since_us)
    ):
        if verdict is not None:
            verdicts.leave_out(fire, verdict, reason)
        elif not verdicts.start(fire, run_at, reason):
            break
    return verdicts.plan(due[-1].at if due else None)


def _one_on_time(
    schedule: Schedule,
    fire: DueFire,
    now: int,
    next_us: int | None,
    unfinished: tuple[Unfinished, ...],
    since_us: int | None,
) -> FirePlan | None:
    """What nearly every plan is: one fire, on time, that nothing holds; None where a policy has something to say.

    The general way decides the same and takes three times as long, which counts when thousands are due at once.
    """
    policies = schedule.policies
    grace = policies.misfire_grace_us
    is_held = unfinished and policies.overlap is not Overlap.ALLOW
    if is_held or fire.at < _on_time(now, since_us) or (grace is not None and fire.at < now - grace):
        return None
    offset = jitter_us(schedule.id, policies.jitter_us)
    run_at = max(now, fire.at + _capped(offset, fire.at, next_us))
    count, last = schedule.fires_count + 1, schedule.last_fire_us
    if spent(policies, count):
        next_us = None
    return FirePlan(
        fires=(started(fire, Origin.SCHEDULE, run_at, _timely(fire, now)),),
        next_fire_us=next_us,
        last_fire_us=fire.at if last is None or fire.at > last else last,
        finished=next_us is None,
        fires_count=count,
        consecutive_skips=0,
    )


def spent(policies: Policies, fires_count: int) -> bool:
    """Whether a schedule has had all the fires that `max_fires` allows."""
    return policies.max_fires is not None and fires_count >= policies.max_fires


def waits_for(schedule_id: str) -> str:
    """What a job held by its schedule's `overlap` carries in its column `waits_for`."""
    return f"schedule:{schedule_id}"


def jitter_us(schedule_id: str, spread_us: int) -> int:
    """The offset of a schedule's jobs: the same in every process, spread over `spread_us` by the id."""
    if not spread_us:
        return 0
    digest = blake2b(schedule_id.encode(), key=b"onebeat.jitter", digest_size=8).digest()
    return int.from_bytes(digest, "big") * spread_us >> 64


def _on_time(now: int, since: int | None) -> int:
    """The earliest instant that is not late."""
    begun = now if since is None else max(min(since, now), now - BACKLOG)
    return begun - ON_TIME


_Ready = tuple[DueFire, int, Decision | None, str]  # a due fire, when its job may run, the verdict if there is one, why


def _since(schedule: Schedule, first: int) -> int:
    """Where due instants begin: at the row's next fire, or, if other zone data computed that, after the last fire.

    Workers whose zone data differ would else pass a fire of that day to and fro until neither fires it.
    """
    last = schedule.last_fire_us
    if last is None or last >= first:
        return first
    named = schedule.trigger.next_fire(first - 1)
    return first if named is not None and named.at == first else max(last + 1, first - OTHER_DATA)


def _due(
    trigger: Rule, first: int, now: int
) -> tuple[list[DueFire], tuple[DueFire, int, int | None] | None, DueFire | None]:
    """The due fires from `first` to `now`; of very many the newest, the others as a gap; the first fire after now."""
    due: list[DueFire] = []
    fire = trigger.next_fire(first - 1)
    while fire is not None and fire.at <= now and len(due) <= ONE_BY_ONE:
        due.append(fire)
        fire = trigger.next_fire(fire.at)
    if len(due) <= ONE_BY_ONE:
        return due, None, fire
    newest: list[DueFire] = []
    back = trigger.previous_fire(now + 1)
    while back is not None and len(newest) < ONE_BY_ONE:
        newest.append(back)
        back = trigger.previous_fire(back.at)
    assert back is not None, "there are more than ONE_BY_ONE"
    gap = (due[0], back.at, trigger.count(first - 1, back.at))
    return newest[::-1], gap, trigger.next_fire(now)


def _before_overlap(
    schedule: Schedule, due: list[DueFire], now: int, next_us: int | None, rows: list[PlannedFire], on_time: int
) -> list[_Ready]:
    """Misfire grace and catch-up; a gap row of catch-up goes to `rows` as the oldest of its kind."""
    policies = schedule.policies
    grace = policies.misfire_grace_us
    offset = jitter_us(schedule.id, policies.jitter_us)
    ready: list[_Ready] = []
    late: list[DueFire] = []
    for index, fire in enumerate(due):
        if grace is not None and fire.at < now - grace:
            ready.append(
                (fire, 0, Decision.MISFIRED, f"{_late(fire, now)}; misfire_grace is {describe_duration(grace)}")
            )
        elif fire.at < on_time:
            late.append(fire)
        else:
            ready += _catch_up(policies, late, True, now, offset, next_us, rows)
            late = []
            following = due[index + 1].at if index + 1 < len(due) else next_us
            ready.append((fire, max(now, fire.at + _capped(offset, fire.at, following)), None, _timely(fire, now)))
    return ready + _catch_up(policies, late, False, now, offset, next_us, rows)


def _catch_up(
    policies: Policies,
    late: list[DueFire],
    newer_on_time: bool,
    now: int,
    offset: int,
    next_us: int | None,
    rows: list[PlannedFire],
) -> list[_Ready]:
    if not late:
        return []
    policy = policies.catch_up
    if policy == "skip":
        return [(fire, 0, Decision.MISFIRED, f"{_late(fire, now)}; catch_up is skip") for fire in late]
    run_at = now + _capped(offset, now, next_us)
    if isinstance(policy, CatchUp):
        kept = [fire for fire in late[-policy.max :] if fire.at >= now - policy.window_us]
        over = late[: len(late) - len(kept)]
        if over:
            why = f"catch_up runs at most the newest {policy.max} of the last {describe_duration(policy.window_us)}"
            rows.append(gap_row(over[0], over[-1].at, len(over), why))
        return [(fire, run_at + n * policy.spacing_us, None, _late(fire, now)) for n, fire in enumerate(kept)]
    others = late if newer_on_time else late[:-1]
    newest = "a newer fire is on time" if newer_on_time else f"the newest missed fire, {late[-1].key}, runs"
    ready: list[_Ready] = [(fire, 0, Decision.COALESCED, f"{_late(fire, now)}; {newest}") for fire in others]
    if not newer_on_time:
        also = f"; stands for {len(late)} missed fires" if others else ""
        ready.append((late[-1], run_at, None, _late(late[-1], now) + also))
    return ready


class _Verdicts:
    """Collects fire rows and counts; the last policy, overlap, is met here."""

    def __init__(self, schedule: Schedule, now: int, next_us: int | None, unfinished: tuple[Unfinished, ...]) -> None:
        self.schedule = schedule
        self.now = now
        self.next_us = next_us
        self.held = list(unfinished)
        self.fires: list[PlannedFire] = []
        self.started: int | None = None  # where the last started fire stands in `fires`
        self.count = schedule.fires_count
        self.skips = schedule.consecutive_skips
        self.warning: str | None = None
        self.ended = False

    def leave_out(self, fire: DueFire, decision: Decision, reason: str) -> None:
        """A row without a job."""
        self.fires.append(PlannedFire(key=fire.key, fire_us=fire.at, decision=decision, reason=reason, mark=fire.mark))

    def start(self, fire: DueFire, run_at: int, reason: str) -> bool:
        """Meet overlap; False when the schedule has now had all its fires."""
        schedule = self.schedule
        made = meet(schedule, fire, Origin.SCHEDULE, run_at, reason, self.held)
        if made.decision is not Decision.STARTED:
            self.fires.append(made)
            self.skips += self.started is None  # several that were due at once say nothing about the task's length
            if self.skips == SKIPS_WARNED:
                self.warning = f"schedule {schedule.id} skipped {SKIPS_WARNED} fires in a row; {made.reason}"
            return True
        self.skips = 0
        if self.started is not None and schedule.policies.overlap is Overlap.CANCEL_PREVIOUS:
            earlier = self.fires[self.started]  # its job would be cancelled before it began
            self.fires[self.started] = _superseded(earlier, fire)
        else:
            self.count += 1
        self.started = len(self.fires)
        self.fires.append(made)
        if schedule.policies.overlap is not Overlap.CANCEL_PREVIOUS:
            state = "waiting" if made.waits_for else "queued"
            self.held.append(Unfinished(f"of the fire at {from_us(fire.at).isoformat()}", state, fire.at))
        self.ended = spent(schedule.policies, self.count)
        return not self.ended

    def plan(self, last_due: int | None) -> FirePlan:
        """The verdicts as a plan."""
        last = self.schedule.last_fire_us
        if self.ended:
            last_due = self.fires[-1].fire_us  # what came due after the last permitted fire has no verdict
        if last_due is not None and (last is None or last_due > last):
            last = last_due
        next_us = None if self.ended else self.next_us
        return FirePlan(
            fires=tuple(self.fires),
            next_fire_us=next_us,
            last_fire_us=last,
            finished=next_us is None,
            fires_count=self.count,
            consecutive_skips=self.skips,
            warning=self.warning,
        )


def meet(
    schedule: Schedule, fire: DueFire, origin: Origin, run_at: int, reason: str, held: list[Unfinished]
) -> PlannedFire:
    """Start the fire, let it wait, or skip it, as `overlap` says about the jobs held."""
    overlap = schedule.policies.overlap
    if not held or overlap is Overlap.ALLOW:
        return started(fire, origin, run_at, reason)
    wait = waits_for(schedule.id)
    oldest = f"job {held[0].id} is {held[0].state}"
    if overlap is Overlap.CANCEL_PREVIOUS:
        return started(
            fire, origin, run_at, f"{reason}; cancels {oldest}", wait, tuple(job.id for job in held)
        )  # fmt: skip
    waiting = [job for job in held if job.state == "waiting"]
    if overlap is Overlap.QUEUE_ONE and waiting:
        why = f"job {waiting[0].id} is already waiting"
    elif overlap is Overlap.QUEUE_ALL and len(waiting) >= QUEUE_ALL:
        why = f"{len(waiting)} jobs are already waiting, the first is job {waiting[0].id}"
    elif overlap is Overlap.SKIP:
        why = f"{oldest} and has not ended"
    else:
        return started(fire, origin, run_at, f"{reason}; waits, for {oldest}", wait)
    return PlannedFire(
        key=fire.key, fire_us=fire.at, decision=Decision.SKIPPED_OVERLAP, reason=why, origin=origin, mark=fire.mark
    )


def started(
    fire: DueFire,
    origin: Origin,
    run_at: int,
    reason: str,
    waits: str | None = None,
    cancel: tuple[str, ...] = (),
) -> PlannedFire:
    return PlannedFire(
        key=fire.key,
        fire_us=fire.at,
        decision=Decision.STARTED,
        reason=reason,
        origin=origin,
        run_at_us=run_at,
        waits_for=waits,
        cancel=cancel,
        mark=fire.mark,
    )


def _superseded(earlier: PlannedFire, newer: DueFire) -> PlannedFire:
    return PlannedFire(
        key=earlier.key,
        fire_us=earlier.fire_us,
        decision=Decision.SKIPPED_OVERLAP,
        reason=f"cancelled by the newer fire {newer.key}",
        mark=earlier.mark,
    )


def gap_row(first: DueFire, until: int, count: int | None, reason: str) -> PlannedFire:
    return PlannedFire(
        key=f"gap:{first.key}",
        fire_us=first.at,
        decision=Decision.GAP,
        reason=reason,
        until_us=until,
        count=count,
    )


def _unchanged(schedule: Schedule) -> FirePlan:
    return FirePlan(
        fires=(),
        next_fire_us=schedule.next_fire_us,
        last_fire_us=schedule.last_fire_us,
        finished=schedule.state is ScheduleState.FINISHED,
        fires_count=schedule.fires_count,
        consecutive_skips=schedule.consecutive_skips,
    )


def _capped(offset: int, start: int, following: int | None) -> int:
    """The jitter, kept below the next instant."""
    return offset if following is None or not offset else max(0, min(offset, following - start - 1))


def _timely(fire: DueFire, now: int) -> str:
    """Why a fire runs that is not late, or only because of the load."""
    return "on time" if fire.at >= now - ON_TIME else f"{_late(fire, now)}, as very many were due at once"


def _late(fire: DueFire, now: int) -> str:
    return f"late by {describe_duration((now - fire.at) // SECOND * SECOND)}"
