"""A worker starts its parts, connects their wake-ups, drains and leaves."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from onebeat.engine import membership, reconciler
from onebeat.engine.heartbeat import WorkerLease
from onebeat.engine.identity import WorkerIdentity
from onebeat.engine.loop import Loop
from onebeat.engine.wakeups import AT_ONCE
from onebeat.engine.worker import Worker
from onebeat.errors import DatabaseUnavailable
from onebeat.model.events import WorkerLost
from onebeat.model.job import JobState
from onebeat.scheduler.integration import integration_of
from onebeat.scheduler.scheduler import Scheduler
from onebeat.store import workers
from onebeat.store.schedules import declare
from onebeat.timing.backoff import Retry
from onebeat.timing.clock import SystemClock
from onebeat.timing.triggers import Every
from tests.engine.conftest import Make
from tests.support.builders import SECOND, HeldLease, a_job
from tests.support.databases import waits_until


@pytest.mark.parametrize("cancelled", [False, True], ids=["both wait", "the first is cancelled"])
async def test_who_stops_while_another_drains_waits_for_that_drain(cancelled: bool, make: Make) -> None:
    scheduler, client = make(drain=10), make(role="client")
    started, go = asyncio.Event(), asyncio.Event()

    @scheduler.task(name="long", at_most_once=True)
    async def long() -> None:
        started.set()
        await go.wait()

    client.include(scheduler)
    await client.start()
    job = await long.enqueue()
    await scheduler.start()
    await asyncio.wait_for(started.wait(), 10)
    first = asyncio.create_task(scheduler.stop())
    await waits_until(lambda: scheduler._stopping is not None)
    second = asyncio.create_task(scheduler.stop())
    if cancelled:
        first.cancel()
        await asyncio.wait({first})
    go.set()
    await asyncio.wait_for(second, 10)
    assert (await client.jobs.get(job.id)).state is JobState.SUCCEEDED
    assert not [task for task in asyncio.all_tasks() if task.get_name() in ("onebeat-settler", "onebeat-stop")]
    await asyncio.wait({first})


async def test_a_start_that_is_cancelled_ends_what_it_began(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, client, waiting = make(), make(role="client"), asyncio.Event()

    async def never(self: Worker) -> None:
        waiting.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Worker, "_warn_of_unserved", never)
    await client.start()
    starting = asyncio.create_task(scheduler.start())
    await asyncio.wait_for(waiting.wait(), 10)
    starting.cancel()
    await asyncio.wait({starting})
    assert starting.cancelled()
    assert not integration_of(scheduler).started
    assert [worker.state for worker in await client.workers.list()] == ["stopped"]
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "onebeat-settler"]


# ── wake-ups ──────────────────────────────────────────────────────────────────────────────────────────────────────────
class Looks:
    """A running worker whose loops tell when something woke them."""

    def __init__(self, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
        self.woken: set[str] = set()
        original = Loop.wake

        def wake(loop: Loop) -> None:
            self.woken.add(loop.name)
            original(loop)

        monkeypatch.setattr(Loop, "wake", wake)
        self.scheduler = scheduler

    def during(self, announce: Callable[..., None], *args: object) -> set[str]:
        """The parts that this announcement wakes."""
        self.woken.clear()
        announce(*args)
        return set(self.woken)


@pytest.fixture
async def looks(make: Make, monkeypatch: pytest.MonkeyPatch) -> Looks:
    scheduler = make(poll=30)
    looks = Looks(scheduler, monkeypatch)
    await scheduler.start()
    return looks


async def test_each_wake_up_reaches_the_part_that_has_to_look(looks: Looks) -> None:
    wakeups = looks.scheduler._wakeups
    assert looks.during(wakeups.jobs_queued) == {"claimer"}
    assert looks.during(wakeups.slots_freed) == {"claimer"}
    assert looks.during(wakeups.jobs_delayed, AT_ONCE) == {"promoter"}
    assert looks.during(wakeups.schedules_changed) == {"dispatcher"}
    assert looks.during(wakeups.run_started) == {"reconciler"}
    assert looks.during(wakeups.run_ended) == {"settler"}
    assert looks.during(wakeups.cancel_requested, a_job().id) == set(), "it does not run here"


async def test_a_hint_of_another_process_wakes_the_same_parts(looks: Looks) -> None:
    wakeups = looks.scheduler._wakeups
    assert looks.during(wakeups.jobs_queued.wake) == {"claimer"}
    assert looks.during(wakeups.jobs_delayed.wake, AT_ONCE) == {"promoter"}
    assert looks.during(wakeups.schedules_changed.wake) == {"dispatcher"}


async def test_a_job_for_later_than_the_next_look_makes_no_look(looks: Looks) -> None:
    wakeups, (worker,) = looks.scheduler._wakeups, [looks.scheduler._running().worker]
    assert worker is not None
    await waits_until(lambda: worker._promoter._looks_at is not None)
    assert looks.during(wakeups.jobs_delayed, SystemClock().now() + 3600 * SECOND) == set(), "it polls each 30 s"
    assert looks.during(wakeups.jobs_delayed, SystemClock().now() + SECOND) == {"promoter"}


async def test_after_a_stop_nothing_listens_and_a_second_start_listens_once(make: Make) -> None:
    scheduler = make()
    signals = vars(scheduler._wakeups).values()
    await scheduler.start()
    listening = [len(signal._subscribers) for signal in signals]
    await scheduler.stop()
    assert not any(signal._subscribers for signal in signals)
    await scheduler.start()
    assert [len(signal._subscribers) for signal in signals] == listening


async def test_what_a_caller_does_wakes_only_who_has_to_look(make: Make) -> None:
    scheduler, heard = make(role="client"), list[str]()

    @scheduler.task(name="work")
    async def work() -> None: ...

    for name, signal in vars(scheduler._wakeups).items():
        signal.subscribe(lambda *_, name=name: heard.append(name))

    async def during(action: Awaitable[Any]) -> tuple[Any, list[str]]:
        heard.clear()
        result = await action
        return result, list(heard)

    await scheduler.start()
    queued, woken = await during(work.enqueue())
    assert woken == ["jobs_queued"]
    _, woken = await during(work.options(delay=3600).enqueue())
    assert woken == ["jobs_delayed"]
    _, woken = await during(scheduler.jobs.cancel(queued.id))
    assert woken == ["job_ended"]
    _, woken = await during(scheduler.jobs.retry(queued.id))
    assert woken == ["jobs_queued"]
    _, woken = await during(scheduler.schedules.add("hourly", work, Every(hours=1)))
    assert woken == ["schedules_changed"]
    _, woken = await during(scheduler.schedules.fire_now("hourly"))
    assert set(woken) == {"jobs_queued", "jobs_delayed"}


async def test_a_delayed_job_and_a_retry_run_on_time_however_seldom_the_parts_poll(make: Make) -> None:
    scheduler, starts = make(poll=30), list[float]()

    @scheduler.task(name="flaky", retry=Retry(2, base=0.1, jitter=False))
    async def flaky() -> None:
        starts.append(asyncio.get_running_loop().time())
        if len(starts) == 1:
            raise ValueError("once")

    await scheduler.start()
    job = await flaky.options(delay=0.1).enqueue()
    assert (await job.wait(10)).state is JobState.SUCCEEDED
    assert starts[1] - starts[0] < 5


async def test_a_cancel_reaches_a_run_of_this_process_at_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "WHILE_RUNNING", 60 * SECOND)
    scheduler, started = make(), asyncio.Event()

    @scheduler.task(name="long")
    async def long() -> None:
        started.set()
        await asyncio.Event().wait()

    await scheduler.start()
    job = await long.enqueue()
    await asyncio.wait_for(started.wait(), 10)
    await scheduler.jobs.cancel(job.id)
    assert (await job.wait(10)).state is JobState.CANCELLED


# ── membership ────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_worker_that_lost_its_lease_registers_anew_and_works_on(make: Make) -> None:
    scheduler = make()
    lost: list[WorkerLost] = []
    scheduler.on(WorkerLost)(lost.append)

    @scheduler.task(name="work")
    async def work() -> None: ...

    await scheduler.start()
    worker = scheduler._running().worker
    assert worker is not None
    before, lease = worker.id, worker.identity.lease
    assert isinstance(lease, WorkerLease)
    await asyncio.to_thread(lease.lost, "a test said so")
    await waits_until(lambda: worker.working and worker.id != before)
    assert [event.worker_id for event in lost] == [before]
    assert (await (await work.enqueue()).wait(10)).state is JobState.SUCCEEDED


async def test_a_draining_worker_that_loses_its_lease_does_not_register_again(make: Make) -> None:
    scheduler, client = make(), make(role="client")
    await client.start()
    await scheduler.start()
    worker = scheduler._running().worker
    assert worker is not None
    lease = worker.identity.lease
    assert isinstance(lease, WorkerLease)
    worker.stop_claiming()
    await asyncio.to_thread(lease.lost, "a test said so")
    await waits_until(lambda: worker.id is None)
    await scheduler.stop()
    assert len(await client.workers.list()) == 1


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux lists the descriptors of a process")
@pytest.mark.parametrize("fails", ["the registration", "the declaration"])
async def test_a_registration_that_fails_again_and_again_leaves_no_descriptor_open(
    fails: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = make()
    others = run_files_open()
    await scheduler.start()
    worker = scheduler._running().worker
    assert worker is not None
    tries = 0

    def refuse(*_: Any) -> None:
        nonlocal tries
        tries += 1
        raise DatabaseUnavailable("a test said so")

    monkeypatch.setattr(membership, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(membership, "LONGEST_PAUSE", 0.001)
    with monkeypatch.context() as outage:
        if fails == "the registration":
            outage.setattr(workers, "register", refuse)
        else:
            outage.setattr(declare, "declare", refuse)
        lease = worker.identity.lease
        assert isinstance(lease, WorkerLease)
        await asyncio.to_thread(lease.lost, "a test said so")
        await waits_until(lambda: tries >= 2)
        before = run_files_open()
        await waits_until(lambda: tries >= 22)
        assert run_files_open() <= before + 1, "one may be in the middle of a try"
    await waits_until(lambda: worker.working)
    assert run_files_open() == others + 1


def run_files_open() -> int:
    """How many run files this process has open."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed since it was listed
            count += ".run" in os.readlink(link)
    return count


# ── identity ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_who_may_act_and_whose_jobs_run_here() -> None:
    identity, lease = WorkerIdentity(), HeldLease("w")

    def answers() -> tuple[bool, str | None, str | None]:
        return identity.trusted, identity.holder, identity.claimant

    assert answers() == (False, None, None)
    identity.take(lease)
    assert answers() == (True, "w", None), "it has not begun to claim"
    identity.claiming = True
    assert answers() == (True, "w", "w")
    lease.trusted = False
    assert answers() == (False, None, None)
    assert identity.last_id == "w"
