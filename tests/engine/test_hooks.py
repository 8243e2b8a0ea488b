"""Hooks on events: synchronous and asynchronous, and what they raise changes nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
import threading
from pathlib import Path

import pytest

import onebeat.model.events
from onebeat import JobEvent, JobInfo, JobSettled, Scheduler, WorkerStarted
from onebeat.logs.events import is_logged, word
from onebeat.model.events import Event, JobStarted
from onebeat.scheduler import hook_tasks
from onebeat.scheduler.hook_tasks import HookTasks
from onebeat.scheduler.hooks import EventHooks
from onebeat.testing import TestScheduler

PAGE = Path(__file__).parents[2] / "docs" / "hooks.md"


def test_a_hook_that_raises_stops_neither_the_engine_nor_the_other_hooks(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Event] = []

    def mute(event: Event) -> None:
        raise OSError("a filter of someone else")

    def leave(event: Event) -> None:
        raise SystemExit(3)

    def cancel(event: Event) -> None:
        raise asyncio.CancelledError

    announce = EventHooks(mute)
    for hook in (leave, cancel, heard.append):
        announce.on(Event, hook)
    announce(Event())
    assert len(heard) == 1
    assert "a filter of someone else" in caplog.text
    assert caplog.text.count("a hook for Event raised") == 3
    announce.off(Event, heard.append)
    announce(Event())
    assert len(heard) == 1


async def test_an_asynchronous_hook_sees_what_was_committed_and_may_enqueue(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = Scheduler("sqlite://")
    told: list[JobInfo] = []

    @scheduler.task
    async def work() -> int:
        return 7

    @scheduler.task
    async def follow_up(value: int) -> None: ...

    @scheduler.on(JobSettled)
    async def settled(event: JobSettled) -> None:
        if event.task == "work":
            told.append(await scheduler.jobs.get(event.job_id))
            await asyncio.sleep(0.01)
            await follow_up.enqueue(told[-1].value)
            raise LookupError("after its work")

    async with TestScheduler(scheduler) as beat:
        job = await work.enqueue()
        await beat.run_until_idle()
        assert [(info.id, info.state, info.value) for info in told] == [(job.id, "succeeded", 7)]
        assert beat.assert_enqueued(follow_up, value=7).state == "succeeded", "run_until_idle waits for hooks too"
    assert "a hook for JobSettled raised" in caplog.text
    assert "after its work" in caplog.text


async def test_a_stop_waits_for_asynchronous_hooks(tmp_path: Path) -> None:
    scheduler = Scheduler(f"sqlite:///{tmp_path}/app.db")
    ended: list[str] = []

    @scheduler.on(Event)
    async def hear(event: Event) -> None:
        await asyncio.sleep(0.05)
        ended.append(type(event).__name__)

    async with scheduler:
        pass
    assert {"WorkerStarted", "WorkerStopped"} <= set(ended)


async def test_hooks_run_on_the_event_loop_whatever_thread_announces(caplog: pytest.LogCaptureFixture) -> None:
    announce = EventHooks(lambda event: None)
    where: list[int] = []

    async def hear(event: Event) -> None:
        where.append(threading.get_ident())

    announce.on(Event, hear)
    announce(Event())
    assert "was not run: the scheduler that would run it is not running" in caplog.text
    announce.tasks.open(asyncio.get_running_loop())
    await asyncio.to_thread(announce, Event())
    await announce.tasks.close(5)
    assert where == [threading.get_ident()]


async def test_slow_hooks_wait_in_order_are_bounded_and_do_not_hold_a_stop(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook_tasks, "AT_ONCE", 2)
    monkeypatch.setattr(hook_tasks, "WAITING", 3)
    tasks, go, begun = HookTasks(), asyncio.Event(), []

    async def slow(number: int) -> None:
        begun.append(number)
        await go.wait()

    tasks.open(asyncio.get_running_loop())
    for number in range(7):
        tasks.start("JobSettled", slow(number))
    assert tasks.pending == 5
    assert caplog.text.count("was not run: 3 hooks wait already") == 1, "said once a minute"
    go.set()
    while tasks.pending:
        await asyncio.sleep(0)
    assert begun == [0, 1, 2, 3, 4]
    go.clear()
    tasks.start("JobSettled", slow(5))
    await tasks.close(0.01)
    assert "1 asynchronous hooks were cancelled" in caplog.text


def test_the_page_documents_each_event_with_its_fields() -> None:
    page = PAGE.read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", page, re.MULTILINE))
    inherited = {field.name for field in dataclasses.fields(JobEvent)}
    for name, kind in vars(onebeat.model.events).items():
        if not (isinstance(kind, type) and issubclass(kind, Event) and kind not in (Event, JobEvent)):
            continue
        own = {field.name for field in dataclasses.fields(kind)}
        if issubclass(kind, JobEvent):
            own -= inherited
        told = set(re.findall(r"`(\w+)`", rows[name].rpartition("|")[2]))
        assert own <= told, f"{name}: {own - told} is missing"
    assert {f"`{name}`" for name in inherited} <= set(re.findall(r"`\w+`", page))


def test_a_hook_is_returned_as_it_was() -> None:
    scheduler = Scheduler("sqlite://")

    @scheduler.on(WorkerStarted)
    async def hear(event: WorkerStarted) -> int:
        return event.slots

    assert asyncio.iscoroutinefunction(hear)


def test_an_event_need_not_be_made_when_neither_a_hook_nor_the_log_hears_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    announce = EventHooks(word, is_logged)
    with caplog.at_level(logging.WARNING, "onebeat.jobs"):
        assert not announce.hears(JobStarted)
        assert not announce.hears(JobSettled)
        announce.on(JobEvent, lambda _: None)
        assert announce.hears(JobStarted)
        assert announce.hears(JobSettled)
    with caplog.at_level(logging.INFO, "onebeat.jobs"):
        assert EventHooks(word, is_logged).hears(JobSettled)
