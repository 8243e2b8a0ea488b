"""`onebeat worker`: a process that runs jobs and serves no HTTP."""

from __future__ import annotations

import typer

from onebeat.cli.target import AppOption, DatabaseOption, FactoryOption, load


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("worker")(worker)


def worker(app: AppOption = None, factory: FactoryOption = False, database: DatabaseOption = None) -> None:
    """Run jobs and fire schedules without serving HTTP.

    Enter the app's lifespan, so that its resources are open.
    The first SIGTERM or SIGINT drains; a second one stops at once.
    """
    if app is None:
        raise typer.BadParameter("a worker needs the code of its tasks: --app module:attribute")
    if database is not None:
        raise typer.BadParameter("a worker uses the database of its --app; leave --database out")
    load(app, factory=factory).run()
