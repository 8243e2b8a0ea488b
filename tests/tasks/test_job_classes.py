"""Tasks as classes: fields are checked and restored, options are inherited, bases are no tasks, names are reserved."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import httpx
import pytest
from pydantic import Field, field_validator

from fastapi import Depends, FastAPI
from onebeat import (
    ConfigurationError,
    Cron,
    DuplicateTask,
    InvalidArguments,
    Job,
    JobContext,
    NotStarted,
    Retry,
    TaskRouter,
)
from onebeat.tasks.job import UNBOUND
from tests.scheduler.arrange import scheduler_on

T = TypeVar("T")


def get_greeting(job: JobContext) -> str:
    return f"hello from {job.task}"


async def test_a_class_is_a_task_and_an_instance_is_a_call(tmp_path: Path) -> None:
    class SendEmail(Job, queue="mail", retry=Retry(attempts=5)):
        user_id: int
        at: datetime
        tags: set[str] = Field(default_factory=set)

        async def run(self, greeting: Annotated[str, Depends(get_greeting)], *, job: JobContext) -> list[Any]:
            assert isinstance(self.at, datetime)
            return [greeting, self.user_id, self.at.isoformat(), sorted(self.tags), job.attempt]

    scheduler = scheduler_on(tmp_path)
    at = datetime.fromisoformat("2030-01-01T00:00:00+02:00")
    mail = SendEmail(user_id=7, at=at, tags={"b", "a"})
    with pytest.raises(NotStarted):
        await mail.enqueue()
    async with scheduler:
        job = await mail.enqueue()
        value = ["hello from SendEmail", 7, "2030-01-01T00:00:00+02:00", ["a", "b"], 1]
        assert (await job.result(10), job.queue, job.task) == (value, "mail", "SendEmail")
        later = await mail.options(delay=3600, priority=3).options(tags=("x",)).enqueue()
        assert (later.state, later.priority, later.tags) == ("scheduled", 3, ("x",))
        assert (await asyncio.to_thread(mail.enqueue_sync)).task == "SendEmail"
        assert len(await SendEmail.task().enqueue_many([mail.call(), mail.options(delay=5).call(), (mail,)])) == 3


def test_options_are_inherited_and_bases_are_no_tasks() -> None:
    class Mail(Job, queue="mail", timeout=30):
        to: str

    class Abstract(Mail):
        @abstractmethod
        def run(self) -> None: ...

    class Notice(Abstract, Generic[T], priority=2, aliases=("OldNotice",), name="notice"):
        about: T

        def run(self) -> None: ...

    class IntNotice(Notice[int], timeout=timedelta(seconds=5)): ...

    names = {task.name: task for task in UNBOUND.registry}
    assert set(names) == {"IntNotice"}
    settings = names["IntNotice"].settings
    assert (settings.queue, settings.priority, settings.timeout) == ("mail", 2, 5_000_000)
    assert names["IntNotice"].aliases == ()  # names are the class's own
    for base in (Job, Mail, Abstract, Notice):
        with pytest.raises(ConfigurationError, match="no task"):
            base.task()


def test_a_class_belongs_to_its_router_and_schedules_may_name_it(tmp_path: Path) -> None:
    billing = TaskRouter("billing", queue="money")

    class Charge(billing.Job):  # type: ignore[misc,name-defined]  # a form that checkers cannot read
        amount: int

        def run(self) -> None: ...

    class Refund(Job, router=billing, name="pay-back"):
        def run(self) -> None: ...

    billing.declare("nightly", Charge, Cron("0 3 * * *"), kwargs={"amount": 3})
    scheduler = scheduler_on(tmp_path)
    scheduler.include(billing)
    assert scheduler.registry.names() == ("billing.Charge", "billing.pay-back")
    assert scheduler.declared["nightly"].task is Charge.task()
    assert Refund.task().settings.queue == "money"
    assert len(UNBOUND.registry) == 0


async def test_a_schedule_at_run_time_may_name_a_class(tmp_path: Path) -> None:
    class Report(Job):
        day: str = "today"

        def run(self) -> str:
            return self.day

    async with scheduler_on(tmp_path) as scheduler:
        await scheduler.schedules.add("a", Report, Cron("0 3 * * *"), kwargs={"day": "monday"})
        fire = await scheduler.schedules.fire_now("a")
        assert fire.job_id is not None
        assert (await scheduler.jobs.wait(fire.job_id, 10)).value == "monday"
        with pytest.raises(InvalidArguments, match=r"Report: \['day'\]"):
            await scheduler.schedules.add("b", Report, Cron("0 3 * * *"), kwargs={"day": 3})


def test_every_scheduler_includes_a_class_of_no_router(tmp_path: Path) -> None:
    before = scheduler_on(tmp_path)

    class Everywhere(Job):
        def run(self) -> None: ...

    after = scheduler_on(tmp_path)
    assert Everywhere.task() in before.registry
    assert Everywhere.task() in after.registry


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────────
def reserved_field() -> None:
    class Bad(Job):
        options: dict[str, int]  # type: ignore[assignment]  # that is what is refused


def reserved_method() -> None:
    class Bad(Job):
        async def enqueue(self) -> Any: ...


def unknown_option() -> None:
    class Bad(Job, colour="red"):
        def run(self) -> None: ...


def generator() -> None:
    class Bad(Job):
        def run(self) -> Iterator[int]:
            yield 1


def static() -> None:
    class Bad(Job):
        @staticmethod
        def run() -> None: ...


def parameter() -> None:
    class Bad(Job):
        def run(self, user_id: int) -> None: ...


def unstorable() -> None:
    class Bad(Job):
        call_back: Callable[[], None]

        def run(self) -> None: ...


def twice() -> None:
    class Bad(Job, aliases=("Good",)):
        def run(self) -> None: ...

    class Good(Job):
        def run(self) -> None: ...


REFUSED = [
    (reserved_field, "'options' is a method of every Job"),
    (reserved_method, "'enqueue' is a method of every Job"),
    (unknown_option, "unknown task option colour"),
    (generator, "generator function"),
    (static, "run is a staticmethod"),
    (parameter, "takes the parameter 'user_id'"),
    (unstorable, "call_back: JSON cannot store"),
]


@pytest.mark.parametrize(("define", "words"), REFUSED, ids=lambda one: getattr(one, "__name__", ""))
def test_a_class_that_cannot_be_a_task_is_refused_at_its_definition(define: Callable[[], None], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        define()
    assert len(UNBOUND.registry) == 0


def test_two_classes_of_one_name_are_refused_and_the_same_one_may_be_defined_again() -> None:
    with pytest.raises(DuplicateTask, match="Good"):
        twice()

    def create_app() -> type[Job]:
        class Local(Job):
            def run(self) -> None: ...

        return Local

    assert create_app().task() in UNBOUND.registry
    assert create_app().task() in UNBOUND.registry


def test_fields_that_would_not_arrive_as_they_are_are_refused() -> None:
    class Order(Job):
        amount: int
        code: str = ""

        @field_validator("code")
        @classmethod
        def longer(cls, code: str) -> str:
            return code + "!"

        def run(self) -> None: ...

    with pytest.raises(InvalidArguments, match=r"Order: \['amount'\] Field required"):
        Order()  # type: ignore[call-arg]  # that is what is refused
    with pytest.raises(InvalidArguments, match=r"\['colour'\] Extra inputs are not permitted"):
        Order(amount=1, colour="red")  # type: ignore[call-arg]  # that is what is refused
    with pytest.raises(InvalidArguments, match=r"'Order'.code would not arrive as it was given"):
        Order(amount=1, code="x").call()


OF_THIS_MODULE = TaskRouter()


class Resize(Job, router=OF_THIS_MODULE):
    width: int

    def run(self) -> int:
        return self.width


async def test_a_job_class_is_a_body_of_a_route() -> None:
    app = FastAPI()

    @app.post("/resize")
    async def ask(job: Resize) -> int:
        return job.width

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.post("/resize", json={"width": 3})).json() == 3
        assert (await client.post("/resize", json={"width": "x"})).status_code == 422


def test_the_fingerprint_follows_the_fields() -> None:
    def made(kind: Any) -> str:
        class Local(Job, router=TaskRouter()):
            field: kind

            def run(self) -> None: ...

        return Local.task().signature.fingerprint

    assert made(int) == made(int) != made(str)


class InAProcess(Job, router=OF_THIS_MODULE, run_in="process"):
    number: int

    def run(self) -> int:
        return self.number + 1


async def test_a_class_may_run_in_a_process(tmp_path: Path) -> None:
    scheduler = scheduler_on(tmp_path)
    scheduler.include(OF_THIS_MODULE)
    async with scheduler:
        assert await (await InAProcess(number=1).enqueue()).result(30) == 2
