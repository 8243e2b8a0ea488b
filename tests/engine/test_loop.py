"""The loop calls a tick when it asked to be called, earlier when woken, and again after a failure."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from onebeat.engine import loop as loop_module
from onebeat.engine.loop import LONGEST_SLEEP, Loop
from onebeat.errors import DatabaseUnavailable
from onebeat.model.events import DatabaseBack, DatabaseTrouble, Event, PartFailed
from tests.support.virtual import SECOND, START, ProcessClock, VirtualClock


class Part:
    """A part whose ticks answer in turn: an instant, None, or an error to raise; the last answer repeats."""

    def __init__(self, *answers: int | Exception | None) -> None:
        self.answers = list(answers)
        self.ticks: list[int] = []
        self.begun: asyncio.Queue[int] = asyncio.Queue()
        self.events: list[Event] = []
        self.clock = VirtualClock()
        self.loop = Loop(
            "part", self.tick, clock=ProcessClock(self.clock), random=Random(1), announce=self.events.append
        )

    async def tick(self, now: int) -> int | None:
        self.ticks.append(now)
        self.begun.put_nowait(now)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def next(self) -> None:
        """The next tick has begun."""
        await asyncio.wait_for(self.begun.get(), 10)


class SteppedClock(ProcessClock):
    """A process whose wall clock is moved by itself."""

    def __init__(self, steady: VirtualClock, wall: VirtualClock) -> None:
        super().__init__(steady)
        self.wall = wall

    def now(self) -> int:
        return self.wall.now


async def test_a_tick_that_asks_for_now_is_called_again_at_once() -> None:
    part = Part(START, START, None)
    part.loop.start()
    for _ in range(3):
        await part.next()
    assert part.ticks == [START, START, START]
    await part.loop.stop()


async def test_a_tick_that_asks_for_nothing_is_called_when_woken() -> None:
    part = Part(None)
    part.loop.start()
    await part.next()
    part.clock.advance(1)
    part.loop.wake()
    await part.next()
    assert part.ticks == [START, START + SECOND], "it is given the present time"
    await part.loop.stop()


async def test_a_wake_during_a_tick_skips_the_sleep_after_it() -> None:
    part = Part(None)

    async def woken_meanwhile(now: int) -> int | None:
        answer = await part.tick(now)
        if len(part.ticks) == 1:
            part.loop.wake()
        return answer

    part.loop = Loop("part", woken_meanwhile, clock=ProcessClock(part.clock), random=Random(1), announce=print)
    part.loop.start()
    for _ in range(2):
        await part.next()
    assert len(part.ticks) == 2
    await part.loop.stop()


async def test_many_wakes_during_one_sleep_make_one_tick() -> None:
    part = Part(None)
    part.loop.start()
    await part.next()
    for _ in range(100):
        part.loop.wake()
    await part.next()
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(part.ticks) == 2
    await part.loop.stop()


async def test_trouble_and_its_end_are_announced_and_the_part_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "LONGEST_BACKOFF", 0.001)
    part = Part(DatabaseUnavailable("gone"), DatabaseUnavailable("gone"), None)
    part.loop.start()
    await part.next()
    part.clock.advance(3)
    await part.next()
    part.clock.advance(3)
    await part.next()
    await part.loop.stop()
    kinds = [type(event) for event in part.events]
    assert kinds == [DatabaseTrouble, DatabaseTrouble, DatabaseBack]
    assert all(event.part == "part" for event in part.events if isinstance(event, DatabaseTrouble | DatabaseBack))


async def test_a_defect_is_announced_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "LONGEST_BACKOFF", 0.001)
    part = Part(LookupError("a defect"), None)
    part.loop.start()
    await part.next()
    part.clock.advance(1)
    await part.next()
    await part.loop.stop()
    failed = [event for event in part.events if isinstance(event, PartFailed)]
    assert len(failed) == 1
    assert "LookupError: a defect" in failed[0].problem


async def ticks_after(part: Part, real_seconds: float = 0.1) -> int:
    """How many ticks there are after some sleeps of 10 ms."""
    await asyncio.sleep(real_seconds)
    return len(part.ticks)


async def test_a_tick_is_not_called_before_its_time_however_short_the_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "LONGEST_SLEEP", SECOND // 100)
    part = Part(START + 15 * SECOND, None)
    part.loop.start()
    await part.next()
    part.clock.advance(14)
    assert await ticks_after(part) == 1
    part.clock.advance(1)
    await part.next()
    assert await ticks_after(part) == 2, "and the next one when it is woken"
    await part.loop.stop()


@pytest.mark.parametrize("step", [-3600, 3600])
async def test_a_step_of_the_wall_clock_calls_the_tick_once(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    monkeypatch.setattr(loop_module, "LONGEST_SLEEP", SECOND // 100)
    steady, wall = VirtualClock(), VirtualClock()
    part = Part(None)

    async def in_a_minute(now: int) -> int | None:
        await part.tick(now)
        return now + 60 * SECOND

    clock = SteppedClock(steady, wall)
    loop = Loop("part", in_a_minute, clock=clock, random=Random(1), announce=part.events.append)
    loop.start()
    await part.next()
    wall.advance(step)
    await part.next()
    assert part.ticks == [START, START + step * SECOND]
    assert await ticks_after(part) == 2
    wall.advance(59)
    steady.advance(59)
    assert await ticks_after(part) == 2
    steady.advance(1)
    wall.advance(1)
    await part.next()
    await loop.stop()


async def test_stop_lets_the_present_tick_end_and_begins_no_other() -> None:
    part, go = Part(START), asyncio.Event()

    async def slow(now: int) -> int | None:
        await part.tick(now)
        await go.wait()
        return now

    loop = Loop("part", slow, clock=ProcessClock(part.clock), random=Random(1), announce=part.events.append)
    loop.start()
    await part.next()
    stopping = asyncio.create_task(loop.stop())
    await asyncio.sleep(0)
    go.set()
    await asyncio.wait_for(stopping, 10)
    assert len(part.ticks) == 1


async def test_stop_cancels_a_tick_that_hangs() -> None:
    part, cancelled = Part(None), asyncio.Event()

    async def hang(now: int) -> int | None:
        await part.tick(now)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return None

    loop = Loop("part", hang, clock=ProcessClock(part.clock), random=Random(1), announce=part.events.append)
    loop.start()
    await part.next()
    await loop.stop(timeout=0.01)
    assert cancelled.is_set()


def test_a_sleep_is_bounded() -> None:
    """Timers do not count the time a machine was suspended."""
    assert LONGEST_SLEEP <= 5 * SECOND
