"""The checker finds each kind of fault: a check that cannot fail proves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from tests.support import checker
from tests.support.checker import NEVER, SECOND, AttemptRow, Due, Facts, Fault, FireRow, JobRow
from tests.support.ledger import LINE, Ledger, Line

A, B, C, S = (UUID(int=n) for n in range(1, 5))
OFFSET = 1_000_000 * SECOND  # wall minus boot in these stories


def at(event: str, job: UUID, attempt: int, boot: int, pid: int = 1, fence: int | None = None) -> Line:
    return Line(
        event=event,
        boot=boot,
        wall=boot + OFFSET,
        pid=pid,
        job=job,
        attempt=attempt,
        fence=attempt * 10 if fence is None else fence,
    )


def good() -> Facts:
    """A: ran once. B: its worker was killed, it ran again. C: it raised, its retry succeeded. S: made by a fire."""
    return Facts(
        lines=[
            at("start", A, 1, 100),
            at("end", A, 1, 200),
            at("start", B, 1, 100, pid=2),
            at("start", B, 2, 4 * SECOND),
            at("end", B, 2, 5 * SECOND),
            at("start", C, 1, 300),
            at("error", C, 1, 400),
            at("start", C, 2, 3 * SECOND),
            at("end", C, 2, 4 * SECOND),
            at("start", S, 1, SECOND),
            at("end", S, 1, SECOND + 10),
        ],
        jobs=[
            JobRow(id=A, task="a", state="succeeded", fence=10, finished_us=OFFSET + 300, value=10),
            JobRow(id=B, task="a", state="succeeded", attempt=2, crashes=1, fence=20, finished_us=OFFSET + 6 * SECOND),
            JobRow(id=C, task="a", state="succeeded", attempt=2, errors=1, fence=20, finished_us=OFFSET + 6 * SECOND),
            JobRow(id=S, task="a", state="succeeded", fence=10, schedule_id="s", fire_us=OFFSET + SECOND),
        ],
        attempts=[
            AttemptRow(job_id=B, attempt=1, outcome="lost", worker_id="w2", finished_us=OFFSET + 4 * SECOND),
            AttemptRow(job_id=C, attempt=1, outcome="error", worker_id="w1", finished_us=OFFSET + 450),
        ],
        fires=[
            FireRow(
                schedule_id="s",
                fire_key="1",
                fire_us=OFFSET + SECOND,
                decision="started",
                job_id=S,
                decided_us=OFFSET + SECOND + 900,
            ),
            FireRow(
                schedule_id="s",
                fire_key="gap",
                fire_us=OFFSET + 2 * SECOND,
                decision="gap",
                until_us=OFFSET + 3 * SECOND,
                instants=2,
            ),
        ],
        due=[Due(schedule_id="s", fire_us=OFFSET + n * SECOND) for n in (1, 2, 3)],
        faults=[Fault(kind="kill", pid=2, begin=2 * SECOND)],
        lease=3 * SECOND,
        sweep=SECOND,
        boot_to_wall=OFFSET,
        pids={"w1": 1, "w2": 2},
    )


def lines(facts: Facts, *more: Line, drop: Callable[[Line], bool] = lambda _: False) -> Facts:
    return replace(facts, lines=[*(line for line in facts.lines if not drop(line)), *more])


def job(facts: Facts, id: UUID, **changes: object) -> Facts:
    changed = [replace(row, **changes) if row.id == id else row for row in facts.jobs]  # type: ignore[arg-type] # by name
    return replace(facts, jobs=changed)


def attempt(facts: Facts, id: UUID, **changes: object) -> Facts:
    changed = [
        replace(row, **changes) if row.job_id == id else row  # type: ignore[arg-type] # by name
        for row in facts.attempts
    ]
    return replace(facts, attempts=changed)


def fire(facts: Facts, at: int, **changes: object) -> Facts:
    changed = [
        replace(row, **changes) if n == at else row  # type: ignore[arg-type] # by name
        for n, row in enumerate(facts.fires)
    ]
    return replace(facts, fires=changed)


def is_end_of(id: UUID) -> Callable[[Line], bool]:
    return lambda line: line.job == id and line.event == "end"


def is_of(id: UUID) -> Callable[[Line], bool]:
    return lambda line: line.job == id


def verdict(fire_us: int) -> Callable[[Facts], Facts]:
    """One more verdict, on this instant."""
    extra = FireRow(schedule_id="s", fire_key="2", fire_us=fire_us, decision="coalesced", decided_us=fire_us)
    return lambda facts: replace(facts, fires=[*facts.fires, extra])


STILL = [at("start", B, 1, 100, pid=2, fence=20)]
POISON = JobRow(id=UUID(int=50), task="p", state="failed", reason="exhausted")
BAD: list[tuple[str, str, Callable[[Facts], Facts]]] = [
    ("I1", "an instant without a verdict", lambda f: replace(f, fires=f.fires[:1])),
    ("I1", "two verdicts on one instant", verdict(OFFSET + SECOND)),
    ("I1", "a verdict inside a gap", verdict(OFFSET + 2 * SECOND)),
    ("I1", "a verdict nobody asked for", verdict(OFFSET + SECOND + 1)),
    ("I1", "a gap that counts wrongly", lambda f: fire(f, 1, instants=3)),
    ("I1", "a started fire without a job", lambda f: fire(job(f, S, schedule_id=None), 0, job_id=None)),
    ("I1", "a skipped fire with a job", lambda f: replace(f, fires=[*f.fires[:1], replace(f.fires[1], job_id=A)])),
    ("I1", "a job of no fire", lambda f: job(f, A, schedule_id="s", fire_us=OFFSET + 2 * SECOND)),
    ("I1", "a job of another fire", lambda f: job(f, S, fire_us=OFFSET + 2 * SECOND)),
    ("I2", "a job that never ended", lambda f: job(f, A, state="running")),
    ("I2", "a run without a row", lambda f: lines(f, at("start", UUID(int=99), 1, 5))),
    ("I4", "one attempt started twice", lambda f: lines(f, at("start", A, 1, 100, pid=3))),
    ("I4", "an attempt beyond the row's count", lambda f: lines(f, at("start", C, 3, 2 * NEVER, fence=20))),
    ("I4", "a second attempt of nothing", lambda f: replace(attempt(f, B, outcome="drained"), faults=[])),
    ("I4", "a rescue from a worker to which nothing was done", lambda f: attempt(f, C, outcome="lost")),
    (
        "I4",
        "a second attempt long after the first had ended well",
        lambda f: lines(replace(f, faults=[Fault(kind="kill", pid=2, begin=7 * SECOND)]), at("end", B, 1, 110, pid=2)),
    ),
    ("I5", "an at-most-once job that started twice", lambda f: job(f, B, at_most_once=True)),
    ("I6", "a fence that stood still", lambda f: replace(f, lines=[*f.lines[:2], *STILL, *f.lines[3:]])),
    ("I6", "a row behind its fence", lambda f: job(f, C, fence=15, state="failed")),
    ("I7", "a success nobody ended", lambda f: lines(f, drop=is_end_of(A))),
    ("I7", "a success of an attempt that raised", lambda f: lines(f, at("error", A, 1, 200), drop=is_end_of(A))),
    ("I7", "a success under another fence", lambda f: job(f, A, fence=11, value=None)),
    ("I7", "a success before the current attempt ended", lambda f: job(f, B, finished_us=OFFSET + 4 * SECOND)),
    ("I7", "a value from an older claim", lambda f: job(f, A, value=9)),
    ("I7", "an error nobody raised", lambda f: attempt(f, B, outcome="error")),
    ("I7", "an error recorded by another worker", lambda f: attempt(f, C, worker_id="w2")),
    (
        "I8",
        "two attempts at once, unexplained",
        lambda f: lines(f, at("error", C, 1, 4 * SECOND), drop=lambda x: x.job == C and x.event == "error"),
    ),
    (
        "I8",
        "two attempts at once after a pause shorter than half a lease",
        lambda f: lines(
            replace(f, faults=[*f.faults, Fault(kind="stop", pid=1, begin=SECOND, end=2 * SECOND)]),
            at("error", C, 1, 4 * SECOND),
            drop=lambda x: x.job == C and x.event == "error",
        ),
    ),
    ("I9", "an orphan nobody took", lambda f: attempt(f, B, finished_us=OFFSET + 12 * SECOND)),
    ("I10", "a fire before its time", lambda f: fire(f, 0, decided_us=OFFSET)),
    ("I10", "late fires", lambda f: fire(f, 0, decided_us=OFFSET + SECOND + 2_100_000)),
    (
        "I10",
        "a fire later than the outage explains",
        lambda f: fire(
            replace(f, faults=[*f.faults, Fault(kind="outage", begin=0, end=SECOND)]), 0, decided_us=OFFSET + 6 * SECOND
        ),
    ),
    ("I11", "a session left behind", lambda f: replace(f, leftovers=["idle in transaction for 40 s"])),
    ("I12", "more errors than allowed", lambda f: job(f, C, errors=4)),
    ("I12", "quarantined after one death", lambda f: job(f, B, state="failed", reason="quarantined")),
    ("I12", "poison that was not quarantined", lambda f: replace(f, poison=frozenset({"p"}), jobs=[*f.jobs, POISON])),
]


def test_the_good_story_has_no_violation() -> None:
    assert checker.check(good()) == []


@pytest.mark.parametrize(("invariant", "what", "spoil"), BAD, ids=[f"{i}: {what}" for i, what, _ in BAD])
def test_the_checker_finds(invariant: str, what: str, spoil: Callable[[Facts], Facts]) -> None:
    found = checker.check(spoil(good()))
    assert invariant in {violation.invariant for violation in found}, f"{what} was not found, only {found}"


def test_each_invariant_has_a_story_that_breaks_it() -> None:
    assert {invariant for invariant, _, _ in BAD} == {
        "I1",
        "I2",
        "I4",
        "I5",
        "I6",
        "I7",
        "I8",
        "I9",
        "I10",
        "I11",
        "I12",
    }


def test_an_overlap_after_a_long_pause_is_explained() -> None:
    short = Fault(kind="stop", pid=1, begin=SECOND // 2, end=SECOND // 2 + 100)
    long = Fault(kind="stop", pid=1, begin=SECOND, end=9 * SECOND)
    broken_off = lines(
        good(), at("stopped", C, 1, 9 * SECOND), drop=lambda line: line.job == C and line.event == "error"
    )
    taken = attempt(broken_off, C, outcome="lost", finished_us=OFFSET + 2 * SECOND)
    for pauses in ([long], [short, long], [long, short]):
        assert checker.check(replace(taken, faults=[*taken.faults, *pauses])) == []
    assert {found.invariant for found in checker.check(replace(taken, faults=[*taken.faults, short]))} == {"I8"}


def test_a_process_that_was_stopped_between_its_claim_and_its_first_line_explains_the_next_attempt() -> None:
    story = replace(good(), lease=3 * SECOND, faults=[Fault(kind="stop", pid=2, begin=200, end=5 * SECOND)])
    late = at("start", B, 1, 5 * SECOND + 10, pid=2), at("end", B, 1, 5 * SECOND + 500, pid=2)
    story = lines(story, *late, drop=lambda line: line.job == B and line.attempt == 1)
    assert {found.invariant for found in checker.check(story)} == {"I4", "I8"}, "begun after the stop?"
    assert checker.check(attempt(story, B, started_us=OFFSET + 100)) == []


def test_quarantine_after_three_deaths_is_no_violation() -> None:
    story = good()
    faults = [Fault(kind="kill", pid=pid, begin=boot) for pid, boot in ((2, SECOND), (3, 3 * SECOND), (4, 5 * SECOND))]
    dying = [at("start", B, n, (2 * n - 2) * SECOND + 100, pid=n + 1) for n in (1, 2, 3)]
    lost = [
        AttemptRow(job_id=B, attempt=n, outcome="lost", worker_id=f"w{n + 1}", finished_us=OFFSET + 2 * n * SECOND)
        for n in (1, 2, 3)
    ]
    story = job(story, B, state="failed", reason="quarantined", attempt=3, crashes=3, fence=30)
    story = replace(
        lines(story, *dying, drop=is_of(B)),
        faults=faults,
        attempts=[*lost, story.attempts[1]],
        pids={"w1": 1, "w2": 2, "w3": 3, "w4": 4},
    )
    assert checker.check(story) == []


def test_the_oracle_of_an_interval_leaves_out_both_ends() -> None:
    assert [due.fire_us for due in checker.every("s", SECOND, 2 * SECOND, 5 * SECOND)] == [3 * SECOND, 4 * SECOND]


def test_the_ledger_survives_sigkill_and_keeps_the_lines_of_several_writers_apart(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    program = (
        "import sys, time\nfrom tests.support.ledger import Ledger\nledger = Ledger(sys.argv[1])\n"
        "while True: ledger.write('mark', note='x' * 60), time.sleep(0.0005)"
    )
    root = Path(__file__).resolve().parents[2]
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path)], cwd=root, env={**os.environ, "PYTHONPATH": "src:."}
        )
        for _ in range(3)
    ]
    ledger = Ledger(path)
    try:
        while len({line.pid for line in ledger.lines()}) < 3:
            assert all(writer.poll() is None for writer in writers)
            time.sleep(0.05)  # each look reads the whole file
    finally:
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
    found = ledger.lines()
    assert path.stat().st_size == LINE * len(found)
    assert {line.note for line in found} == {"x" * 60}
