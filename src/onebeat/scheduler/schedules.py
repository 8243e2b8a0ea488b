"""`scheduler.schedules`: add, look at, edit, pause and explain schedules at run time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Protocol, Unpack

from onebeat.engine.wakeups import Wakeups
from onebeat.errors import ConfigurationError, InvalidTrigger, StaleRevision
from onebeat.model import changes, payload
from onebeat.model.checks import aware_us, check_filters
from onebeat.model.definition import Definition
from onebeat.model.ids import token
from onebeat.model.info import Fire, Page, ScheduleInfo
from onebeat.model.policies import Decision, ScheduleState
from onebeat.model.protocols import Trigger
from onebeat.model.schedule import PlannedFire, Schedule, Unfinished
from onebeat.scheduler.why import INSTANT, Why, explain
from onebeat.settings import Settings
from onebeat.store import reports
from onebeat.store.connection.database import Database
from onebeat.store.schedules import edit as store, fire as store_fires, read
from onebeat.store.tx import Tx
from onebeat.tasks.router import Declared, ScheduleOptions, declared
from onebeat.tasks.task import Registry, Task
from onebeat.timing.clock import from_us
from onebeat.timing.zones import zone_name

MERGES = 20  # times an edit is put together anew because another one came between
IfExists = Literal["error", "replace", "keep"]
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
        task: Task[Any, Any] | str,
        trigger: Trigger,
        *,
        if_exists: IfExists = "error",
        **options: Unpack[ScheduleOptions],
    ) -> ScheduleInfo:
        """Store a schedule. Nothing before now is due.

        Where the id is taken: "error" raises, unless that schedule is finished and was added at run time; "keep" leaves
        it as it is, finished or not; "replace" changes it to what is said here, also when its row cannot be read.
        Raises `ScheduleExists`, `InvalidTrigger` (an `At` more than 60 s ago), `InvalidArguments`, `UnknownTask`.
        """
        if if_exists not in ("error", "replace", "keep"):
            raise ConfigurationError(f"if_exists={if_exists!r}; take 'error', 'replace' or 'keep'")
        item = declared(id, self._task(task), trigger, options)
        database = self._database()
        definition = definition_of(item, self._scheduler.settings.timezone)
        await database.write(store.add, definition, if_exists=if_exists)
        self._wakeups.schedules_changed()
        return await self.get(id)

    def _task(self, task: Task[Any, Any] | str) -> Task[Any, Any]:
        return self._scheduler.registry.get(task) if isinstance(task, str) else task

    async def get(self, id: str) -> ScheduleInfo:
        """The schedule as it is now; raises `ScheduleNotFound`."""
        return await self._database().read(read.get, id)

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
        """Schedules that fit every filter given, by id, at most `limit` (1,000) a page.

        Raises `ConfigurationError` for a filter that no schedule can fit, such as a name with a blank.
        """
        check_filters(tag=tag, task=task)
        _check_word("state", state, ScheduleState)
        return await self._database().read(
            read.listing,
            tag=tag,
            task=task,
            state=state,
            source=source,
            prefix=prefix,
            limit=max(1, min(limit, 1000)),
            cursor=cursor,
        )

    async def update(
        self,
        id: str,
        *,
        trigger: Trigger | None = None,
        task: Task[Any, Any] | str | None = None,
        expected_rev: int | None = None,
        override: bool = False,
        **options: Unpack[ScheduleOptions],
    ) -> ScheduleInfo:
        """Change what is named. A new trigger or zone computes the next fire anew; else it stays.

        Of a row that cannot be read all that is damaged must be named.
        Raises `StaleRevision` when `expected_rev` is not the present one, `ScheduleNotFound`, and `ConfigurationError`
        for a schedule declared in code without `override=True`.
        """
        database = self._database()
        for left in reversed(range(MERGES)):
            present, rev = await database.read(read.definition, id)
            if expected_rev not in (None, rev):
                raise store.stale(id, rev, expected_rev)
            changed = self._changed(present, trigger, task, options)
            try:
                await database.write(store.edit, changed, expected_rev=rev, override=override)
                break
            except StaleRevision:  # someone else's edit came between: what it changed and this one does not is kept
                if expected_rev is not None or not left:
                    raise
        self._wakeups.schedules_changed()
        return await self.get(id)

    def _changed(
        self, present: Definition, trigger: Trigger | None, task: Task[Any, Any] | str | None, options: ScheduleOptions
    ) -> Definition:
        merged: ScheduleOptions = {**read.options_of(present, options), **options}  # type: ignore[typeddict-item]  # both are
        known = self._task(task if task is not None else present.task)
        item = declared(present.id, known, trigger or read.trigger_of(present), merged)
        try:
            default = zone_name(present.timezone)
        except InvalidTrigger:  # the row is damaged, or newer than this machine's zone data
            default = self._scheduler.settings.timezone
        return definition_of(item, default)

    async def pause(self, id: str, reason: str | None = None) -> ScheduleInfo:
        """Stop firing until `resume`; nothing of the pause is caught up."""
        await self._database().write(store.pause, id, reason)
        return await self.get(id)

    async def resume(self, id: str) -> ScheduleInfo:
        """Fire again, from now; one `gap` row tells what the pause left out."""
        await self._database().write(store.resume, id, by=self._who())
        self._wakeups.schedules_changed()
        return await self.get(id)

    async def remove(self, id: str) -> None:
        """Delete the schedule and its fires; its jobs stay. One declared in code comes back at the next start."""
        await self._database().write(store.remove, [id], missing_ok=False)

    async def remove_where(self, *, tag: str) -> int:
        """Delete every schedule with this tag; how many."""
        removed = 0
        while page := await self.list(tag=tag, limit=1000):
            if not len(page):
                break
            removed += await self._database().write(store.remove, [item.id for item in page], missing_ok=True)
        return removed

    async def fire_now(self, id: str, *, force: bool = False) -> Fire:
        """Fire once by hand, now, also when paused; it moves neither the next fire nor a counter.

        It meets `overlap` as any other fire unless `force`: the returned `Fire` says what became of it and why.
        """

        mark = token()  # made before the transaction, which may run again when the answer to its commit is lost

        def decide(schedule: Schedule, now: int, held: tuple[Unfinished, ...]) -> tuple[PlannedFire, ...]:
            return (changes.fire_now(schedule, now, held, unique=mark, force=force),)

        fires = await self._by_hand(id, decide)
        return fires[0] if fires else next(fire for fire in await self.fires(id) if mark in fire.key)

    async def backfill(
        self, id: str, start: datetime, end: datetime, *, limit: int | None = None, again: bool = False
    ) -> Sequence[Fire]:
        """Fire every instant of `start` ≤ instant < `end` once more; a second call of the same range makes nothing.

        `again` makes them anew; `limit` takes the oldest. Unless `overlap` is "allow" the jobs run one after the other.
        Raises `InvalidArguments` for an empty or future range and for over 1,000 instants without a limit.
        """
        first, last = aware_us(start, "start"), aware_us(end, "end")
        mark = token() if again else None

        def decide(schedule: Schedule, now: int, held: tuple[Unfinished, ...]) -> tuple[PlannedFire, ...]:
            return changes.backfill(schedule, first, last, now, held, limit=limit, again=mark)

        return await self._by_hand(id, decide)

    async def _by_hand(self, id: str, decide: Decide) -> Sequence[Fire]:
        fires = await self._database().write(
            store_fires.fire_by_hand, id, decide, by=self._who(), new_tracking_id=self._new_tracking_id
        )
        self._wakeups.jobs_queued()
        self._wakeups.jobs_delayed()
        return fires

    async def why(self, id: str, at: datetime) -> Why:
        """One sentence on what became of the instant `at`, and the records behind it. Raises `ScheduleNotFound`."""
        moment = aware_us(at, "at")
        info = await self.get(id)  # before the records: what is decided in between has one
        found = await self._database().read(reports.fires_around, id, moment)
        return explain(info, from_us(moment), await self._now(), found)

    async def _now(self) -> datetime:
        return from_us(await self._database().read(Tx.now))

    async def upcoming(self, id: str, n: int = 10) -> Sequence[datetime]:
        """The next `n` fire times (at most 1,000), aware, in the schedule's zone; of a paused one: if resumed now.

        `max_fires` is taken into account; what `overlap` will leave out cannot be known.
        """
        info = await self.get(id)
        moments: list[datetime] = []
        after = None if info.next_fire is None else info.next_fire - INSTANT
        if after is not None and info.state == "paused":
            after = max(after, await self._now())  # what came due during a pause never fires
        if info.policies is not None and info.policies.max_fires is not None:
            n = min(n, info.policies.max_fires - info.fires_count)
        while after is not None and len(moments) < min(n, 1000):
            after = info.trigger.next_after(after)
            if after is not None:
                moments.append(after)
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
        """What became of the due instants, newest first; `start` ≤ instant < `end`; at most `limit` (1,000) a page.

        Raises `ScheduleNotFound`, and `ConfigurationError` for a `decision` there is none of or a `cursor` of no page.
        """
        check_filters(schedule_id=id)
        _check_word("decision", decision, Decision)
        page = await self._database().read(
            reports.fires,
            schedule_id=id,
            decision=decision,
            start=None if start is None else aware_us(start, "start"),
            end=None if end is None else aware_us(end, "end"),
            limit=max(1, min(limit, 1000)),
            cursor=cursor,
        )
        if not page:
            await self.get(id)  # none yet, or no such schedule
        return page


def _check_word(what: str, value: str | None, words: type[StrEnum]) -> None:
    if value is not None and value not in set(words):
        known = ", ".join(repr(str(word)) for word in words)
        raise ConfigurationError(f"{what}={value!r:.60} is none of {known}")


def definition_of(item: Declared, default_zone: str) -> Definition:
    """What is stored of a declaration: its zone filled in, its arguments checked."""
    trigger = item.trigger if item.trigger.timezone else item.trigger.with_timezone(default_zone)
    trigger = trigger.bind(item.id)
    zone = trigger.timezone or default_zone
    task = item.task
    settings = task.settings
    options = {
        "queue": item.queue or settings.queue,
        "priority": settings.priority if item.priority is None else item.priority,
        "max_attempts": settings.retry.attempts,
        "timeout": settings.timeout,
        "at_most_once": settings.at_most_once,
        "own_queue": item.queue,
        "own_priority": item.priority,
    }
    kwargs = dict(item.kwargs or {})
    arguments = payload.decode(task.signature.pack(item.args, kwargs))
    return Definition(
        id=item.id,
        task=task.name,
        trigger=payload.canonical(trigger.to_json()),
        timezone=str(zone),
        policies=payload.canonical(item.policies.to_json()),
        options=payload.canonical(options),
        args=payload.canonical(arguments["a"]),
        kwargs=payload.canonical(arguments["k"]),
        tags=payload.canonical(list(item.tags)),
        note=item.note,
    )
