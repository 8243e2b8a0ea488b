"""Fires each due schedule once."""

from __future__ import annotations

from collections.abc import Callable, Collection

from onebeat.engine.identity import WorkerIdentity
from onebeat.engine.wakeups import Wakeups
from onebeat.model.events import Event, FireConflict, ScheduleFired, ScheduleSkipping, ScheduleUnreadable
from onebeat.store.connection.database import Database
from onebeat.store.schedules import fire
from onebeat.store.schedules.fire_writer import FireRecorded, FireReport

BATCH = 250  # schedules in one transaction
UNREADABLE = 60_000_000  # microseconds until a schedule this code could not read is looked at again
CONTENDED = 20_000  # microseconds: something is due, but another worker holds it; look again soon
HEAD_START = 20_000  # microseconds that a worker leaves to the others if another one fired what was due last
DOUBLING = 5_000  # microseconds more with each doubling of what it runs, so that an idle worker comes before a busy one


class Dispatcher:
    """Decides the due fires in one transaction, then sleeps until the next one.

    All workers of a fleet may fire at any moment, but at :00 they need not run into each other: who fired last goes
    first, the others come a moment later and find nothing left to do, or a worker that is late, or gone.
    """

    def __init__(
        self,
        *,
        database: Database,
        identity: WorkerIdentity,
        hashes: Collection[str],
        new_tracking_id: Callable[[], str],
        running: Callable[[], int],
        poll: int,
        wakeups: Wakeups,
        announce: Callable[[Event], None],
        head_start: int = HEAD_START,
        doubling: int = DOUBLING,
    ) -> None:
        self._database = database
        self._identity = identity
        self._hashes = hashes
        self._new_tracking_id = new_tracking_id
        self._running = running
        self._poll = poll
        self._wakeups = wakeups
        self._announce = announce
        self._head_start = head_start
        self._doubling = doubling
        self._unreadable: dict[str, int] = {}  # schedule → when to look at it again
        self._expected: int | None = None  # the next fire as last read, on the database's clock
        self._behind = False  # another worker fired what was due last
        self._since: int | None = None  # when this worker began with what is still due, on the database's clock

    async def tick(self, now: int) -> int | None:
        """Fire what is due; the earliest next fire, or the next poll."""
        worker_id = self._identity.claimant
        if worker_id is None:
            return now + self._poll
        self._unreadable = {id: until for id, until in self._unreadable.items() if until > now}
        database_now = now + self._database.offset_us
        if self._behind or self._expected is None or self._expected > database_now:
            self._expected = await self._database.read(fire.next_due, self._hashes, tuple(self._unreadable))
            if self._expected is None or self._expected > database_now:
                self._since = None
                return self._later(now, self._expected)
        held_back = self._head_start * self._behind + self._doubling * self._running().bit_length()
        if self._expected + held_back > database_now:
            return now + self._expected + held_back - database_now
        expected = self._expected
        report = await self._fire(worker_id)
        if expected > report.now:  # a clock was stepped: by the offset known so far it would be asked again at once
            await self._database.measure_offset()
        self._tell(report)
        self._unreadable |= {id: now + UNREADABLE for id, _ in report.unreadable}
        self._expected = report.next_fire
        self._behind = not report.decided
        begun = report.now if self._since is None else self._since
        self._since = begun if report.next_fire is not None and report.next_fire <= report.now else None
        if report.decided == BATCH or report.unreadable:
            return now
        if not report.decided and report.next_fire is not None and report.next_fire <= report.now:
            return now + CONTENDED
        return self._later(now, report.next_fire)

    async def _fire(self, worker_id: str, careful: bool = False) -> FireReport:
        try:
            return await self._database.write(
                fire.fire_due,
                worker_id=worker_id,
                hashes=self._hashes,
                new_tracking_id=self._new_tracking_id,
                limit=BATCH,
                careful=careful,
                unreadable=tuple(self._unreadable),
                since=self._since,
            )
        except FireRecorded:
            if careful:
                raise
            return await self._fire(worker_id, careful=True)

    def _later(self, now: int, fire: int | None) -> int:
        if fire is None:
            return now + self._poll
        return min(fire - self._database.offset_us + self._head_start * self._behind, now + self._poll)

    def _tell(self, report: FireReport) -> None:
        queued, delayed = False, list[int]()
        started: set[str] = set()
        for fired in report.fired:
            queued |= fired.queued
            if fired.delayed_until is not None:
                delayed.append(fired.delayed_until)
            self._announce(
                ScheduleFired(
                    schedule_id=fired.schedule_id,
                    fire_key=fired.key,
                    fire_us=fired.fire_us,
                    decision=fired.decision,
                    reason=fired.reason,
                    job_id=fired.job_id,
                    late_us=report.now - fired.fire_us,
                    follows=fired.schedule_id in started,
                    tracking_id=fired.tracking_id,
                )
            )
            if fired.job_id is not None:
                started.add(fired.schedule_id)
        for schedule_id, key in report.conflicts:
            self._announce(FireConflict(schedule_id=schedule_id, fire_key=key))
        for schedule_id, warning in report.warnings:
            self._announce(ScheduleSkipping(schedule_id=schedule_id, warning=warning))
        for schedule_id, problem in report.unreadable:
            self._announce(ScheduleUnreadable(schedule_id=schedule_id, problem=problem))
        if queued:
            self._wakeups.jobs_queued()
        if delayed:
            self._wakeups.jobs_delayed(min(delayed))
