"""The protocol in every order of steps: no violation in ours, one in the design this project began with."""

from __future__ import annotations

import pytest

from tests.locks.model import STEP, Faults, Lock, Naive, naive_flaw, naive_steps, search

ALONE = {
    "crashes and pauses": Lock(Faults(), ticks=3),
    "three processes": Lock(Faults(), clients=3, ticks=2),
    "the clock steps forward": Lock(Faults(clock=STEP), ticks=3, owners=2),
    "the clock steps back": Lock(Faults(clock=-STEP), ticks=3, owners=2),
    "the table is emptied": Lock(Faults(empty=True), ticks=3, owners=2),
}
LONG = {
    "crashes and pauses": Lock(Faults(), ticks=5),
    "the clock steps forward": Lock(Faults(clock=STEP), ticks=4),
    "the clock steps back": Lock(Faults(clock=-STEP), ticks=4),
    "the table is emptied": Lock(Faults(empty=True), ticks=4),
}


@pytest.mark.parametrize("lock", ALONE.values(), ids=ALONE.keys())
def test_no_order_of_steps_breaks_the_lock(lock: Lock) -> None:
    found = lock.search()
    print(found)
    assert found.flaw is None, found
    assert found.states > 2_000


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("lock", LONG.values(), ids=LONG.keys())
def test_no_longer_order_breaks_it_either(lock: Lock) -> None:
    found = lock.search()
    print(found)
    assert found.flaw is None, found


def test_the_design_this_project_began_with_gives_two_holders() -> None:
    found = search(Naive(), naive_steps, naive_flaw)
    print(found)
    assert found.flaw == "two processes hold unexpired leases at once"
    assert any("by its name" in step for step in found.trace)


def test_a_table_emptied_while_the_clock_is_behind_is_not_covered() -> None:
    """Each alone is; both at once lose every memory of what was given out. docs/locks.md says so."""
    found = Lock(Faults(clock=-STEP, empty=True), ticks=3).search()
    print(found)
    assert found.flaw is not None
    assert "was given out after" in found.flaw


@pytest.mark.parametrize(
    ("without", "faults"),
    [
        ("owner in release", Faults()),
        ("owner in renew", Faults()),
        ("trust from before sending", Faults()),
        ("last fence", Faults(clock=-STEP)),
        ("clock in the fence", Faults(empty=True)),
    ],
)
def test_each_mechanism_is_needed(without: str, faults: Faults) -> None:
    found = Lock(faults, ticks=3 if faults.clock or faults.empty else 4, without=without).search()
    print(found)
    assert found.flaw is not None, f"the lock without {without!r} should break"
