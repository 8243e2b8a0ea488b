"""Every change of the tables is a revision, and every older database becomes what a new one is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, inspect, text

from onebeat.store import migrations
from onebeat.store.connection.database import Database
from onebeat.store.tables import SCHEMA_VERSION, Tables, build
from onebeat.store.tables.columns import indexes
from onebeat.store.tx import Tx
from tests.conftest import MakeDatabase
from tests.store import frozen

NEWEST, NEXT = SCHEMA_VERSION, f"{int(SCHEMA_VERSION) + 1:04d}"
SYNTHETIC = f"""
from sqlalchemy import Column, Integer, inspect

revision = "{NEXT}"
down_revision = "{NEWEST}"


def upgrade(operations, tables):
    columns = inspect(operations.get_bind()).get_columns(tables.queues.name, schema=tables.schema)
    if "weight" not in [column["name"] for column in columns]:
        operations.add_column(tables.queues.name, Column("weight", Integer), schema=tables.schema)
    operations.execute(tables.queues.update().values(weight=7))
"""


def created_by(version: str, kind: str, tables: Tables) -> Any:
    """Create what onebeat of that revision left behind: its tables, an identity, and a queue that somebody paused."""

    def create(tx: Tx) -> None:
        for statement in frozen.read(version, kind):
            tx.connection.exec_driver_sql(statement)
        versions = migrations._version_table(tables)
        versions.create(tx.connection)
        tx.execute(versions.insert().values(version_num=version))
        for key, value in migrations._identity().items():
            tx.execute(tables.meta.insert().values(key=key, value=value))
        tx.execute(text("INSERT INTO onebeat_queues (name, paused) VALUES ('mail', true)"))

    return create


def columns(tx: Tx) -> set[str]:
    return {str(column["name"]) for column in inspect(tx.connection).get_columns("onebeat_queues")}


def queues(tx: Tx, *names: str) -> list[tuple[Any, ...]]:
    rows = tx.execute(text(f"SELECT {', '.join(names)} FROM onebeat_queues"))
    return [tuple(row) for row in rows]


def differences(tx: Tx) -> list[Any]:
    """What Alembic finds different between the database and the description of the tables."""
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    def exists_here(item: Any, _name: str | None, kind: str, reflected: bool, _other: Any) -> bool:
        return reflected or kind != "index" or item in indexes(item.table, tx.connection.dialect)

    tx.dialect.migration_lock(tx.connection, "fresh view of the schema", 5)
    options = {
        "version_table": tx.tables.version_table,
        "compare_type": False,
        "include_object": exists_here,
    }
    return list(compare_metadata(MigrationContext.configure(tx.connection, opts=options), tx.tables.metadata))


@pytest.mark.parametrize("kind", list(frozen.DIALECTS))
def test_the_tables_are_those_of_the_newest_revision(kind: str) -> None:
    newest = frozen.versions()[-1]
    assert newest == SCHEMA_VERSION == migrations._revisions()[-1], (
        "SCHEMA_VERSION, the newest file of migrations/versions and the newest file of tests/store/schema must agree"
    )
    kept, described = frozen.read(newest, kind), frozen.statements(build(), kind)
    changed = [line for line in described if line not in kept] + [line for line in kept if line not in described]
    assert not changed, (
        f"the tables differ from those of revision {newest}: add revision {int(newest) + 1:04d} to "
        f"src/onebeat/store/migrations/versions, raise SCHEMA_VERSION, then run `python -m tests.store.frozen`.\n"
        + "\n".join(changed)
    )


def test_a_change_of_the_tables_is_noticed_on_every_database() -> None:
    tables = build()
    tables.queues.append_column(Column("weight", Integer))
    for kind in frozen.DIALECTS:
        changed = set(frozen.statements(tables, kind)) - set(frozen.read(SCHEMA_VERSION, kind))
        assert [statement.split(" (")[0] for statement in changed] == ["CREATE TABLE onebeat_queues"]


@pytest.mark.parametrize("version", frozen.versions())
async def test_a_database_of_each_revision_becomes_what_a_new_one_is(
    version: str, database_kind: str, fresh_database_url: str, make_database: MakeDatabase
) -> None:
    database = await make_database(fresh_database_url)
    await database.exclusive(created_by(version, database_kind, database.tables), patience=5)
    before = await migrations.state(database)
    assert await migrations.migrate(database) is (version != SCHEMA_VERSION)
    after = await migrations.check(database)
    assert (after.version, after.instance_id) == (SCHEMA_VERSION, before.instance_id)
    assert await database.read(differences) == []
    assert [(name, bool(paused)) for name, paused in await database.read(queues, "name", "paused")] == [("mail", True)]


@pytest.fixture
def next_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tables:
    """The tables of a next revision that adds a column, as if this code knew it."""
    scripts = tmp_path / "scripts"
    shutil.copytree(migrations._SCRIPTS / "versions", scripts / "versions", ignore=shutil.ignore_patterns("__*"))
    (scripts / "versions" / f"{NEXT}_weight.py").write_text(SYNTHETIC, "utf-8")
    monkeypatch.setattr(migrations, "_SCRIPTS", scripts)
    monkeypatch.setattr(migrations, "SCHEMA_VERSION", NEXT)
    tables = build()
    tables.queues.append_column(Column("weight", Integer))
    return tables


async def old_database(kind: str, url: str, make_database: MakeDatabase, tables: Tables) -> Database:
    """A database of the newest revision as the code of the next one opens it."""
    database = await make_database(url, tables=tables)
    await database.exclusive(created_by(NEWEST, kind, build()), patience=5)
    return database


async def test_an_old_database_runs_the_revisions_it_lacks(
    next_revision: Tables, database_kind: str, fresh_database_url: str, make_database: MakeDatabase
) -> None:
    database = await old_database(database_kind, fresh_database_url, make_database, next_revision)
    assert await migrations.pending(database) == [NEXT]
    assert (await migrations.prepare(database)).version == NEXT
    assert await database.read(differences) == []
    assert await database.read(queues, "name", "weight") == [("mail", 7)]
    assert await migrations.migrate(database) is False


async def test_a_revision_that_was_interrupted_runs_again(
    next_revision: Tables, database_kind: str, fresh_database_url: str, make_database: MakeDatabase
) -> None:
    database = await old_database(database_kind, fresh_database_url, make_database, next_revision)
    await migrations.migrate(database)
    back = text(
        f"UPDATE onebeat_schema_version SET version_num = '{NEWEST}'"
    )  # as if it had ended before the mark was set
    await database.write(lambda tx: tx.execute(back) and None)
    assert await migrations.migrate(database) is True
    assert await database.read(queues, "name", "weight") == [("mail", 7)]


async def test_a_new_database_is_created_as_the_newest_revision_at_once(
    next_revision: Tables, fresh_database_url: str, make_database: MakeDatabase
) -> None:
    database = await make_database(fresh_database_url, tables=next_revision)
    assert await migrations.pending(database) == [*migrations._revisions()]
    assert (await migrations.prepare(database)).version == NEXT
    assert "weight" in await database.read(columns)
    assert await database.read(differences) == []


def test_the_printed_sql_of_a_new_database_says_its_revision_once(next_revision: Tables, tmp_path: Path) -> None:
    printed = migrations.sql(Database(f"sqlite:///{tmp_path / 'a.db'}", tables=next_revision))
    assert printed.count("CREATE TABLE onebeat_queues") == 1
    assert "ADD COLUMN" not in printed
    assert printed.index(f"'{migrations._revisions()[0]}'") < printed.index(f"'{NEXT}'")


async def test_no_index_or_column_differs_from_the_definition(database: Database) -> None:
    assert await database.read(differences) == []
