"""The wakeable sleep: what ends it, and what it reports."""

from __future__ import annotations

import asyncio
import threading

import pytest

from onebeat.concurrency.alarm import Alarm

WITHIN = 20.0  # seconds


async def waiting(alarm: Alarm, seconds: float | None = WITHIN) -> asyncio.Task[bool]:
    """Return a task that waits already."""
    task = asyncio.create_task(alarm.wait(seconds))
    await asyncio.sleep(0)
    return task


async def test_an_alarm_that_is_set_ends_the_wait() -> None:
    alarm = Alarm()
    task = await waiting(alarm)
    assert not task.done()
    alarm.set()
    assert await task is True
    assert not alarm.is_set


async def test_an_alarm_that_nobody_sets_ends_the_wait_when_the_time_is_up() -> None:
    assert await Alarm().wait(0.01) is False


async def test_an_alarm_set_before_the_wait_ends_the_next_wait_only() -> None:
    alarm = Alarm()
    alarm.set()
    alarm.set()
    assert await alarm.wait(WITHIN) is True
    assert await alarm.wait(0.01) is False


async def test_a_cleared_alarm_was_never_set() -> None:
    alarm = Alarm()
    alarm.set()
    alarm.clear()
    assert await alarm.wait(0) is False


async def test_a_wait_without_a_limit_ends_when_the_alarm_is_set_from_another_thread() -> None:
    alarm = Alarm()
    task = await waiting(alarm, None)
    thread = threading.Thread(target=alarm.set_threadsafe)
    thread.start()
    assert await asyncio.wait_for(task, WITHIN) is True
    thread.join(WITHIN)


async def test_every_alarm_of_another_thread_is_heard() -> None:
    alarm, rounds = Alarm(), 500
    heard = threading.Semaphore(0)

    def ring() -> None:
        for _ in range(rounds):
            alarm.set_threadsafe()
            assert heard.acquire(timeout=WITHIN)

    thread = threading.Thread(target=ring)
    thread.start()
    for _ in range(rounds):
        assert await alarm.wait(WITHIN)
        heard.release()
    thread.join(WITHIN)
    assert await alarm.wait(0) is False, "an alarm that was heard is not heard again"


@pytest.mark.parametrize("is_set", [True, False])
async def test_a_wait_that_ends_at_once_gives_other_tasks_a_turn(is_set: bool) -> None:
    alarm = Alarm()
    turns: list[int] = []
    if is_set:
        alarm.set()
    asyncio.get_running_loop().call_soon(turns.append, 1)
    assert await alarm.wait(60 if is_set else 0) is is_set
    assert turns


async def test_a_cancelled_wait_leaves_the_alarm_usable() -> None:
    alarm = Alarm()
    task = await waiting(alarm)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    alarm.set()
    assert await alarm.wait(WITHIN) is True


def test_an_alarm_of_a_closed_event_loop_may_be_set() -> None:
    alarm = Alarm()
    assert asyncio.run(alarm.wait(0)) is False
    alarm.set_threadsafe()
    assert asyncio.run(alarm.wait(WITHIN)) is True
