"""`onebeat drop`: removes onebeat's tables and nothing else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from onebeat.cli.target import AppOption, DatabaseOption, FactoryOption, opened, scheduler_of

if TYPE_CHECKING:
    from onebeat.scheduler.scheduler import Scheduler


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("drop")(drop)


def drop(
    app: AppOption = None,
    factory: FactoryOption = False,
    database: DatabaseOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Remove onebeat's tables with every job and schedule in them. Keep the application's own tables."""
    asyncio.run(_drop(scheduler_of(app, database, factory=factory), yes))


async def _drop(scheduler: Scheduler, yes: bool) -> None:
    from onebeat.store import migrations

    async with opened(scheduler) as database:
        if not yes:
            names = f"{database.tables.prefix}*"
            typer.confirm(f"Remove the tables {names} in {database.where}, with all jobs and schedules?", abort=True)
        await migrations.drop(database)
        typer.echo(f"onebeat's tables in {database.where} are removed")
