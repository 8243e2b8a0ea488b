"""`scheduler.schedules`: add, find, edit, pause, fire and explain schedules at run time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Protocol, Unpack

from onebeat.engine.wakeups import AT_ONCE, Wakeups
from onebeat.errors import ConfigurationError, InvalidArguments, InvalidTrigger, ScheduleNotFound, StaleRevision
from onebeat.model import changes
from onebeat.model.checks import NAME, aware_us, check_filters, check_limit, check_name
from onebeat.model.definition import Definition
from onebeat.model.ids import token
from onebeat.model.info import Fire, Page, ScheduleInfo
from onebeat.model.policies import Decision, ScheduleState
from onebeat.model.protocols import Trigger
from onebeat.model.schedule import PlannedFire, Schedule, Unfinished
from onebeat.scheduler.definitions import definition_of
from onebeat.scheduler.why import INSTANT, Why, explain, jobs_named, with_overruns
from onebeat.settings import Settings
from onebeat.store import reports
from onebeat.store.connection.callers_session import AsyncCaller, run_in
from onebeat.store.connection.database import Database
from onebeat.store.schedules import edit as store, fire as store_fires, read
from onebeat.store.tx import Tx
from onebeat.tasks.declared_schedule import (
    IfExists,
    NewSchedule,
    ScheduleOptions,
    TaskLike,
    check_if_exists,
    declared_schedule,
)
from onebeat.tasks.registry import Registry
from onebeat.timing.clock import from_us
from onebeat.timing.zones import zone_name

MERGES = 20  # times an edit is repeated because another one was committed first
Decide = Callable[[Schedule, int, tuple[Unfinished, ...]], tuple[PlannedFire, ...]]


class _Owner(Protocol):
    registry: Registry
    settings: Settings


class Schedules:
    """The schedules in the database, declared in code or added at run time."""

    def __init__(
        self,
        database: Callable[[], Database],
        *,
        wakeups: Wakeups,
        scheduler: _Owner,
        who: Callable[[], str],
        new_tracking_id: Callable[[], str],
    ) -> None:
        self._database = database
        self._who = who
        self._new_tracking_id = new_tracking_id
        self._wakeups = wakeups
        self._scheduler = scheduler

    async def add(
        self,
        id: str,
        task: TaskLike | str,
        trigger: Trigger,
        *,
        if_exists: IfExists = "error",
        session: AsyncCaller | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> ScheduleInfo:
        """Store a schedule. Nothing before now is due.

        `if_exists` decides when the id is taken. "error" raises, unless that schedule is finished and was added at run
        time. "keep" changes nothing. "replace" gives it these values, also when its row cannot be read.

        With `session`, an `AsyncSession` or `AsyncConnection` on this database, the change is part of its transaction,
        as in `update`, `pause`, `resume` and `remove`: it takes effect with that commit.

        Raises `ScheduleExists`, `InvalidTrigger` (an `At` more than 60 s ago), `InvalidArguments`, `UnknownTask`, and
        `ConfigurationError` for a session of another kind or database.
        """
        definition = self._definition(id, task, trigger, if_exists, options)
        return await self._change(id, partial(store.add, item=definition, if_exists=if_exists), session)

    async def add_many(
        self, schedules: Iterable[NewSchedule], *, session: AsyncCaller | None = None
    ) -> Sequence[ScheduleInfo]:
        """Store schedules in one transaction, and return them in the order given; an error leaves none of them stored.

        Each is treated as by `add`, which says what is raised and what `session` is. `InvalidArguments` says that two
        of them have one id.
        """
        items = [
            (self._definition(new.id, new.task, new.trigger, new.if_exists, new.options()), new.if_exists)
            for new in map(_new_schedule, schedules)
        ]
        ids = [item.id for item, _ in items]
        for id, count in Counter(ids).items():
            if count > 1:
                raise InvalidArguments(f"{count} of these schedules have the id {id!r}; each needs one of its own")
        if not items:
            return []
        return await self._change_many(ids, partial(store.add_many, items=items), session)

    def _definition(
        self,
        id: str,
        task: TaskLike | str,
        trigger: Trigger,
        if_exists: str,
        options: ScheduleOptions,
    ) -> Definition:
        check_if_exists(if_exists)
        item = declared_schedule(id, self._task(task), trigger, options)
        return definition_of(item, self._scheduler.settings.timezone)

    async def _change(
        self, id: str, change: Callable[[Tx], object], session: AsyncCaller | None, *, wakes: bool = True
    ) -> ScheduleInfo:
        """Make a change in a transaction of its own or in the session's, and return the schedule as it then is."""
        (info,) = await self._change_many([id], change, session, wakes=wakes)
        return info

    async def _change_many(
        self, ids: Sequence[str], change: Callable[[Tx], object], session: AsyncCaller | None, *, wakes: bool = True
    ) -> Sequence[ScheduleInfo]:
        database = self._database()
        if session is None:
            await database.write(change)
            if wakes:
                self._wakeups.schedules_changed()
            return await database.read(read.get_many, ids)
        wakeup = self._wakeups.schedules_changed if wakes else None
        return await run_in(session, database, _change_and_read, change, ids, after_commit=wakeup)

    def _task(self, task: TaskLike | str) -> TaskLike:
        return self._scheduler.registry.get(task) if isinstance(task, str) else task

    async def get(self, id: str) -> ScheduleInfo:
        """Return the schedule as it is now; raises `ScheduleNotFound`."""
        return await self._database().read(read.get, _known_id(id))

    async def list(
        self,
        *,
        tag: str | None = None,
        task: str | None = None,
        state: str | None = None,
        source: str | None = None,
        prefix: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[ScheduleInfo]:
        """Return the schedules that match every given filter, by id, at most `limit` (1,000) in a page.

        Raises `ConfigurationError` for a filter that no schedule can match, such as a name with a blank.
        """
        check_filters(tag=tag, task=task)
        _check_choice("state", state, tuple(ScheduleState))
        _check_choice("source", source, ("code", "api"))
        for what, text in (("prefix", prefix or None), ("cursor", cursor)):
            if text is not None:
                check_name(text, what)
        return await self._database().read(
            read.listing,
            tag=tag,
            task=task,
            state=state,
            source=source,
            prefix=prefix,
            limit=check_limit(limit),
            cursor=cursor,
        )

    async def update(
        self,
        id: str,
        *,
        trigger: Trigger | None = None,
        task: TaskLike | str | None = None,
        expected_rev: int | None = None,
        override: bool = False,
        session: AsyncCaller | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> ScheduleInfo:
        """Change what is given. The next fire is computed again when the trigger or its zone changes; else it stays.

        For a row that cannot be read, give every damaged value. `session` as in `add`.
        Raises `StaleRevision` when `expected_rev` is not the current revision, `ScheduleNotFound`, and
        `ConfigurationError` for a schedule declared in code without `override=True`.
        """
        database = self._database()
        for left in reversed(range(MERGES)):
            if session is None:
                present, rev = await database.read(read.definition, _known_id(id))
            else:
                present, rev = await run_in(session, database, read.definition, _known_id(id))
            if expected_rev not in (None, rev):
                raise store.stale(id, rev, expected_rev)
            item = self._changed(present, trigger, task, options)
            try:
                return await self._change(
                    id, partial(store.edit, item=item, expected_rev=rev, override=override), session
                )
            except StaleRevision:  # another edit was committed first; repeat this one on top of it
                if expected_rev is not None or not left:
                    raise
        raise AssertionError("the last pass of the loop returns or raises")

    def _changed(
        self,
        present: Definition,
        trigger: Trigger | None,
        task: TaskLike | str | None,
        options: ScheduleOptions,
    ) -> Definition:
        merged: ScheduleOptions = {**read.options_of(present, options), **options}  # type: ignore[typeddict-item]  # both are
        known = self._task(task if task is not None else present.task)
        item = declared_schedule(present.id, known, trigger or read.trigger_of(present), merged)
        try:
            default = zone_name(present.timezone)
        except InvalidTrigger:  # the row is damaged, or this machine has older zone data
            default = self._scheduler.settings.timezone
        return definition_of(item, default)

    async def pause(self, id: str, reason: str | None = None, *, session: AsyncCaller | None = None) -> ScheduleInfo:
        """Stop firing until `resume`, which does not catch up the fires of the pause. `session` as in `add`.

        Raises `ScheduleNotFound`, and `ConfigurationError` for a finished schedule.
        """
        return await self._change(id, partial(store.pause, id=_known_id(id), reason=reason), session, wakes=False)

    async def resume(self, id: str, *, session: AsyncCaller | None = None) -> ScheduleInfo:
        """Fire again, from now on; one `gap` record tells what the pause left out. `session` as in `add`.

        Raises `ScheduleNotFound`.
        """
        return await self._change(id, partial(store.resume, id=_known_id(id), by=self._who()), session)

    async def remove(self, id: str, *, session: AsyncCaller | None = None) -> None:
        """Delete the schedule and its fires, not its jobs. One declared in code returns at the next start.

        `session` as in `add`. Raises `ScheduleNotFound`.
        """
        remove = partial(store.remove, ids=[_known_id(id)], missing_ok=False)
        if session is None:
            await self._database().write(remove)
        else:
            await run_in(session, self._database(), remove)

    async def remove_where(self, *, tag: str) -> int:
        """Delete every schedule with this tag; return how many."""
        removed = 0
        while page := await self.list(tag=tag, limit=1000):
            if not len(page):
                break
            removed += await self._database().write(store.remove, [item.id for item in page], missing_ok=True)
        return removed

    async def fire_now(self, id: str, *, force: bool = False) -> Fire:
        """Fire once, now, also when paused. This changes neither the next fire nor a counter.

        `overlap` applies as to any other fire unless `force`. The returned `Fire` holds the decision and its reason.
        Raises `ScheduleNotFound`.
        """

        mark = token()  # made before the transaction, which may run again when the answer to its commit is lost

        def decide(schedule: Schedule, now: int, held: tuple[Unfinished, ...]) -> tuple[PlannedFire, ...]:
            return (changes.fire_now(schedule, now, held, unique=mark, force=force),)

        fires = await self._by_hand(id, decide)
        return fires[0]

    async def backfill(
        self, id: str, start: datetime, end: datetime, *, limit: int | None = None, again: bool = False
    ) -> Sequence[Fire]:
        """Fire every instant of `start` ≤ instant < `end` once more; a second call for the same range fires nothing.

        `again` fires them all again; `limit` takes the oldest. Unless `overlap` is "allow", the jobs run one by one.
        Raises `InvalidArguments` for an empty or future range and for over 1,000 instants without a limit.
        """
        first, last = aware_us(start, "start"), aware_us(end, "end")
        mark = token() if again else None
        if limit is not None:
            check_limit(limit)

        def decide(schedule: Schedule, now: int, held: tuple[Unfinished, ...]) -> tuple[PlannedFire, ...]:
            return changes.backfill(schedule, first, last, now, held, limit=limit, again=mark)

        return await self._by_hand(id, decide)

    async def _by_hand(self, id: str, decide: Decide) -> Sequence[Fire]:
        fires = await self._database().write(
            store_fires.fire_by_hand, _known_id(id), decide, by=self._who(), new_tracking_id=self._new_tracking_id
        )
        self._wakeups.jobs_queued()
        self._wakeups.jobs_delayed(AT_ONCE)
        return fires

    async def why(self, id: str, at: datetime) -> Why:
        """Explain in one sentence what happened at the instant `at`, with the records. Raises `ScheduleNotFound`."""
        moment = aware_us(at, "at")
        info = await self.get(id)  # before the records, so that a fire decided in between has one
        found = await self._database().read(reports.fires_around, id, moment)
        why = explain(info, from_us(moment), await self._now(), found)
        named = jobs_named(why.fires)
        return with_overruns(why, (await self._database().read(reports.jobs_by_id, named)).values()) if named else why

    async def _now(self) -> datetime:
        return from_us(await self._database().read(Tx.now))

    async def upcoming(self, id: str, n: int = 10) -> Sequence[datetime]:
        """Return the next `n` fire times (at most 1,000), aware, in the schedule's zone.

        For a paused schedule these are the fires after a resume now. `max_fires` is respected. The fires that `overlap`
        will skip are not known in advance and are included. Raises `ScheduleNotFound`.
        """
        n = min(n, check_limit(n, "n"))
        info = await self.get(id)
        moments: list[datetime] = []
        told = UTC if info.next_fire is None else info.next_fire.tzinfo
        after = None if info.next_fire is None else info.next_fire.astimezone(UTC) - INSTANT  # a zone counts wall time
        if after is not None and info.state == "paused":
            after = max(after, await self._now())  # what was due during a pause never fires
        if info.policies is not None and info.policies.max_fires is not None:
            n = min(n, info.policies.max_fires - info.fires_count)
        while after is not None and len(moments) < n:
            after = info.trigger.next_after(after)
            if after is not None:
                moments.append(after.astimezone(told))
        return moments

    async def fires(
        self,
        id: str,
        *,
        decision: str | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[Fire]:
        """Return the decisions on due instants, newest first, at most `limit` (1,000) in a page.

        `start` and `end` are aware and keep the fires with `start` ≤ instant < `end`.

        Raises `ScheduleNotFound`, and `ConfigurationError` for an unknown `decision` or a cursor that no page returned.
        """
        check_filters(schedule_id=id)
        _check_choice("decision", decision, tuple(Decision))
        page = await self._database().read(
            reports.fires,
            schedule_id=id,
            decision=decision,
            start=None if start is None else aware_us(start, "start"),
            end=None if end is None else aware_us(end, "end"),
            limit=check_limit(limit),
            cursor=cursor,
        )
        if not page:
            await self.get(id)  # no fire yet, or no such schedule
        return page


def _new_schedule(given: NewSchedule) -> NewSchedule:
    if not isinstance(given, NewSchedule):
        raise InvalidArguments(f"add_many takes onebeat.NewSchedule(id, task, trigger, …), not {given!r:.60}")
    return given


def _change_and_read(tx: Tx, change: Callable[[Tx], object], ids: Sequence[str]) -> Sequence[ScheduleInfo]:
    change(tx)
    return read.get_many(tx, ids)


def _known_id(id: str) -> str:
    """Return the id, when a schedule could have it; databases fail on some other values, each in its own way."""
    if not isinstance(id, str) or not NAME.fullmatch(id):
        raise ScheduleNotFound(f"no schedule {str(id)[:60]!r}; an id is 1 to 200 of A-Z a-z 0-9 _ . : -")
    return id


def _check_choice(what: str, value: str | None, choices: Sequence[str]) -> None:
    if value is not None and value not in choices:
        known = ", ".join(repr(str(choice)) for choice in choices)
        raise ConfigurationError(f"{what}={value!r:.60} is not one of {known}")
