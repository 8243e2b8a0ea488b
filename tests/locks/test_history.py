"""The checker of histories, on histories made by hand: it must name each kind of fault, and accept what is right."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tests.locks.history import NEVER, History, Hold, Op, fences_grow, holds_apart, linearisable


def hold(fence: int, begin: int, end: int, asked: int | None = None) -> Hold:
    return Hold(fence=fence, asked=begin - 1 if asked is None else asked, begin=begin, end=end)


def write(fence: int, value: str, begin: int, end: int = NEVER, accepted: bool | None = True) -> Op:
    return Op(kind="write", begin=begin, end=end, fence=fence, value=value, accepted=accepted if end < NEVER else None)


def read(value: str | None, begin: int, end: int) -> Op:
    return Op(kind="read", begin=begin, end=end, value=value)


def test_holds_one_after_the_other_are_right() -> None:
    history = History("a", [hold(1, 10, 20), hold(2, 20, 30), hold(5, 31, 40)], [write(1, "x", 11, 12)])
    assert history.violations() == []


def test_two_holds_at_once_are_named() -> None:
    assert "held together" in holds_apart([hold(1, 10, 20), hold(2, 19, 30)])[0]
    assert "held together" in holds_apart([hold(1, 10, 50), hold(2, 20, 30), hold(3, 40, 45)])[1]


def test_an_overlap_that_a_fault_explains_is_not_the_locks() -> None:
    holds = [hold(1, 10, 20), hold(2, 15, 30)]
    assert holds_apart(holds, [(14, 21)]) == []
    assert holds_apart(holds, [(16, 21)]) != []


def test_a_fence_that_shrinks_or_repeats_is_named() -> None:
    assert "after a larger one" in fences_grow([hold(2, 10, 20), hold(1, 25, 30, asked=21)])[0]
    assert "given out twice" in fences_grow([hold(2, 10, 20), hold(2, 25, 30)])[0]
    assert fences_grow([hold(2, 10, 20, asked=1), hold(1, 25, 30, asked=2)]) == []  # both asked before either knew


def test_a_write_of_a_stale_holder_after_a_newer_one_is_named() -> None:
    assert linearisable([write(2, "new", 10, 11), write(1, "old", 20, 21)]) != []
    assert linearisable([write(2, "new", 10, 11), write(1, "old", 20, 21, accepted=False)]) == []
    assert linearisable([write(2, "new", 10, 30), write(1, "old", 20, 21)]) == []  # together: old may have come first


def test_a_read_of_what_was_overwritten_is_named() -> None:
    ops = [write(1, "x", 1, 2), write(1, "y", 3, 4)]
    assert linearisable([*ops, read("y", 5, 6)]) == []
    assert linearisable([*ops, read("x", 5, 6)]) != []
    assert linearisable([*ops, read("x", 2, 6)]) == []


def test_a_call_without_an_answer_may_have_happened_or_not() -> None:
    lost = write(1, "x", 1)
    assert linearisable([lost, read("x", 5, 6)]) == []
    assert linearisable([lost, read(None, 5, 6)]) == []
    assert linearisable([lost, read("x", 5, 6), read(None, 7, 8)]) != []
    assert (
        linearisable([lost, write(2, "y", 3, 4), read("y", 5, 6), read("x", 7, 8)]) != []
    )  # its fence is stale by then


def test_a_refusal_without_reason_is_named() -> None:
    assert linearisable([write(1, "x", 1, 2), write(2, "y", 3, 4, accepted=False)]) != []


def test_the_lock_this_project_began_with_is_caught(tmp_path: Path) -> None:
    """Its own statements, in an order that one ordinary overrun gives: A outlives its lease, B steals, A's release
    removes B's row, C inserts."""
    db = sqlite3.connect(tmp_path / "naive.db", isolation_level=None)
    db.execute("CREATE TABLE locks (task_name TEXT UNIQUE, owner TEXT, expires_at INTEGER)")
    clock, lease = 0, 30
    begun: dict[str, int] = {}
    holds: list[Hold] = []

    def acquire(who: str) -> bool:
        try:
            db.execute("INSERT INTO locks VALUES ('t', ?, ?)", (who, clock + lease))
        except sqlite3.IntegrityError:
            (expires,) = db.execute("SELECT expires_at FROM locks WHERE task_name = 't'").fetchone()
            if expires > clock:
                return False
            db.execute("UPDATE locks SET owner = ?, expires_at = ? WHERE task_name = 't'", (who, clock + lease))
        begun[who] = clock
        return True

    def release(who: str) -> None:
        db.execute("DELETE FROM locks WHERE task_name = 't'")
        holds.append(hold(len(holds), begun[who], min(clock, begun[who] + lease)))

    assert acquire("A")
    clock = 31
    assert acquire("B")
    clock = 35
    release("A")
    assert acquire("C")
    clock = 40
    release("B")
    release("C")
    db.close()
    assert any("held together" in each for each in holds_apart(holds))
