"""The checker: pure functions from what happened (ledger, rows, faults) to the list of broken invariants.

The invariants are those of docs/guarantees.md. Nothing here reads a clock, a file or a database.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Literal
from uuid import UUID

from tests.support.ledger import Line

SECOND = 1_000_000
FINAL = ("succeeded", "failed", "cancelled")
CLOCK_SLACK = 5_000  # µs: SQLite's clock has milliseconds, and a row's clock is read a little before its statement ends
SETTLED = 5 * SECOND  # by then an attempt that ended is settled, unless the database is away
NEVER = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """A job's row after quiescence."""

    id: UUID
    task: str
    state: str
    reason: str | None = None
    attempt: int = 1
    errors: int = 0
    crashes: int = 0
    max_attempts: int = 3
    at_most_once: bool = False
    fence: int = 0
    worker_id: str | None = None
    schedule_id: str | None = None
    fire_us: int | None = None
    run_at_us: int = 0
    created_us: int = 0
    finished_us: int | None = None
    value: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FireRow:
    """A verdict on one due instant, or (`gap`) on `instants` of them."""

    schedule_id: str
    fire_key: str
    fire_us: int
    decision: str
    origin: str = "schedule"
    until_us: int | None = None
    instants: int | None = None
    job_id: UUID | None = None
    decided_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    """An attempt that is remembered."""

    job_id: UUID
    attempt: int
    outcome: str
    worker_id: str | None = None
    started_us: int = 0  # the claim, by the database's clock
    finished_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What the test did to a process or to the database, on the boot clock.

    `kill`: the process ended without a word (also by its own doing); `stop`: it was paused from `begin` until `end`;
    `term`: SIGTERM or SIGINT; `outage`: the database was away.
    """

    kind: Literal["kill", "stop", "term", "outage"]
    begin: int
    end: int = NEVER
    pid: int = 0  # 0: all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """An instant that must have exactly one verdict."""

    schedule_id: str
    fire_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One broken invariant."""

    invariant: str
    subject: str
    what: str

    def __str__(self) -> str:
        return f"{self.invariant} {self.subject}: {self.what}"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything one scenario left behind. Times in microseconds; `wall - boot` is constant within a scenario."""

    lines: Sequence[Line] = ()
    jobs: Sequence[JobRow] = ()
    fires: Sequence[FireRow] = ()
    attempts: Sequence[AttemptRow] = ()
    due: Iterable[Due] | None = None  # None: this scenario has no schedules
    faults: Sequence[Fault] = ()
    leftovers: Sequence[str] = ()  # sessions, transactions and locks that should be gone
    poison: frozenset[str] = frozenset()  # tasks that kill their process each time
    lease: int = 60 * SECOND
    sweep: int = 15 * SECOND
    late_p99: int = 2 * SECOND
    boot_to_wall: int = 0
    pids: Mapping[str, int] = field(default_factory=dict)  # worker id → pid

    @cached_property
    def of_job(self) -> dict[UUID, list[Line]]:
        """The lines of each job, in the order of the writes."""
        found: dict[UUID, list[Line]] = defaultdict(list)
        for line in self.lines:
            if line.job is not None and line.event in ("start", "end", "error", "stopped"):
                found[line.job].append(line)
        return found

    @cached_property
    def remembered(self) -> dict[tuple[UUID, int], AttemptRow]:
        """(job, attempt) → its row."""
        return {(row.job_id, row.attempt): row for row in self.attempts}

    @cached_property
    def faults_of(self) -> dict[int, list[Fault]]:
        """pid → what was done to it; under 0 what was done to all."""
        found: dict[int, list[Fault]] = defaultdict(list)
        for fault in self.faults:
            found[fault.pid].append(fault)
        return found

    def hit(self, pid: int, begin: int, end: int, kinds: tuple[str, ...] = ("kill", "stop", "outage")) -> Fault | None:
        """The first fault of these kinds that touched the process between two instants of the boot clock."""
        return next(self.hits(pid, begin, end, kinds), None)

    def hits(self, pid: int, begin: int, end: int, kinds: tuple[str, ...]) -> Iterator[Fault]:
        """Every such fault: a pause may have been cut short at once and followed by a long one."""
        for fault in self.faults_of.get(pid, []) + self.faults_of.get(0, []):
            if fault.kind in kinds and fault.begin <= end and fault.end >= begin:
                yield fault

    def held_since(self, job_id: UUID, line: Line) -> int:
        """When the process of a start claimed the job, boot clock: it may have been stopped before its first line."""
        row = self.remembered.get((job_id, line.attempt or 0))
        return line.boot if row is None or not row.started_us else min(line.boot, row.started_us - self.boot_to_wall)


def check(facts: Facts) -> list[Violation]:
    """Every broken invariant; an empty list is the pass."""
    found = [*_check_fires(facts), *i2(facts), *i4(facts), *i5(facts), *i6(facts)]
    return [*found, *i7(facts), *i8(facts), *i9(facts), *i11(facts), *i12(facts)]


def _check_fires(facts: Facts) -> Iterator[Violation]:
    if facts.due is not None:
        yield from i1(facts)
        yield from i10(facts)


def every(schedule_id: str, period: int, after: int, until: int) -> Iterator[Due]:
    """The oracle for interval rules without an anchor: multiples of the period in (after, until)."""
    for fire_us in range((after // period + 1) * period, until, period):
        yield Due(schedule_id=schedule_id, fire_us=fire_us)


# ── fires ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
def i1(facts: Facts) -> Iterator[Violation]:
    """Each due instant has exactly one verdict (or lies in one gap); each `started` has exactly one job."""
    assert facts.due is not None
    own = [row for row in facts.fires if row.origin == "schedule"]
    verdicts = Counter((row.schedule_id, row.fire_us) for row in own if row.decision != "gap")
    gaps = [row for row in own if row.decision == "gap"]
    in_gaps: Counter[int] = Counter()
    wanted = set()
    for due in facts.due:
        wanted.add((due.schedule_id, due.fire_us))
        name = f"{due.schedule_id}@{due.fire_us}"
        count = verdicts[due.schedule_id, due.fire_us]
        for at, gap in enumerate(gaps):
            if gap.schedule_id == due.schedule_id and gap.fire_us <= due.fire_us <= (gap.until_us or gap.fire_us):
                in_gaps[at] += 1
                count += 1
        if count == 0:
            yield Violation(invariant="I1", subject=name, what="a due instant without a verdict")
        elif count > 1:
            yield Violation(invariant="I1", subject=name, what=f"{count} verdicts on one due instant")
    for schedule_id, fire_us in verdicts.keys() - wanted:
        yield Violation(invariant="I1", subject=f"{schedule_id}@{fire_us}", what="a verdict on an instant not due")
    for at, gap in enumerate(gaps):
        if gap.instants != in_gaps[at]:
            what = f"a gap that counts {gap.instants} instants and spans {in_gaps[at]}"
            yield Violation(invariant="I1", subject=f"{gap.schedule_id}@{gap.fire_us}", what=what)
    yield from _fires_and_jobs(facts)


def _fires_and_jobs(facts: Facts) -> Iterator[Violation]:
    started = [row for row in facts.fires if row.decision == "started"]
    jobs = {job.id: job for job in facts.jobs if job.schedule_id is not None}
    used: Counter[UUID] = Counter(row.job_id for row in started if row.job_id is not None)
    for row in started:
        name = f"{row.schedule_id}@{row.fire_us}"
        job = jobs.get(row.job_id) if row.job_id is not None else None
        if job is None:
            yield Violation(invariant="I1", subject=name, what="a started fire without a job")
        elif (job.schedule_id, job.fire_us) != (row.schedule_id, row.fire_us):
            yield Violation(invariant="I1", subject=name, what=f"its job {job.id} belongs to another fire")
    for row in facts.fires:
        if row.decision != "started" and row.job_id is not None:
            yield Violation(
                invariant="I1", subject=f"{row.schedule_id}@{row.fire_us}", what=f"{row.decision}, yet it has a job"
            )
    for id in jobs:
        if used[id] != 1:
            yield Violation(invariant="I1", subject=f"job {id}", what=f"made by {used[id]} started fires")


def lateness(fires: Iterable[FireRow]) -> list[int]:
    """How late each fire was decided, in microseconds, sorted."""
    own = (row for row in fires if row.origin == "schedule" and row.decision != "gap")
    return sorted(row.decided_us - row.fire_us for row in own)


def percentile(values: Sequence[int], share: float) -> int:
    """The smallest of the sorted values that at least this share of them does not exceed; 0 of none."""
    return values[min(len(values) - 1, int(len(values) * share))] if values else 0


def i10(facts: Facts) -> Iterator[Violation]:
    """No fire is decided early; 99 of 100 within the bound, and all within the longest outage plus the lease."""
    late = lateness(facts.fires)
    away = [fault.end - fault.begin for fault in facts.faults if fault.kind == "outage" and fault.end != NEVER]
    if late and late[0] < -CLOCK_SLACK:
        yield Violation(invariant="I10", subject="lateness", what=f"a fire was decided {-late[0]} µs before its time")
    if not away and percentile(late, 0.99) > facts.late_p99:
        yield Violation(invariant="I10", subject="lateness", what=f"p99 is {percentile(late, 0.99)} µs")
    if late and late[-1] > max(away, default=0) + facts.lease:
        yield Violation(invariant="I10", subject="lateness", what=f"the latest fire was {late[-1]} µs late")


# ── jobs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
def i2(facts: Facts) -> Iterator[Violation]:
    """Every committed job has ended, and no attempt ran for a job nobody committed."""
    known = set()
    for job in facts.jobs:
        known.add(job.id)
        if job.state not in FINAL:
            yield Violation(invariant="I2", subject=f"job {job.id}", what=f"still {job.state} after quiescence")
    for id in facts.of_job.keys() - known:
        yield Violation(invariant="I2", subject=f"job {id}", what="ran, but there is no such row")


def starts(lines: Iterable[Line]) -> list[Line]:
    """The start lines, by attempt."""
    return sorted((line for line in lines if line.event == "start"), key=lambda line: line.attempt)


def ends(lines: Iterable[Line]) -> dict[int, Line]:
    """attempt → the line with which it ended."""
    return {line.attempt: line for line in lines if line.event != "start"}


def i4(facts: Facts) -> Iterator[Violation]:
    """No attempt starts twice, none beyond the row's count, and each further attempt has its reason."""
    for job in facts.jobs:
        lines = facts.of_job.get(job.id, [])
        name = f"job {job.id}"
        counts = Counter(line.attempt for line in lines if line.event == "start")
        for attempt, count in counts.items():
            if count > 1:
                yield Violation(invariant="I4", subject=name, what=f"attempt {attempt} started {count} times")
            if attempt > job.attempt:
                yield Violation(
                    invariant="I4", subject=name, what=f"attempt {attempt} started, the row knows {job.attempt}"
                )
        by_attempt = {line.attempt: line for line in lines if line.event == "start"}
        for attempt in range(1, job.attempt):
            if not _explained(facts, job, attempt, by_attempt, ends(lines)):
                what = f"attempt {attempt + 1} has no reason: nothing ended attempt {attempt}"
                yield Violation(invariant="I4", subject=name, what=what)
    for row in facts.attempts:
        if row.outcome == "lost" and not _lost_with_reason(facts, row):
            what = f"attempt {row.attempt} was taken from worker {row.worker_id}, to which nothing was done"
            yield Violation(invariant="I4", subject=f"job {row.job_id}", what=what)


def _explained(facts: Facts, job: JobRow, attempt: int, begun: Mapping[int, Line], ended: Mapping[int, Line]) -> bool:
    """Whether the attempt raised, or something was done to its process while it held the job."""
    line = ended.get(attempt)
    if line is not None and line.event == "error":
        return True
    row = facts.remembered.get((job.id, attempt))
    after = begun.get(attempt + 1)
    latest = after.boot if after is not None else NEVER
    if line is not None and line.event == "end":
        latest = min(
            latest, line.boot + SETTLED
        )  # it ended well: only a fault before it was settled can explain another
    start = begun.get(attempt)
    kinds = ("kill", "stop", "term", "outage")
    if start is not None:
        return facts.hit(start.pid, facts.held_since(job.id, start), latest, kinds) is not None
    pid = facts.pids.get(row.worker_id or "") if row is not None else None
    return pid is not None and facts.hit(pid, 0, latest, kinds) is not None  # claimed, but never begun


def i5(facts: Facts) -> Iterator[Violation]:
    """A job that may start once has started at most once."""
    for job in facts.jobs:
        count = len(starts(facts.of_job.get(job.id, [])))
        if job.at_most_once and count > 1:
            yield Violation(invariant="I5", subject=f"job {job.id}", what=f"at most once, and it started {count} times")


def i6(facts: Facts) -> Iterator[Violation]:
    """Fences strictly grow over the attempts of a job, and the row holds the last."""
    for job in facts.jobs:
        begun = starts(facts.of_job.get(job.id, []))
        for before, after in pairwise(begun):
            if after.attempt > before.attempt and after.fence <= before.fence:
                what = f"attempt {after.attempt} has fence {after.fence}, the one before {before.fence}"
                yield Violation(invariant="I6", subject=f"job {job.id}", what=what)
        if begun and job.fence < begun[-1].fence:
            what = f"the row's fence {job.fence} is behind a start's {begun[-1].fence}"
            yield Violation(invariant="I6", subject=f"job {job.id}", what=what)


def i7(facts: Facts) -> Iterator[Violation]:
    """A completion was accepted from the attempt that held the claim, after that attempt had really ended."""
    for job in facts.jobs:
        if job.state == "succeeded":
            yield from _accepted(facts, job)
    for row in facts.attempts:
        if row.outcome in ("error", "succeeded"):
            line = ends(facts.of_job.get(row.job_id, [])).get(row.attempt)
            wanted = "end" if row.outcome == "succeeded" else "error"
            if line is None or line.event != wanted:
                what = f"attempt {row.attempt} is recorded as {row.outcome}, the ledger says {line and line.event}"
                yield Violation(invariant="I7", subject=f"job {row.job_id}", what=what)
            elif facts.pids.get(row.worker_id or "", line.pid) != line.pid:
                what = f"attempt {row.attempt} is recorded by another worker than the one that ran it"
                yield Violation(invariant="I7", subject=f"job {row.job_id}", what=what)


def _accepted(facts: Facts, job: JobRow) -> Iterator[Violation]:
    name = f"job {job.id}"
    line = ends(facts.of_job.get(job.id, [])).get(job.attempt)
    if line is None or line.event != "end":
        what = f"succeeded at attempt {job.attempt}, whose end the ledger does not hold"
        yield Violation(invariant="I7", subject=name, what=what)
        return
    if line.fence != job.fence:
        yield Violation(invariant="I7", subject=name, what=f"ended under fence {line.fence}, the row has {job.fence}")
    if job.finished_us is not None and job.finished_us < line.wall - CLOCK_SLACK:
        what = f"was settled {line.wall - job.finished_us} µs before its current attempt ended: by another attempt"
        yield Violation(invariant="I7", subject=name, what=what)
    if isinstance(job.value, int) and job.value != job.fence:
        what = f"the value came from fence {job.value}, the claim has {job.fence}"
        yield Violation(invariant="I7", subject=name, what=what)


def i8(facts: Facts) -> Iterator[Violation]:
    """Two attempts of one job overlap only where the fault log explains it: a stopped process or an outage."""
    for id, lines in facts.of_job.items():
        ended = ends(lines)
        begun = starts(lines)
        for before, after in pairwise(begun):
            killed = facts.hit(before.pid, before.boot, NEVER, ("kill",))
            until = ended[before.attempt].boot if before.attempt in ended else NEVER
            until = min(until, killed.begin if killed is not None else NEVER)
            if after.boot >= until:
                continue
            pauses = facts.hits(before.pid, facts.held_since(id, before), after.boot, ("stop", "outage"))
            if all(min(pause.end, after.boot) - pause.begin < facts.lease // 2 for pause in pauses):
                what = f"attempt {after.attempt} started {until - after.boot} µs before attempt {before.attempt} ended"
                yield Violation(invariant="I8", subject=f"job {id}", what=what)


def i9(facts: Facts) -> Iterator[Violation]:
    """What a killed process held is taken back within lease + sweep + 5 s."""
    limit = facts.lease + facts.sweep + 5 * SECOND
    for row in facts.attempts:
        pid = facts.pids.get(row.worker_id or "")
        if row.outcome != "lost" or pid is None:
            continue
        for fault in facts.faults_of.get(pid, ()):
            orphaned = row.finished_us - (fault.begin + facts.boot_to_wall)
            if fault.kind == "kill" and orphaned > limit and not facts.hit(0, fault.begin, fault.begin + orphaned):
                what = f"attempt {row.attempt} was an orphan for {orphaned} µs"
                yield Violation(invariant="I9", subject=f"job {row.job_id}", what=what)


def i11(facts: Facts) -> Iterator[Violation]:
    """No session, open transaction or lock is left behind."""
    for left in facts.leftovers:
        yield Violation(invariant="I11", subject="database", what=left)


def i12(facts: Facts) -> Iterator[Violation]:
    """Budgets are kept; only what saw three deaths is quarantined, and poison always is."""
    for job in facts.jobs:
        name = f"job {job.id}"
        if job.errors > job.max_attempts:
            yield Violation(invariant="I12", subject=name, what=f"{job.errors} errors of {job.max_attempts}")
        deaths = sum(
            facts.hit(line.pid, line.boot, _next_start(facts, job, line), ("kill",)) is not None
            for line in starts(facts.of_job.get(job.id, []))
        )
        if job.reason == "quarantined" and deaths < 3:
            yield Violation(invariant="I12", subject=name, what=f"quarantined after {deaths} deaths in the ledger")
        if job.task in facts.poison and job.reason != "quarantined":
            yield Violation(invariant="I12", subject=name, what=f"poison ended as {job.state} ({job.reason})")


def _next_start(facts: Facts, job: JobRow, line: Line) -> int:
    later = [other.boot for other in starts(facts.of_job[job.id]) if other.attempt > line.attempt]
    return min(later, default=NEVER)


def _lost_with_reason(facts: Facts, row: AttemptRow) -> bool:
    pid = facts.pids.get(row.worker_id or "")
    taken = row.finished_us - facts.boot_to_wall + CLOCK_SLACK
    return pid is not None and facts.hit(pid, 0, taken, ("kill", "stop", "term", "outage")) is not None
