"""The database of a scheduler, from its target and settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from onebeat.errors import ConfigurationError
from onebeat.model.protocols import Clock
from onebeat.settings import Settings
from onebeat.store.connection.database import Database
from onebeat.store.tables import Tables

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


class MakeDatabase(Protocol):
    """Makes the database of a scheduler: `new_database`, or what a simulation puts in its place."""

    def __call__(
        self, target: str | AsyncEngine | Callable[[], AsyncEngine], *, tables: Tables, settings: Settings, clock: Clock
    ) -> Database:
        """Return a closed `Database`."""


def new_database(
    target: str | AsyncEngine | Callable[[], AsyncEngine], *, tables: Tables, settings: Settings, clock: Clock
) -> Database:
    """Return a closed `Database`; raises `ConfigurationError` for a target or a schema that cannot be used."""
    database = Database(
        target,
        tables=tables,
        pool_size=settings.pool_size,
        transaction_pool_size=settings.transaction_pool_size,
        sqlite_synchronous=settings.sqlite_synchronous,
        sqlite_allow_network=settings.sqlite_allow_network,
        role=settings.role,
        clock=clock,
    )
    if database.dialect.one_writer and settings.schema_ not in (None, "main"):
        raise ConfigurationError(
            f"schema={settings.schema_!r} cannot be used: {database.where} is SQLite, which has none; "
            "use table_prefix, or a second file"
        )
    return database
