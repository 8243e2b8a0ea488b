"""The target of a command: the scheduler of an app, or a database."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onebeat.errors import ConfigurationError, OnebeatError
from onebeat.scheduler.integration import integration_of

if TYPE_CHECKING:
    from onebeat.scheduler.scheduler import Scheduler
    from onebeat.store.connection.database import Database

AppOption = Annotated[
    str | None,
    typer.Option(
        "--app",
        metavar="MODULE:ATTRIBUTE",
        help="The app, its Scheduler, or a function that makes one, as for uvicorn.",
    ),
]
FactoryOption = Annotated[
    bool,
    typer.Option("--factory", help="--app names a function that makes the app; one without parameters is called."),
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        help="The database. Keep a password in ONEBEAT_DATABASE_URL: other users can read a command line.",
    ),
]


def scheduler_of(app: str | None, database: str | None, *, factory: bool = False) -> Scheduler:
    """Return the scheduler that `--app` or `--database` names; nothing is started.

    Without either, `ONEBEAT_DATABASE_URL` is used. Raises `ConfigurationError` when the app cannot be loaded,
    and a usage error (exit status 2) when both or none are given.
    """
    if app is not None and database is not None:
        raise typer.BadParameter("give --app or --database, not both: the app names its database")
    if app is not None:
        return load(app, factory=factory)
    if factory:
        raise typer.BadParameter("--factory needs --app module:function")
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


def load(reference: str, *, factory: bool = False) -> Scheduler:
    """Return the scheduler at `module:attribute`, which is a `Scheduler` or an app in which one is installed.

    A function without parameters is called for one of them; with `factory` it has to be a function. The current folder
    is importable, as it is for uvicorn. Raises `ConfigurationError` with what was found there.
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
    return _scheduler(_made(found, reference, factory=factory), reference)


def _made(found: object, reference: str, *, factory: bool) -> object:
    """Return what the factory at `reference` makes; what is no factory is returned as it is."""
    if not factory and (not inspect.isroutine(found) or not _takes_nothing(found)):
        return found
    if not callable(found):
        raise ConfigurationError(f"{reference!r} is a {type(found).__name__}, not a function; leave out --factory")
    if not _takes_nothing(found):
        raise ConfigurationError(f"{reference!r} takes parameters; name a function that makes the app without any")
    try:
        made = found()
    except OnebeatError:
        raise
    except Exception as error:
        raise ConfigurationError(f"{reference!r} could not make the app: {_where(error)}") from error
    if inspect.isawaitable(made):
        close = getattr(made, "close", None)
        if close is not None:
            close()
        raise ConfigurationError(f"{reference!r} is async; name a plain function that makes the app")
    return made


def _takes_nothing(function: Any) -> bool:
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):
        return False
    return True


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
        f"{reference!r} is a {type(found).__name__} without a scheduler; name a Scheduler, an app on which "
        "install(app, scheduler) was called, or a function without parameters that returns one of them"
    )


def _where(error: BaseException) -> str:
    """Return the error and the line that raised it, without the rest of the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def _names(module: ModuleType) -> str:
    return ", ".join(name for name in vars(module) if not name.startswith("_")) or "nothing public"
