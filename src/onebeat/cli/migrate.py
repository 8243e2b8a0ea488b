"""`onebeat migrate`: make or update onebeat's tables, or say what that would do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from onebeat.cli.target import AppOption, DatabaseOption, opened, scheduler_of

if TYPE_CHECKING:
    from onebeat.scheduler.scheduler import Scheduler


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("migrate")(migrate)


def migrate(
    app: AppOption = None,
    database: DatabaseOption = None,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit code 1 unless the tables fit.")] = False,
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the statements that make the tables; touch nothing.")
    ] = False,
) -> None:
    """Make or update onebeat's tables. Several processes may do it at once; the tables carry a version of their own."""
    if check and sql:
        raise typer.BadParameter("--check looks and --sql prints; give one of them")
    scheduler = scheduler_of(app, database)
    if sql:
        _print_sql(scheduler)
    elif check:
        asyncio.run(_check(scheduler))
    else:
        asyncio.run(_migrate(scheduler))


def _print_sql(scheduler: Scheduler) -> None:
    from onebeat.store import migrations

    typer.echo(migrations.sql(scheduler.new_database()), nl=False)


async def _check(scheduler: Scheduler) -> None:
    from onebeat.store import migrations

    async with opened(scheduler) as database:
        schema = await migrations.check(database)
        typer.echo(f"the tables in {database.where} are up to date, at revision {schema.version}")


async def _migrate(scheduler: Scheduler) -> None:
    from onebeat.store import migrations

    async with opened(scheduler) as database:
        revisions = await migrations.pending(database)
        done = await migrations.migrate(database)
        if done:
            typer.echo(f"the tables in {database.where} are now at revision {revisions[-1]}")
        else:
            typer.echo(f"the tables in {database.where} were up to date")
