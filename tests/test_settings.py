"""Where settings come from, which word counts, and what is refused; a secret is never shown."""

from __future__ import annotations

import logging
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from onebeat import ConfigurationError, NotStarted, Retention, Scheduler, Settings, TaskRouter
from onebeat.scheduler.integration import integration_of
from onebeat.store.connection.targets import describe_target, read_target
from tests.support.databases import ADDRESSES, find_servers

SECRET = "very-secret"
NAMES: dict[str, tuple[str, Any]] = {
    "APP": ("shop", "shop"),
    "SLOTS": ("7", 7),
    "QUEUES": ("mail, reports", ("mail", "reports")),
    "TIMEZONE": ("Europe/Berlin", "Europe/Berlin"),
    "LEASE": ("30", 30),
    "HEARTBEAT": ("3", 3),
    "DRAIN": ("4", 4),
    "DEFAULT_TIMEOUT": ("5", 5),
    "POLL": ("0.5", 0.5),
    "START_TIMEOUT": ("6", 6),
    "TABLE_PREFIX": ("p_", "p_"),
    "SCHEMA": ("jobs", "jobs"),
    "MIGRATE": ("false", False),
    "ROLE": ("client", "client"),
    "POOL_SIZE": ("2", 2),
    "TRANSACTION_POOL_SIZE": ("7", 7),
    "SQLITE_SYNCHRONOUS": ("NORMAL", "NORMAL"),
    "SQLITE_ALLOW_NETWORK": ("1", True),
    "HINTS": ("0", False),
    "DATABASE_URL": ("sqlite:///env.db", "sqlite:///env.db"),
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_setting_has_its_name_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (text, _) in NAMES.items():
        monkeypatch.setenv(f"ONEBEAT_{name}", text)
    monkeypatch.setenv("ONEBEAT_RETENTION_SUCCEEDED", "none")
    monkeypatch.setenv("ONEBEAT_RETENTION_FAILED", "60")
    settings = Scheduler().settings
    fields = {"SCHEMA": "schema_"}
    found = {name: getattr(settings, fields.get(name, name.lower())) for name in NAMES}
    assert found == {name: value for name, (_, value) in NAMES.items()}
    assert (settings.retention.succeeded, settings.retention.failed) == (None, 60)
    assert {fields.get(name, name.lower()) for name in NAMES} | {"retention"} == set(Settings.model_fields)


def test_a_name_without_the_prefix_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (text, _) in NAMES.items():
        monkeypatch.setenv(name, text)
    defaults = {name: field.get_default(call_default_factory=True) for name, field in Settings.model_fields.items()}
    assert Settings().model_dump() == Settings.model_construct(**defaults).model_dump()


def test_keyword_before_settings_before_environment_before_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Scheduler().settings.slots == 100
    monkeypatch.setenv("ONEBEAT_SLOTS", "1")
    monkeypatch.setenv("ONEBEAT_POLL", "0.5")
    assert Scheduler().settings.slots == 1
    given = Settings(slots=2, schema="jobs")
    assert Scheduler(settings=given).settings.slots == 2
    settings = Scheduler(settings=given, slots=3).settings
    assert (settings.slots, settings.schema_, settings.poll) == (3, "jobs", 0.5)


def test_the_database_is_the_argument_or_the_settings_or_the_environments_or_a_file_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def where(*args: Any, **kwargs: Any) -> str:
        return integration_of(Scheduler(*args, **kwargs)).new_database().where

    here = f"sqlite+pysqlite:///{tmp_path}"
    assert where() == f"{here}/onebeat.db"
    monkeypatch.setenv("ONEBEAT_DATABASE_URL", "sqlite:///env.db")
    assert where() == f"{here}/env.db"
    assert where(settings=Settings(database_url="sqlite:///set.db")) == f"{here}/set.db"
    assert where("sqlite:///arg.db", settings=Settings(database_url="sqlite:///set.db")) == f"{here}/arg.db"
    assert list(tmp_path.iterdir()) == [], "nothing is opened for it"


def test_queues_are_names_or_a_mapping_in_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEBEAT_QUEUES", '{"mail": 10}')
    assert Settings().queues == {"mail": 10}
    monkeypatch.setenv("ONEBEAT_QUEUES", '["mail"]')
    assert Settings().queues == ("mail",)
    assert Settings(queues=("a", "b")).queues == ("a", "b")


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"slots": 0}, "slots"),
        ({"role": "worker"}, "role"),
        ({"colour": "red"}, "colour"),
        ({"poll": 0}, "poll"),
        ({"default_timeout": float("inf")}, "default_timeout"),
        ({"timezone": "Mars/Olympus"}, "timezone"),
        ({"lease": 10}, "heartbeat"),
        ({"queues": {"mail": 0}}, "queues"),
        ({"retention": {"succeeded": -1}}, "succeeded"),
        ({"retention": 7}, "retention"),
        ({"table_prefix": "Bad-"}, "table_prefix"),
        ({"schema": "a b"}, "schema"),
        ({"settings": 5}, "Settings"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_work_is_named(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        Scheduler("sqlite:///never-opened.db", **wrong)


def test_settings_refuse_by_themselves_without_showing_what_they_were_told() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings(database_url=f"postgresql://shop:{SECRET}@db/shop", lease=10)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in repr(Settings(database_url=f"postgresql://shop:{SECRET}@db/shop"))


def test_retention_is_seconds_or_timedeltas_and_none_keeps_all() -> None:
    assert Settings(retention=Retention(succeeded=timedelta(days=2))).retention.succeeded == 2 * 86_400
    assert Retention().failed == 30 * 86_400
    kept = Scheduler("sqlite:///x.db", retention=None).settings.retention
    assert (kept.succeeded, kept.failed, kept.fires, kept.workers) == (None, None, None, None)


# ── the database ──────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://shop:{SECRET}@db/shop",
        f"postgresql://db/shop?user=shop&password={SECRET}",
        f"postgresql://shop@db/shop?sslpassword={SECRET}",
        f"mysql://shop@db/shop?password={SECRET}",
        f"mysql://shop@db/shop?passwd={SECRET}&ssl_key=/x",
        f"sqlite:///app.db?key={SECRET}",
        f"oracle://shop:{SECRET}@db/shop",
        f"postgresql://shop:{SECRET}@db:port/shop",
    ],
)
def test_a_secret_in_a_url_is_shown_nowhere(url: str) -> None:
    scheduler = Scheduler(url)
    shown = [repr(scheduler), describe_target(url)]
    try:
        database = integration_of(scheduler).new_database()
        shown += [repr(database), database.where, repr(database.url)]
    except ConfigurationError as error:
        shown.append("".join(traceback.format_exception(error)))
    assert SECRET not in "".join(shown)


@pytest.mark.parametrize("database", [5, b"sqlite://", object()], ids=["number", "bytes", "object"])
def test_what_is_no_database_is_refused_with_what_would_be(database: Any) -> None:
    with pytest.raises(ConfigurationError, match="give a URL, an AsyncEngine, or a function"):
        integration_of(Scheduler(database)).new_database()


def test_a_scheduler_says_what_it_is() -> None:
    scheduler = Scheduler(f"postgresql://shop:{SECRET}@db/shop", app="shop")
    assert repr(scheduler) == "<Scheduler 'shop' on postgresql://shop:***@db/shop, 0 tasks>"


def test_a_scheduler_has_no_other_public_names_than_documented() -> None:
    definitions = {"task", "Job", "cron", "every", "declare", "include", "on"}
    life = {"start", "stop", "lifespan", "run", "health"}
    collections = {"settings", "jobs", "schedules", "queues", "workers", "locks", "lock", "locked"}
    of_a_router = {"prefix", "registry", "declared"}
    found = {name for name in dir(Scheduler("sqlite:///x.db")) if not name.startswith("_")}
    assert found == definitions | life | collections | of_a_router


def test_include_takes_routers_alone() -> None:
    with pytest.raises(ConfigurationError, match="TaskRouter"):
        Scheduler("sqlite:///x.db").include(5)  # type: ignore[arg-type]  # what is refused
    Scheduler("sqlite:///x.db").include(TaskRouter())


async def test_the_start_says_the_whole_path_and_what_to_know_of_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "onebeat")
    monkeypatch.setattr("onebeat.store.connection.sqlite_file.SAFE", (99,))
    async with Scheduler("sqlite:///app.db"):
        pass
    assert f"{tmp_path}/app.db, 100 slots" in caplog.text
    assert "a very rare race that can damage a WAL file" in caplog.text


@pytest.mark.skipif("postgresql" not in find_servers(), reason="PostgreSQL cannot be reached")
async def test_a_function_that_makes_engines_is_called_for_each_connection() -> None:
    made: list[AsyncEngine] = []
    url = make_url(ADDRESSES["postgresql"]).set(drivername="postgresql+asyncpg")

    def with_a_fresh_token() -> AsyncEngine:
        made.append(create_async_engine(url))
        return made[-1]

    engine = read_target(with_a_fresh_token).engine({})
    before = len(made)
    for number in (1, 2):
        async with engine.connect():
            assert len(made) == before + number, "a token may be too old for the second connection"
    await engine.dispose()


# ── with scheduler: ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_script_that_enters_twice_is_told_and_the_first_goes_on() -> None:
    scheduler = Scheduler("sqlite:///app.db")

    @scheduler.task(name="greet")
    def greet() -> None: ...

    with scheduler:
        with pytest.raises(ConfigurationError, match="running already"), scheduler:
            pytest.fail("entered twice")
        assert greet.enqueue_sync().state == "queued"
        roles = [scheduler.settings.role]
    roles.append(scheduler.settings.role)
    assert roles == ["client", "all"], "a script neither fires nor claims"
    with pytest.raises(NotStarted):
        greet.enqueue_sync()
    with scheduler:
        assert greet.enqueue_sync().state == "queued"


@pytest.mark.parametrize("queues", [(), [], ",", {}])
def test_a_worker_of_no_queue_is_refused(queues: Any) -> None:
    with pytest.raises(ConfigurationError, match="None serves all"):
        Scheduler("sqlite://", queues=queues)


def test_an_empty_variable_of_queues_means_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEBEAT_QUEUES", "")
    assert Settings().queues is None


@pytest.mark.parametrize("kept", [1e15, timedelta.max])
def test_a_retention_beyond_a_century_is_refused(kept: Any) -> None:
    with pytest.raises(ConfigurationError, match="succeeded"):
        Retention(succeeded=kept)
