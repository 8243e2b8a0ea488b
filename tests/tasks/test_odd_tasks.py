"""What a newcomer tries: each either works by a rule of its own, or raises an error that names the parameter."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from onebeat import ConfigurationError, InvalidArguments, NotStarted, OnebeatError, Scheduler, TaskRouter
from tests.scheduler.arrange import scheduler_on

if TYPE_CHECKING:
    from decimal import Decimal

Case = Callable[[Scheduler], Awaitable[Any]]


async def charge(user_id: int, note: str = "") -> None: ...


async def invalid_argument(scheduler: Scheduler) -> None:
    async with scheduler:
        await scheduler.task(charge).enqueue("seven")  # type: ignore[arg-type]  # that is what is refused


async def unknown_argument(scheduler: Scheduler) -> None:
    async with scheduler:
        await scheduler.task(charge).enqueue(1, colour="red")  # type: ignore[call-arg]  # that is what is refused


async def missing_argument(scheduler: Scheduler) -> None:
    async with scheduler:
        await scheduler.task(charge).enqueue()  # type: ignore[call-arg]  # that is what is refused


async def unknown_task_option(scheduler: Scheduler) -> None:
    scheduler.task(charge, colour="red")  # type: ignore[call-overload]  # that is what is refused


async def unknown_job_option(scheduler: Scheduler) -> None:
    scheduler.task(charge).options(colour="red")  # type: ignore[call-arg]  # that is what is refused


async def before_the_start(scheduler: Scheduler) -> None:
    await scheduler.task(charge).enqueue(1)


async def a_lambda(scheduler: Scheduler) -> None:
    scheduler.task(lambda: None)


async def a_generator(scheduler: Scheduler) -> None:
    def numbers() -> Iterator[int]:
        yield 1

    scheduler.task(numbers)


async def a_name_of_type_checking(scheduler: Scheduler) -> None:
    async def pay(user_id: int, amount: Decimal) -> None: ...

    scheduler.task(pay)
    await scheduler.start()


async def two_schedulers(scheduler: Scheduler) -> None:
    router = TaskRouter()
    task = router.task(charge)
    other = Scheduler(f"{scheduler._target}.other")
    for one in (scheduler, other):
        one.include(router)
    async with scheduler, other:
        await task.enqueue(1)


REFUSED: list[tuple[Case, type[Exception], list[str]]] = [
    (invalid_argument, InvalidArguments, ["charge", "argument 'user_id'"]),
    (unknown_argument, InvalidArguments, ["charge", "'colour'"]),
    (missing_argument, InvalidArguments, ["charge", "'user_id'"]),
    (unknown_task_option, ConfigurationError, ["unknown task option colour", "retry"]),
    (unknown_job_option, TypeError, ["'colour'"]),
    (before_the_start, NotStarted, ["install(app, scheduler)", "async with scheduler", "with scheduler"]),
    (a_lambda, ConfigurationError, ["name="]),
    (a_generator, ConfigurationError, ["numbers", "generator"]),
    (a_name_of_type_checking, ConfigurationError, ["pay", "parameter 'amount'", "TYPE_CHECKING"]),
    (two_schedulers, ConfigurationError, ["charge", "2 running schedulers"]),
]


@pytest.mark.parametrize(("case", "kind", "words"), REFUSED, ids=[case.__name__ for case, _, _ in REFUSED])
async def test_the_error_names_what_is_wrong(
    case: Case, kind: type[Exception], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(kind) as caught:
        await case(scheduler_on(tmp_path))
    assert [word for word in words if word not in str(caught.value)] == []
    assert kind is TypeError or isinstance(caught.value, OnebeatError)


def unannotated(numbers, *, note=None):  # type: ignore[no-untyped-def]  # that is what is tried
    return [numbers, note]


def variadic(first: int, *rest: int, **named: str) -> list[Any]:
    return [first, rest, named]


async def test_functions_without_annotations_and_with_any_number_of_arguments_work(tmp_path: Path) -> None:
    """Without an annotation an argument is plain JSON data; an item of `*args` is checked as the others are."""
    scheduler = scheduler_on(tmp_path)
    plain, many = scheduler.task(unannotated), scheduler.task(variadic)
    async with scheduler:
        assert await (await plain.enqueue([1, "a"], note={"b": 2})).result(10) == [[1, "a"], {"b": 2}]
        assert await (await many.enqueue(1, 2, 3, a="b")).result(10) == [1, [2, 3], {"a": "b"}]
        with pytest.raises(InvalidArguments, match="set, which JSON would not give back"):
            await plain.enqueue({1})
        with pytest.raises(InvalidArguments, match="argument 'rest'"):
            await many.enqueue(1, "x")  # type: ignore[arg-type]  # that is what is refused


async def test_a_scheduler_that_runs_alone_takes_the_jobs_of_a_router_that_two_include(tmp_path: Path) -> None:
    router = TaskRouter()
    task = router.task(charge)
    first, second = scheduler_on(tmp_path), Scheduler(f"sqlite:///{tmp_path / 'other.db'}")
    for one in (first, second):
        one.include(router)
    async with second:
        job = await task.enqueue(1)
        assert (await second.jobs.wait(job.id, 10)).error is None
