"""The tables' revisions: made, checked and removed by the library itself, under a version table of their own."""

from __future__ import annotations

import io
import logging
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Column, MetaData, String, Table, and_, inspect, select, true
from sqlalchemy.engine import Dialect as Speech
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateSchema

from onebeat.errors import ConfigurationError, SchemaOutOfDate
from onebeat.store.connection.database import Database
from onebeat.store.explain import database_message
from onebeat.store.tables import SCHEMA_MAJOR, SCHEMA_VERSION, Tables
from onebeat.store.tx import Tx

PATIENCE = 60.0  # seconds to wait for another process that migrates the same tables
_SCRIPTS = Path(__file__).parent  # Alembic's script directory: it holds `versions/`
_KEYS = ("instance_id", "schema_major", "app")
_ours: ContextVar[bool] = ContextVar("onebeat_migrates", default=False)  # in this thread or task, at this moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """What a database says about onebeat's tables in it."""

    version: str | None  # None: no tables yet
    major: int = SCHEMA_MAJOR
    app: str | None = None
    instance_id: str | None = None  # random, made with the tables: two sessions that read the same are on one database

    @property
    def pending(self) -> bool:
        """Whether revisions are to be run. A newer version of the same major number is served as it is."""
        return self.version is None or int(self.version) < int(SCHEMA_VERSION)


async def prepare(database: Database, *, migrate: bool = True, app: str | None = None) -> Schema:
    """Make sure that the tables fit this code and this app: one SELECT when they do.

    Raises `SchemaOutOfDate` for a newer major number, and with `migrate=False` for missing or old tables;
    `ConfigurationError` when another app owns the tables. An app without a name is at home everywhere.
    """
    schema = await state(database)
    if schema.pending and not migrate:
        _refuse_old(schema, database)
    if schema.pending or (app is not None and schema.app is None):
        schema = await _upgrade(database, app)
    _refuse_newer(schema, database)
    if app is not None and schema.app != app:
        raise ConfigurationError(
            f"the tables {database.tables.prefix}* in {database.where} belong to the app {schema.app!r}, and this one "
            f"is {app!r}; give this one another table_prefix, or leave `app` out on both if they are one fleet"
        )
    database.instance_id = schema.instance_id
    return schema


async def migrate(database: Database) -> bool:
    """Bring the tables up to date, whoever else does the same at this moment; False: there was nothing to do.

    Raises `SchemaOutOfDate` for a newer major number and `DatabaseUnavailable` where the user may not create tables.
    """
    before = await state(database)
    _refuse_newer(before, database)
    if before.pending:
        await _upgrade(database, None)
    return before.pending


async def check(database: Database) -> Schema:
    """What is there; raises `SchemaOutOfDate` unless this code can serve it."""
    schema = await state(database)
    if schema.pending:
        _refuse_old(schema, database)
    _refuse_newer(schema, database)
    return schema


async def pending(database: Database) -> list[str]:
    """The revisions still to be run, oldest first."""
    schema = await state(database)
    return [revision for revision in _revisions() if schema.version is None or int(revision) > int(schema.version)]


async def state(database: Database) -> Schema:
    """Read version, app and identity in one SELECT, without loading Alembic."""
    try:
        return await database.read(_state)
    except SchemaOutOfDate:
        return Schema(version=None)


def sql(database: Database, *, start: str | None = None) -> str:
    """The statements that bring tables from revision `start` (None: nothing) up to date, for someone else to run."""
    buffer = io.StringIO()
    _run_alembic(database.tables, speech=database.url.get_dialect()(), start=start, buffer=buffer)
    return buffer.getvalue()


async def drop(database: Database) -> None:
    """Remove onebeat's tables with everything in them; harmless where there are none."""

    def remove(tx: Tx) -> None:
        tx.tables.metadata.drop_all(tx.connection)
        _version_table(tx.tables).drop(tx.connection, checkfirst=True)

    await database.exclusive(remove, patience=PATIENCE)


# ── one SELECT ────────────────────────────────────────────────────────────────────────────────────────────────────────
def _version_table(tables: Tables) -> Table:
    return Table(
        tables.version_table, MetaData(schema=tables.schema), Column("version_num", String(32), primary_key=True)
    )


def _state(tx: Tx) -> Schema:
    version, meta = _version_table(tx.tables), tx.tables.meta
    joined = version.outerjoin(meta, and_(true(), meta.c.key.in_(_KEYS)))
    rows = tx.execute(select(version.c.version_num, meta.c.key, meta.c.value).select_from(joined)).all()
    return _schema(rows[0][0] if rows else None, {str(row.key): str(row.value) for row in rows})


def _schema(version: str | None, meta: Mapping[str, str]) -> Schema:
    return Schema(
        version=version,
        major=int(meta.get("schema_major", SCHEMA_MAJOR)),
        app=meta.get("app"),
        instance_id=meta.get("instance_id"),
    )


def _refuse_old(schema: Schema, database: Database) -> None:
    found = "are missing" if schema.version is None else f"have revision {schema.version}"
    raise SchemaOutOfDate(
        f"onebeat's tables {found} in {database.where} and this code needs {SCHEMA_VERSION}; "
        "run `onebeat migrate`, or start with migrate=True"
    )


def _refuse_newer(schema: Schema, database: Database) -> None:
    if schema.major > SCHEMA_MAJOR:
        raise SchemaOutOfDate(
            f"onebeat's tables in {database.where} have the major number {schema.major} and this code knows "
            f"{SCHEMA_MAJOR}; run the newer onebeat that made them, or give this one another table_prefix"
        )


# ── with Alembic ──────────────────────────────────────────────────────────────────────────────────────────────────────
async def _upgrade(database: Database, app: str | None) -> Schema:
    def upgrade(tx: Tx) -> Schema:
        lock = f"{database.url.host}/{database.url.database}/{tx.tables.schema}/{tx.tables.prefix}"
        if not tx.dialect.migration_lock(tx.connection, lock, PATIENCE):
            raise SchemaOutOfDate(
                f"another process has been migrating {database.where} for {PATIENCE:.0f} s; wait for it"
            )
        try:
            return _upgrade_locked(tx, app)
        finally:
            tx.dialect.migration_unlock(tx.connection, lock)

    try:
        return await database.exclusive(upgrade, patience=PATIENCE)
    except DBAPIError as error:  # what waiting, rights and room do not explain
        raise ConfigurationError(
            f"onebeat's tables could not be made in {database.where} ({database_message(error)}); if tables of "
            f"other origin have names that begin with {database.tables.prefix!r}, give onebeat another table_prefix"
        ) from error


def _upgrade_locked(tx: Tx, app: str | None) -> Schema:
    """The losers of the race find here that there is nothing left to do."""
    tables = tx.tables
    if tables.schema is not None and not inspect(tx.connection).has_schema(tables.schema):
        tx.execute(CreateSchema(tables.schema))
    there = inspect(tx.connection).has_table(tables.version_table, schema=tables.schema)
    before = _state(tx) if there and inspect(tx.connection).has_table(tables.meta.name, schema=tables.schema) else None
    if before is not None and before.major > SCHEMA_MAJOR:
        return before
    if before is None or before.pending:
        _version_table(tables).create(tx.connection, checkfirst=True)
        _run_alembic(tables, connection=tx.connection)
        tx.point("migrated")
        for key, value in _identity().items():
            _note(tx, key, value)
    if app is not None:
        _note(tx, "app", app)
    return _state(tx)


def _note(tx: Tx, key: str, value: str) -> None:
    tx.execute(tx.dialect.insert_ignore(tx.tables.meta).values(key=key, value=value))


def _identity() -> dict[str, str]:
    return {"instance_id": uuid.uuid4().hex, "schema_major": str(SCHEMA_MAJOR)}


def _revisions() -> list[str]:
    return sorted(path.name.partition("_")[0] for path in (_SCRIPTS / "versions").glob("[0-9]*.py"))


def _run_alembic(
    tables: Tables,
    *,
    connection: Any = None,
    speech: Speech | None = None,
    start: str | None = None,
    buffer: io.StringIO | None = None,
) -> None:
    """Run what is missing, without the proxies that Alembic shares between all threads of a process."""
    with _without_alembics_words():
        _run_revisions(tables, connection, speech, start, buffer)


@contextmanager
def _without_alembics_words() -> Iterator[None]:
    """Keep Alembic's notes about our revisions out of the application's log; its warnings, and its own runs, stay."""
    ours = _ours.set(True)

    def passes(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or not _ours.get()

    loggers = [logging.getLogger(name) for name in ("alembic.runtime.migration", "alembic.runtime.plugins")]
    for logger in loggers:
        logger.addFilter(passes)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(passes)
        _ours.reset(ours)


def _run_revisions(
    tables: Tables, connection: Any, speech: Speech | None, start: str | None, buffer: io.StringIO | None
) -> None:
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    script = ScriptDirectory(str(_SCRIPTS))

    def steps(at: Any, _: MigrationContext) -> list[Any]:
        """Return what a database at revision `at` needs: a new one the tables of today, an old one each change."""
        if at:
            return list(script._upgrade_revs("head", at))
        first = str(script.get_base())
        return [*script._upgrade_revs(first, at), *script._stamp_revs("head", (first,))]

    context = MigrationContext.configure(
        connection=connection,
        dialect=speech,
        opts={
            "fn": steps,
            "version_table": tables.version_table,
            "version_table_schema": tables.schema,
            "as_sql": buffer is not None,
            "output_buffer": buffer,
            "literal_binds": buffer is not None,
            "starting_rev": start,
        },
    )
    operations = Operations(context)
    with context.begin_transaction():
        if buffer is not None and start is None and tables.schema is not None:
            operations.execute(CreateSchema(tables.schema, if_not_exists=True))
        context.run_migrations(operations=operations, tables=tables)
        if buffer is not None and start is None:
            for key, value in _identity().items():
                operations.execute(tables.meta.insert().values(key=key, value=value))
