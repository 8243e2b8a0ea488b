"""The renewal thread: when it renews, when it tries again, and when it reports a loss."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import pytest

from onebeat.concurrency.renewal import CONNECT_WITHIN, SECOND, TOO_LATE, RenewalThread, margin
from tests.support.databases import waits_until

WITHIN = 20.0  # seconds
LATE = 2.0  # seconds that a busy machine may add


def boot() -> int:
    return time.monotonic_ns() // 1000


class Item:
    """A lease of `lease` seconds that is renewed every `interval` seconds."""

    def __init__(self, interval: float, lease: float) -> None:
        self.interval = round(interval * SECOND)
        self.lease = round(lease * SECOND)
        self.deadline = boot() + self.lease
        self.grants: list[int] = []
        self.losses: list[tuple[int, str]] = []

    def granted(self, sent: int) -> None:
        self.grants.append(sent)
        self.deadline = sent + self.lease

    def lost(self, reason: str) -> None:
        self.losses.append((boot(), reason))


class Server:
    """What renewers connect to; the test sets what it does."""

    def __init__(self) -> None:
        self.opened = 0
        self.closed = 0
        self.refuse_connections = 0  # how many of the next ones
        self.renew: Callable[[Sequence[Item]], Any] = self.grant_all
        self.asked: list[Sequence[Item]] = []

    async def grant_all(self, items: Sequence[Item]) -> list[Item]:
        return list(items)


class ServerRenewer:
    """A connection to the server."""

    def __init__(self, server: Server) -> None:
        self.server = server

    async def open(self, timeout: float) -> None:
        assert timeout == CONNECT_WITHIN
        if self.server.refuse_connections:
            self.server.refuse_connections -= 1
            raise ConnectionRefusedError("nobody listens")
        self.server.opened += 1

    async def renew(self, items: Sequence[Item]) -> list[Item]:
        self.server.asked.append(items)
        kept: list[Item] = await self.server.renew(items)
        return kept

    async def close(self) -> None:
        self.server.closed += 1


class Renewals:
    """A renewal thread, the server it renews at, and what it reported."""

    def __init__(self, together: int = 1) -> None:
        self.server = Server()
        self.failures: list[Exception] = []
        self.recoveries: list[float] = []
        self.thread: RenewalThread[Item] = RenewalThread(
            lambda: ServerRenewer(self.server),
            name="test-renewal",
            interval=lambda item: item.interval,
            now=boot,
            random=Random(13),
            refusal="refused",
            failed=self.failures.append,
            recovered=self.recoveries.append,
            together=together,
        )


@pytest.fixture
def renewals() -> Iterator[Renewals]:
    renewals = Renewals()
    yield renewals
    renewals.thread.stop(WITHIN)


@pytest.fixture
def common() -> Iterator[Renewals]:
    """Renewals of which one call renews up to fifty leases."""
    renewals = Renewals(together=50)
    yield renewals
    renewals.thread.stop(WITHIN)


async def hangs(items: Sequence[Item]) -> list[Item]:
    """Give no answer."""
    await asyncio.Event().wait()
    return []


async def is_granted(item: Item) -> None:
    """Return when the lease has been renewed."""
    await waits_until(lambda: bool(item.grants))


def test_the_margin_of_a_minute_is_ten_seconds_and_never_more_than_a_third() -> None:
    assert margin(60 * SECOND) == 10 * SECOND
    assert all(margin(seconds * SECOND) <= seconds * SECOND // 3 for seconds in range(1, 100))


async def test_a_lease_is_renewed_again_and_again_over_one_connection(renewals: Renewals) -> None:
    item = Item(interval=0.05, lease=WITHIN)
    renewals.thread.add(item)
    await waits_until(lambda: len(item.grants) >= 3)
    assert (renewals.server.opened, item.losses, renewals.failures) == (1, [], [])
    assert item.grants == sorted(item.grants)


async def test_the_thread_connects_before_the_first_renewal(renewals: Renewals) -> None:
    renewals.thread.add(Item(interval=600, lease=3600))
    await waits_until(lambda: renewals.server.opened == 1)
    assert renewals.server.asked == []


async def test_a_lease_that_is_due_sooner_wakes_the_sleeping_thread(renewals: Renewals) -> None:
    renewals.thread.add(Item(interval=600, lease=3600))
    await waits_until(lambda: renewals.thread._asleep_until is not None)
    sooner = Item(interval=0.05, lease=WITHIN)
    renewals.thread.add(sooner)
    await waits_until(lambda: bool(sooner.grants))


async def test_a_lease_that_is_due_later_does_not_wake_the_thread(renewals: Renewals) -> None:
    renewals.thread.add(Item(interval=600, lease=3600))
    await waits_until(lambda: renewals.thread._asleep_until is not None and not renewals.thread._alarm.is_set)
    renewals.thread.add(Item(interval=900, lease=3600))
    assert not renewals.thread._alarm.is_set


async def test_a_removed_lease_is_not_renewed(renewals: Renewals) -> None:
    kept, removed = Item(interval=0.05, lease=WITHIN), Item(interval=0.05, lease=WITHIN)
    renewals.thread.add(removed)
    renewals.thread.remove(removed)
    renewals.thread.remove(removed)
    renewals.thread.add(kept)
    await waits_until(lambda: len(kept.grants) >= 2)
    assert (removed.grants, removed.losses) == ([], [])


async def test_a_refused_renewal_is_a_loss_at_once(renewals: Renewals) -> None:
    async def refuse(items: Sequence[Item]) -> list[Item]:
        return []

    renewals.server.renew = refuse
    item = Item(interval=0.05, lease=WITHIN)
    renewals.thread.add(item)
    await waits_until(lambda: bool(item.losses))
    assert [reason for _, reason in item.losses] == ["refused"]
    assert item.grants == []
    assert len(renewals.server.asked) == 1


async def test_a_renewal_that_fails_is_tried_again_and_an_outage_is_reported_once(renewals: Renewals) -> None:
    async def fail(items: Sequence[Item]) -> list[Item]:
        if len(renewals.server.asked) <= 3:
            raise ZeroDivisionError("a mistake")
        return list(items)

    renewals.server.renew = fail
    item = Item(interval=0.1, lease=WITHIN)
    renewals.thread.add(item)
    await waits_until(lambda: bool(renewals.recoveries))
    assert [str(error) for error in renewals.failures] == ["a mistake"]
    assert len(renewals.recoveries) == 1
    assert item.losses == []


async def test_a_connection_that_is_refused_is_tried_again(renewals: Renewals) -> None:
    renewals.server.refuse_connections = 2
    item = Item(interval=0.1, lease=WITHIN)
    renewals.thread.add(item)
    await waits_until(lambda: bool(item.grants))
    assert [type(error) for error in renewals.failures] == [ConnectionRefusedError]
    assert len(renewals.recoveries) == 1


async def test_a_loss_is_reported_at_the_deadline_while_an_answer_is_awaited(renewals: Renewals) -> None:
    renewals.server.renew = hangs
    item = Item(interval=3, lease=3.5)
    renewals.thread.add(item)
    deadline = item.deadline
    await waits_until(lambda: bool(item.losses))
    [(at, reason)] = item.losses
    assert reason == TOO_LATE
    assert deadline <= at < deadline + LATE * SECOND
    assert renewals.failures == [], "the answer is still awaited"
    renewals.thread.stop(0.0)


async def test_a_loss_is_reported_at_the_deadline_between_two_tries(renewals: Renewals) -> None:
    async def fail(items: Sequence[Item]) -> list[Item]:
        raise OSError("gone")

    renewals.server.renew = fail
    item = Item(interval=1, lease=1.5)
    renewals.thread.add(item)
    deadline = item.deadline
    await waits_until(lambda: bool(item.losses))
    assert deadline <= item.losses[0][0] < deadline + LATE * SECOND
    asked = len(renewals.server.asked)
    await asyncio.sleep(0.3)
    assert len(renewals.server.asked) == asked, "what is lost is not renewed"


async def test_a_slow_answer_holds_up_no_other_lease(renewals: Renewals) -> None:
    slow, quick = Item(interval=0.05, lease=WITHIN), Item(interval=0.05, lease=WITHIN)

    async def renew(items: Sequence[Item]) -> list[Item]:
        if slow in items:
            await hangs(items)
        return list(items)

    renewals.server.renew = renew
    renewals.thread.add(slow)
    renewals.thread.add(quick)
    await waits_until(lambda: len(quick.grants) >= 3)
    assert slow.grants == []
    await waits_until(lambda: bool(renewals.failures))
    assert isinstance(renewals.failures[0], TimeoutError)


async def test_leases_that_are_due_at_about_the_same_time_are_renewed_together(common: Renewals) -> None:
    items = [Item(interval=0.5, lease=WITHIN) for _ in range(80)]
    for item in items:
        common.thread.add(item)
    await waits_until(lambda: all(len(item.grants) >= 3 for item in items))
    sizes = [len(asked) for asked in common.server.asked]
    assert max(sizes) == 50
    assert len(sizes) <= 20, f"one by one it would be 240 calls: {sizes}"


async def test_a_lease_that_is_not_due_soon_is_left_alone(common: Renewals) -> None:
    soon, later = Item(interval=0.05, lease=WITHIN), Item(interval=600, lease=3600)
    common.thread.add(later)
    common.thread.add(soon)
    await waits_until(lambda: len(soon.grants) >= 3)
    assert later.grants == []


async def test_a_lease_whose_renewal_hangs_harms_the_others_once(common: Renewals) -> None:
    bad, good = Item(interval=0.1, lease=WITHIN), [Item(interval=0.1, lease=WITHIN) for _ in range(7)]

    async def renew(items: Sequence[Item]) -> list[Item]:
        if bad in items:
            await hangs(items)
        return list(items)

    common.server.renew = renew
    for item in (bad, *good):
        common.thread.add(item)
    await waits_until(lambda: all(len(item.grants) >= 3 for item in good))
    assert bad.grants == []


async def test_an_answer_that_comes_after_the_loss_does_not_bring_the_lease_back(renewals: Renewals) -> None:
    async def late(items: Sequence[Item]) -> list[Item]:
        await asyncio.sleep(0.6)
        return list(items)

    renewals.server.renew = late
    item = Item(interval=0.1, lease=0.4)
    renewals.thread.add(item)
    await waits_until(lambda: bool(item.losses) and bool(item.grants))
    assert len(item.losses) == 1
    assert item not in renewals.thread._held


async def test_a_listener_that_raises_does_not_end_the_thread(
    renewals: Renewals, caplog: pytest.LogCaptureFixture
) -> None:
    class Fails(Item):
        def lost(self, reason: str) -> None:
            super().lost(reason)
            raise ZeroDivisionError("a mistake of a listener")

    failing, other = Fails(interval=600, lease=0.1), Item(interval=0.05, lease=WITHIN)
    renewals.thread.add(failing)
    await waits_until(lambda: bool(failing.losses))
    renewals.thread.add(other)
    await waits_until(lambda: bool(other.grants))
    assert "a mistake of a listener" in caplog.text


async def test_stopping_closes_the_connection_and_ends_the_thread(renewals: Renewals) -> None:
    item = Item(interval=0.05, lease=WITHIN)
    renewals.thread.add(item)
    await waits_until(lambda: bool(item.grants))
    await asyncio.to_thread(renewals.thread.stop, WITHIN)
    assert renewals.server.closed == 1
    assert "test-renewal" not in [thread.name for thread in threading.enumerate()]


async def test_the_thread_starts_again_with_a_lease_that_is_added_after_its_end(renewals: Renewals) -> None:
    for opened in (1, 2):
        item = Item(interval=0.05, lease=WITHIN)
        renewals.thread.add(item)
        await is_granted(item)
        assert renewals.server.opened == opened
        renewals.thread.remove(item)
        await asyncio.to_thread(renewals.thread.stop, WITHIN)


def test_a_thread_that_was_never_started_is_stopped_without_an_error() -> None:
    Renewals().thread.stop()
    gc.collect()


async def test_renewals_are_spread_by_a_tenth_of_the_interval(renewals: Renewals) -> None:
    now = boot()
    renewals.thread._now = lambda: now
    delays = [renewals.thread._after(1000) - now for _ in range(1000)]
    assert 900 <= min(delays) < 920
    assert 1080 < max(delays) <= 1100


CHILD = """
import os, time
from tests.concurrency.test_renewal import Item, Renewals

renewals = Renewals()
theirs = Item(0.05, 60)
renewals.thread.add(theirs)
until = time.monotonic() + 20
while not theirs.grants and time.monotonic() < until:
    time.sleep(0.01)
child = os.fork()
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    known = len(theirs.grants)
    while len(theirs.grants) == known and time.monotonic() < until:
        time.sleep(0.01)
    assert len(theirs.grants) > known, "the parent's thread goes on"
else:
    known, ours = len(theirs.grants), Item(0.05, 60)
    renewals.thread.stop()  # of a thread that does not run here
    renewals.thread.add(ours)
    while len(ours.grants) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(ours.grants) >= 3
    assert len(theirs.grants) == known, "the parent's lease is the parent's to renew"
    renewals.thread.stop()
    os._exit(0)
renewals.thread.stop()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_renews_its_own_leases_and_none_of_its_parents() -> None:
    ran = subprocess.run([sys.executable, "-c", CHILD], timeout=WITHIN * 3, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
