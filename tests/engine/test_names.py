"""A name that only some databases would take is refused before it reaches one, alike on all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from onebeat import ConfigurationError, Every, ScheduleNotFound, Scheduler, TaskRouter, fence_guard

Ask = Callable[[], Awaitable[object]]

BAD = ["a ", " a", "a\n", "a\t", "a b", "ä", "", "a\x00", "x" * 201]


@pytest.fixture
async def scheduler(database_url: str) -> AsyncIterator[Scheduler]:
    """A running client with the task `a`."""
    scheduler = Scheduler(database_url, role="client")

    @scheduler.task(name="a")
    async def a() -> None: ...

    async with scheduler:
        yield scheduler


async def nothing() -> None: ...


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_every_kind_of_name_is_refused_where_it_is_given(name: str) -> None:
    scheduler = Scheduler("sqlite:///never-opened.db")
    task = scheduler.task(name="fine")(nothing)
    session: Any = None  # never looked at
    refused: dict[str, Any] = {
        "task": lambda: scheduler.task(name=name)(nothing),
        "alias": lambda: scheduler.task(name="other", aliases=[name])(nothing),
        "queue of a task": lambda: scheduler.task(name="other", queue=name)(nothing),
        "queue of a call": lambda: task.options(queue=name),
        "tag of a call": lambda: task.options(tags=[name]),
        "tracking id": lambda: task.options(tracking_id=name),
        "schedule id": lambda: scheduler.declare(name, task, Every(60)),
        "queue of a schedule": lambda: scheduler.declare("s", task, Every(60), queue=name),
        "tag of a schedule": lambda: scheduler.declare("s", task, Every(60), tags=[name]),
        "prefix": lambda: TaskRouter(prefix=name),
        "served queue": lambda: Scheduler(queues=(name,)),
        "queue with slots": lambda: Scheduler(queues={name: 1}),
        "guarded resource": lambda: fence_guard(session, name, 1),
        "lock": lambda: scheduler.lock(name),
    }
    if name == "":
        del refused["prefix"]  # none
    assert [what for what, give in refused.items() if not is_refused(give)] == []


def is_refused(give: Callable[[], object]) -> bool:
    try:
        give()
    except ConfigurationError:
        return True
    return False


def test_a_tag_is_refused_at_the_length_that_its_column_has() -> None:
    task = Scheduler("sqlite:///never-opened.db").task(name="fine")(nothing)
    task.options(tags=["x" * 100])
    with pytest.raises(ConfigurationError, match="1 to 100"):
        task.options(tags=["x" * 101])


async def test_a_name_with_a_blank_finds_nothing_and_removes_nothing(scheduler: Scheduler) -> None:
    """MariaDB alone would compare "a" and "a " as equal."""
    schedules, jobs = scheduler.schedules, scheduler.jobs
    await schedules.add("a", "a", Every(3600), tags=["a"])
    await scheduler.registry.get("a").options(tags=["a"]).enqueue()
    unknown: tuple[Ask, ...] = (
        lambda: schedules.get("a "),
        lambda: schedules.update("a ", note="x"),
        lambda: schedules.pause("a "),
        lambda: schedules.resume("a "),
        lambda: schedules.remove("a "),
        lambda: schedules.fire_now("a "),
        lambda: schedules.upcoming("a "),
        lambda: schedules.why("a ", datetime.now(UTC)),
    )
    for ask in unknown:
        with pytest.raises(ScheduleNotFound, match="no schedule 'a '"):
            await ask()
    refused: tuple[Ask, ...] = (
        lambda: schedules.add("a ", "a", Every(60), if_exists="replace"),
        lambda: schedules.fires("a "),
        lambda: schedules.list(tag="a "),
        lambda: schedules.list(task="a "),
        lambda: schedules.remove_where(tag="a "),
        lambda: jobs.list(tag="a "),
        lambda: jobs.list(queue="default "),
        lambda: jobs.count(task="a "),
        lambda: jobs.count(schedule_id="a "),
        lambda: scheduler.locks.force_release("a ", reason="test"),
    )
    for ask in refused:
        with pytest.raises(ConfigurationError, match="cannot be"):
            await ask()
    (info,) = await schedules.list(tag="a")
    assert (info.id, info.trigger, info.rev) == ("a", Every(3600), 1)
    assert await jobs.count(tag="a", task="a", queue="default") == 1
