"""G6: a worker that cannot renew its lease stops its jobs before the database may give them to another."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import select

from onebeat import JobContext, Scheduler
from onebeat.concurrency.renewal import margin
from onebeat.engine import heartbeat
from onebeat.engine.heartbeat import WorkerLease
from onebeat.errors import DatabaseUnavailable
from onebeat.store import workers
from onebeat.store.tx import Tx
from tests.guarantees.arrange import LEASE
from tests.support import rows
from tests.support.checker import SECOND
from tests.support.ledger import wall_us


class StillClock:
    """A local clock that stands where the test puts it."""

    def __init__(self) -> None:
        self.at = 0

    def now(self) -> int:
        return self.at

    def boot(self) -> int:
        return self.at

    def monotonic(self) -> float:
        return self.at / 1_000_000


def trust_ends_before_the_lease(lease: int) -> None:
    """Counted from before the renewal was sent, so that its way to the database does not matter."""
    clock = StillClock()
    held = WorkerLease("w", lease, clock=clock, lost=lambda reason: None)
    held.granted(sent=0)
    clock.at = lease - 1
    assert not held.trusted
    clock.at = lease // 3
    assert held.trusted, "three beats fit in a lease; one of them must be enough"


@pytest.mark.parametrize("seconds", [1, 3, 15, 60, 600])
def test_g6_a_process_trusts_itself_less_long_than_the_database_does(seconds: int) -> None:
    trust_ends_before_the_lease(seconds * SECOND)


def test_without_a_margin_a_process_trusts_itself_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "margin", lambda lease: 0)
    with pytest.raises(AssertionError):
        trust_ends_before_the_lease(60 * SECOND)


def test_the_margin_is_ten_seconds_of_a_minute() -> None:
    assert margin(60 * SECOND) == 10 * SECOND


async def a_cut_off_worker_stops_its_jobs(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its beats fail from some moment on; the coroutine must be over when the lease is."""
    started, stopped = asyncio.Event(), asyncio.Event()
    when: list[int] = []
    scheduler = Scheduler(url, lease=LEASE / SECOND, heartbeat=0.4, poll=0.1)

    @scheduler.task(name="long")
    async def long(ctx: JobContext) -> None:
        started.set()
        try:
            await asyncio.sleep(1.4 * LEASE / SECOND)
        finally:
            when.append(wall_us())
            stopped.set()

    async with scheduler:
        await long.enqueue()
        async with asyncio.timeout(10):
            await started.wait()

        def cut_off(tx: Tx, worker_id: str, lease: int) -> bool:
            raise DatabaseUnavailable("cut off, for this test")

        with monkeypatch.context() as patch:
            patch.setattr(workers, "renew", cut_off)
            leases = await rows.ask(url, lambda c: list(c.execute(select(rows.TABLES.workers.c.lease_until_us))))
            async with asyncio.timeout(5 * LEASE / SECOND):
                await stopped.wait()
    (lease,) = (row[0] for row in leases)
    assert when[0] < lease, f"it went on for {when[0] - lease} µs after its lease"


async def test_g6_a_cut_off_worker_stops_its_jobs_before_its_lease_ends(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a_cut_off_worker_stops_its_jobs(database_url, monkeypatch)


async def test_without_self_fencing_a_cut_off_worker_goes_on(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "margin", lambda lease: -lease)
    with pytest.raises(AssertionError, match="after its lease"):
        await a_cut_off_worker_stops_its_jobs(database_url, monkeypatch)
