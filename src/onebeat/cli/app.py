"""The commands put together, and how their errors are shown."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console

from onebeat.cli import cron, drop, migrate, worker
from onebeat.errors import OnebeatError

FAILED = 1  # the command was understood and could not be done; 2 is click's code for wrong usage


def build() -> typer.Typer:
    """Make the application with every command registered; no I/O."""
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
    """Run the command line; every error onebeat knows becomes one message and exit code 1."""
    try:
        build()()
    except OnebeatError as error:
        Console(stderr=True, soft_wrap=True).print(f"onebeat: {error}", style="red", markup=False, highlight=False)
        sys.exit(FAILED)


def _options(
    show_version: Annotated[bool, typer.Option("--version", help="Say the version and end.")] = False,
) -> None:
    """Scheduled tasks and background jobs on the database the application already has."""
    if show_version:
        typer.echo(f"onebeat {version('onebeat')}")
        raise typer.Exit
