"""`onebeat migrate`: creates or updates onebeat's tables, or shows what it would do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from onebeat.cli.target import AppOption, DatabaseOption, FactoryOption, opened, scheduler_of
from onebeat.scheduler.integration import integration_of

if TYPE_CHECKING:
    from onebeat.scheduler.scheduler import Scheduler


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("migrate")(migrate)


def migrate(
    app: AppOption = None,
    factory: FactoryOption = False,
    database: DatabaseOption = None,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit with 1 unless up to date.")] = False,
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the statements that create the tables; change nothing.")
    ] = False,
) -> None:
    """Create or update onebeat's tables. Several processes may run this at once."""
    if check and sql:
        raise typer.BadParameter("--check and --sql exclude each other; give one of them")
    scheduler = scheduler_of(app, database, factory=factory)
    if sql:
        _print_sql(scheduler)
    elif check:
        asyncio.run(_check(scheduler))
    else:
        asyncio.run(_migrate(scheduler))


def _print_sql(scheduler: Scheduler) -> None:
    from onebeat.store import migrations

    typer.echo(migrations.sql(integration_of(scheduler).new_database()), nl=False)


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
