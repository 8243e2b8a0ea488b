"""The target of a command: the scheduler of an app, or a database."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from onebeat.errors import ConfigurationError
from onebeat.scheduler.integration import integration_of

if TYPE_CHECKING:
    from onebeat.scheduler.scheduler import Scheduler
    from onebeat.store.connection.database import Database

AppOption = Annotated[
    str | None,
    typer.Option("--app", metavar="MODULE:ATTRIBUTE", help="The app or its Scheduler, written as for uvicorn."),
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        help="The database. Keep a password in ONEBEAT_DATABASE_URL: other users can read a command line.",
    ),
]


def scheduler_of(app: str | None, database: str | None) -> Scheduler:
    """Return the scheduler that `--app` or `--database` names; nothing is started.

    Without either, `ONEBEAT_DATABASE_URL` is used. Raises `ConfigurationError` when the app cannot be loaded,
    and a usage error (exit status 2) when both or none are given.
    """
    if app is not None and database is not None:
        raise typer.BadParameter("give --app or --database, not both: the app names its database")
    if app is not None:
        return load(app)
    if database is None and not os.environ.get("ONEBEAT_DATABASE_URL"):
        raise typer.BadParameter("no target: give --app module:attribute, --database URL or ONEBEAT_DATABASE_URL")
    from onebeat.scheduler.scheduler import Scheduler

    return Scheduler(database)


@asynccontextmanager
async def opened(scheduler: Scheduler) -> AsyncIterator[Database]:
    """Open the scheduler's database without running an engine; raises `DatabaseUnavailable` after `start_timeout`."""
    database = integration_of(scheduler).new_database()
    await database.open(scheduler.settings.start_timeout)
    try:
        yield database
    finally:
        await database.close()


def load(reference: str) -> Scheduler:
    """Return the scheduler at `module:attribute`, which is a `Scheduler` or an app in which one is installed.

    The current folder is importable, as it is for uvicorn. Raises `ConfigurationError` with what was found there.
    """
    name, _, attribute = reference.partition(":")
    if not name or not attribute:
        raise typer.BadParameter(f"--app {reference!r} is not module:attribute, for example app.main:app")
    module = _module(name)
    found: object = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
        if found is None:
            raise ConfigurationError(f"module {name!r} has no attribute {attribute!r}; it has {_names(module)}")
    return _scheduler(found, reference)


def _module(name: str) -> ModuleType:
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigurationError(
                f"no module {name!r} is found from {os.getcwd()}; run the command in the folder you start uvicorn in"
            ) from error
        raise ConfigurationError(f"{name!r} could not be imported: {_where(error)}") from error
    except Exception as error:
        raise ConfigurationError(f"{name!r} could not be imported: {_where(error)}") from error


def _scheduler(found: object, reference: str) -> Scheduler:
    from onebeat.scheduler.scheduler import Scheduler

    if isinstance(found, Scheduler):
        return found
    installed = getattr(getattr(found, "state", None), "onebeat", None)
    if isinstance(installed, Scheduler):
        return installed
    raise ConfigurationError(
        f"{reference!r} is a {type(found).__name__} without a scheduler; "
        "name a Scheduler, or an app on which install(app, scheduler) was called"
    )


def _where(error: BaseException) -> str:
    """Return the error and the line that raised it, without the rest of the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def _names(module: ModuleType) -> str:
    return ", ".join(name for name in vars(module) if not name.startswith("_")) or "nothing public"
