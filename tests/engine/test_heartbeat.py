"""The heartbeat reports a lost lease at its deadline."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from onebeat.engine.heartbeat import Heartbeat, WorkerLease
from onebeat.model.events import DatabaseTrouble, Event
from onebeat.store.connection.database import Database
from onebeat.timing.clock import SystemClock
from tests.support.databases import waits_until

SECOND = 1_000_000


async def test_a_heartbeat_that_gets_no_answer_tells_at_the_deadline_and_not_after_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, told = SystemClock(), []
    lease = WorkerLease("w", 6 * SECOND, clock=clock, lost=lambda reason: told.append(clock.boot()))
    beat = Heartbeat(database, interval=4 * SECOND, clock=clock)

    async def never(self: Database, *_: Any, **__: Any) -> bool:
        await asyncio.sleep(60)
        return True

    monkeypatch.setattr(Database, "write_one", never)
    monkeypatch.setattr(lease, "interval", SECOND * 3)
    sent = clock.boot()
    lease.granted(sent)
    beat.add(lease)
    try:
        await waits_until(lambda: bool(told))
    finally:
        await asyncio.to_thread(beat.stop, 0.1)
    assert lease.deadline <= told[0] < lease.deadline + SECOND // 2


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TimeoutError(), "no answer in time"),
        (ConnectionResetError(), "ConnectionResetError"),
        (OSError("gone"), "gone"),
    ],
)
async def test_a_trouble_of_the_heartbeat_names_its_reason(
    error: Exception, reason: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SystemClock()
    told: list[Event] = []
    lease = WorkerLease("w", 60 * SECOND, clock=clock, lost=lambda reason: None)
    beat = Heartbeat(database, interval=SECOND // 20, clock=clock, announce=told.append)

    async def fails(self: Database, *_: Any, **__: Any) -> bool:
        raise error

    monkeypatch.setattr(Database, "write_one", fails)
    lease.granted(clock.boot())
    beat.add(lease)
    try:
        await waits_until(lambda: bool(told))
    finally:
        await asyncio.to_thread(beat.stop, 0.1)
    assert isinstance(told[0], DatabaseTrouble)
    assert told[0].problem == reason
