"""The application of all commands, and how their errors are shown."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console

from onebeat.cli import cron, drop, migrate, worker
from onebeat.errors import OnebeatError

FAILED = 1  # exit status of a command that failed; wrong usage has 2, by click


def build() -> typer.Typer:
    """Return the application with every command registered; does no I/O."""
    app = typer.Typer(
        name="onebeat",
        invoke_without_command=True,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    for command in (migrate, worker, cron, drop):
        command.register(app)
    return app


def main() -> None:
    """Run the command line; an `OnebeatError` becomes one message and exit status 1."""
    try:
        build()()
    except OnebeatError as error:
        Console(stderr=True, soft_wrap=True).print(f"onebeat: {error}", style="red", markup=False, highlight=False)
        sys.exit(FAILED)


def _options(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Scheduled tasks and background jobs on the database the application already has."""
    if show_version:
        typer.echo(f"onebeat {version('onebeat')}")
        raise typer.Exit
