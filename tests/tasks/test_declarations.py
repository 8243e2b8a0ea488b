"""What `@task` accepts: names, methods, a second declaration of the same function, routers included early."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onebeat import ConfigurationError, Cron, DuplicateTask, Every, ScheduleExists, Scheduler, Task, TaskRouter
from tests.scheduler.arrange import scheduler_on


def keep(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator of the application's own."""

    @functools.wraps(function)
    def kept(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return kept


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_function_made_inside_a_function_takes_its_own_name() -> None:
    router = TaskRouter(prefix="billing")

    @router.task
    async def charge() -> None: ...

    assert charge.name == "billing.charge"


@pytest.mark.parametrize("nameless", [lambda: None, functools.partial(print, 1)], ids=["lambda", "partial"])
def test_a_function_without_a_name_needs_one(nameless: Callable[[], None]) -> None:
    with pytest.raises(ConfigurationError, match="name="):
        TaskRouter().task(nameless)


def test_a_process_needs_a_function_that_can_be_imported() -> None:
    def local() -> None: ...

    with pytest.raises(ConfigurationError, match="at the top of a module"):
        TaskRouter().task(local, run_in="process")


# ── methods ───────────────────────────────────────────────────────────────────────────────────────────────────────────
class Service:
    """A class whose methods look like tasks."""

    def run(self, user_id: int) -> None: ...

    async def arun(self, user_id: int) -> None: ...

    @keep
    def kept(self, user_id: int) -> None: ...

    def of_class(cls, user_id: int) -> None: ...

    @staticmethod
    def plain(user_id: int) -> None: ...


@pytest.mark.parametrize("method", [Service.run, Service.arun, Service.kept, Service.of_class])
@pytest.mark.parametrize("declare", ["task", "cron", "every"])
def test_a_method_is_refused_where_it_is_declared(method: Callable[..., Any], declare: str) -> None:
    router = TaskRouter()
    decorate: dict[str, Callable[..., Any]] = {
        "task": router.task,
        "cron": router.cron("* * * * *", args=(1,)),
        "every": router.every(5, args=(1,)),
    }
    with pytest.raises(ConfigurationError) as caught:
        decorate[declare](method)
    words = str(caught.value)
    assert method.__qualname__ in words
    assert "method" in words
    assert "outside the class" in words
    assert len(router.registry) == 0


def test_a_method_of_a_class_inside_a_function_is_refused_in_the_class_body() -> None:
    router = TaskRouter()
    with pytest.raises(ConfigurationError, match="method"):

        class Local:
            @router.task
            def run(self) -> None: ...


def test_bound_static_and_plain_functions_are_no_methods() -> None:
    def takes_self(self: int) -> None: ...

    router = TaskRouter()
    router.task(Service().run)
    router.task(Service.plain)
    router.task(takes_self)
    assert sorted(router.registry.names()) == ["plain", "run", "takes_self"]


# ── a second declaration ──────────────────────────────────────────────────────────────────────────────────────────────
def declare(router: TaskRouter, answer: str) -> Task[[], Any]:
    """What a test-suite that calls `create_app()` for each test does to the module's scheduler."""

    @router.cron("0 3 * * *")
    @router.task
    async def greet() -> str:
        return answer

    router.declare("hourly", greet, Cron("0 * * * *"))
    return greet


async def test_a_task_that_is_declared_again_replaces_the_first(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)
    first, second = declare(scheduler, "first"), declare(scheduler, "second")
    assert list(scheduler.registry) == [second]
    assert {item.task for item in scheduler.declared.values()} == {second}
    async with scheduler:
        for task in (first, second):
            job = await (await task.enqueue()).wait(30)
            assert job.state == "succeeded"
            assert job.value == "second"


def test_a_router_that_is_made_again_replaces_the_first() -> None:
    scheduler = Scheduler()
    for answer in ("first", "second"):
        router = TaskRouter()
        task = declare(router, answer)
        scheduler.include(router)
        scheduler.include(router)
    assert list(scheduler.registry) == [task]
    assert {item.task for item in scheduler.declared.values()} == {task}


def test_other_code_of_a_name_is_refused() -> None:
    router = TaskRouter()

    @router.task(name="greet")
    async def greet() -> str:
        return "one"

    with pytest.raises(DuplicateTask, match="two tasks are named 'greet'"):

        @router.task(name="greet")
        async def greet_() -> str:
            return "two"

    router.task(Service().run)
    with pytest.raises(DuplicateTask, match="two tasks are named 'run'"):
        router.task(Service().run)


def test_a_replaced_task_takes_its_aliases_with_it() -> None:
    router = TaskRouter()

    def again(aliases: tuple[str, ...]) -> None:
        def task() -> None: ...

        router.task(task, aliases=aliases)

    again(("old",))
    again(("older",))
    assert router.registry.names() == ("older", "task")


def test_a_schedule_declared_again_is_the_same_and_another_of_its_id_is_refused() -> None:
    router = TaskRouter()

    @router.task
    def greet() -> None: ...

    router.declare("nightly", greet, Cron("0 3 * * *"))
    router.declare("nightly", greet, Cron("0 3 * * *"))
    with pytest.raises(ScheduleExists, match="nightly"):
        router.declare("nightly", greet, Every(60))
    assert router.declared["nightly"].trigger == Cron("0 3 * * *")


async def test_a_running_scheduler_keeps_its_tasks(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)
    first = declare(scheduler, "first")
    async with scheduler:
        with pytest.raises(DuplicateTask, match="running"):
            declare(scheduler, "second")
        assert list(scheduler.registry) == [first]
    third = declare(scheduler, "third")
    assert list(scheduler.registry) == [third]


# ── routers ───────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_include_takes_in_what_the_router_declares_later(tmp_path: Path) -> None:
    scheduler, router = scheduler_on(tmp_path), TaskRouter(prefix="mail")
    scheduler.include(router)

    @router.every(hours=1)
    async def send() -> str:
        return "sent"

    assert list(scheduler.registry) == [send]
    assert list(scheduler.declared) == ["mail.send"]
    async with scheduler:
        assert (await (await send.enqueue()).wait(30)).value == "sent"
        assert (await scheduler.schedules.get("mail.send")).task == "mail.send"


def test_a_later_declaration_reaches_a_scheduler_that_includes_a_scheduler() -> None:
    """As a client that only enqueues includes the worker's own scheduler, which includes the routers."""
    client, worker, router = Scheduler(), Scheduler(), TaskRouter()
    client.include(worker)
    worker.include(router)

    @router.task
    def late() -> None: ...

    assert list(client.registry) == list(worker.registry) == [late]


def test_a_later_declaration_that_one_scheduler_refuses_changes_none() -> None:
    first, second, router = Scheduler(), Scheduler(), TaskRouter()
    second.task(name="late")(print_nothing)
    first.include(router)
    second.include(router)
    with pytest.raises(DuplicateTask):
        router.task(lambda: None, name="late")
    assert [len(one.registry) for one in (router, first, second)] == [0, 0, 1]


def test_a_router_keeps_no_scheduler_alive() -> None:
    router, scheduler = TaskRouter(), Scheduler()
    scheduler.include(router)
    gone = weakref.ref(scheduler)
    del scheduler
    gc.collect()
    assert gone() is None


def print_nothing() -> None:
    """Do nothing."""
