"""The tables are made once, whoever starts first, and tables of another age or owner are refused in words."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect, text

from onebeat import alembic as onebeat_alembic
from onebeat.errors import ConfigurationError, DatabaseUnavailable, SchemaOutOfDate
from onebeat.scheduler.integration import integration_of
from onebeat.scheduler.scheduler import Scheduler
from onebeat.store import migrations
from onebeat.store.connection.database import Database
from onebeat.store.migrations import Schema
from onebeat.store.tables import SCHEMA_VERSION, Tables, build
from onebeat.store.tx import Tx
from tests.conftest import MakeDatabase
from tests.store.test_database import add, names
from tests.support.databases import ADMINS

ROOT = Path(__file__).resolve().parent.parent.parent

MIGRATE = """
import asyncio, sys
from onebeat.store import migrations
from onebeat.store.connection.database import Database
from onebeat.store.tables import build

async def main():
    async with Database(sys.argv[1], tables=build()) as database:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        print("migrated" if await migrations.migrate(database) else "nothing to do", flush=True)

asyncio.run(main())
"""


QUIET = """
import asyncio, logging, sys, threading
logging.basicConfig(level=logging.DEBUG, format="%(name)s %(levelname)s %(message)s", stream=sys.stdout)
logging.getLogger("asyncio").setLevel(logging.WARNING)
from onebeat.store import migrations
from onebeat.store.connection.database import Database
from onebeat.store.tables import build

theirs = logging.getLogger("alembic.runtime.migration")
say, after = theirs.filter, []

def beside(record):  # another thread runs the application's own revisions at the same moment
    if not after:
        after.append(threading.Thread(target=theirs.info, args=("their own revision",)))
        after[0].start()
        after[0].join()
    return say(record)

async def main():
    async with Database(sys.argv[1], tables=build()) as database:
        assert await migrations.migrate(database)
    assert migrations.sql(database)

theirs.filter = beside
asyncio.run(main())
del theirs.filter
assert not theirs.filters
theirs.info("their next revision")
"""


def there(tx: Tx) -> set[str]:
    return set(inspect(tx.connection).get_table_names())


def set_version(tx: Tx, version: str) -> None:
    tx.execute(text("UPDATE onebeat_schema_version SET version_num = :v"), {"v": version})


def set_meta(tx: Tx, key: str, value: str) -> None:
    meta = tx.tables.meta
    tx.execute(meta.delete().where(meta.c.key == key))
    tx.execute(meta.insert().values(key=key, value=value))


def test_alembic_says_nothing_of_our_revisions_and_all_of_the_applications(fresh_database_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", QUIET, fresh_database_url], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("alembic")]
    assert said == [
        "alembic.runtime.migration INFO their own revision",
        "alembic.runtime.migration INFO their next revision",
    ]


def test_four_processes_migrate_at_once_and_one_does_it(fresh_database_url: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MIGRATE, fresh_database_url], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(4)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outcomes = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outcomes
    assert all(out in ("migrated\n", "nothing to do\n") for out, _ in outcomes), outcomes

    async def look() -> tuple[set[str], int]:
        async with Database(fresh_database_url, tables=build()) as database:
            count = "SELECT count(*) FROM onebeat_meta"
            return await database.read(there), await database.read(lambda tx: tx.execute(text(count)).scalar_one())

    found, notes = asyncio.run(look())
    tables = build()
    assert found == {table.name for table in tables.metadata.sorted_tables} | {tables.version_table}
    assert notes == 2  # one identity, one major number


async def test_a_second_start_makes_one_select_and_loads_no_alembic(database_url: str) -> None:
    script = """
import asyncio, sys
from onebeat.store import migrations
from onebeat.store.connection.database import Database
from onebeat.store.tables import build

class Count:
    statements = 0
    def reach(self, name, tx):
        self.statements += name == "statement"

async def main():
    count = Count()
    async with Database(sys.argv[1], tables=build(), points=count) as database:
        await migrations.prepare(database)
    print(count.statements, "alembic" in sys.modules)

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, database_url], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "1 False\n", done.stderr


async def test_the_first_start_gives_the_database_an_identity_that_stays(
    fresh_database_url: str, make_database: MakeDatabase
) -> None:
    database = await make_database(fresh_database_url)
    assert await migrations.pending(database) == migrations._revisions()
    first = await migrations.prepare(database, app="shop")
    again = await migrations.prepare(database, app="shop")
    assert first == again
    assert first.version == SCHEMA_VERSION
    assert first.app == "shop"
    assert first.instance_id is not None
    assert len(first.instance_id) == 32
    assert await migrations.pending(database) == []
    assert await migrations.migrate(database) is False


async def test_missing_tables_are_not_made_without_leave(fresh_database_url: str, make_database: MakeDatabase) -> None:
    database = await make_database(fresh_database_url)
    with pytest.raises(SchemaOutOfDate, match="onebeat migrate"):
        await migrations.prepare(database, migrate=False)
    with pytest.raises(SchemaOutOfDate, match="onebeat migrate"):
        await migrations.check(database)
    with pytest.raises(SchemaOutOfDate, match="onebeat migrate"):
        await database.write(add, "a")
    assert await database.read(there) == set()


async def test_old_tables_are_refused_without_leave(fresh_database_url: str, make_database: MakeDatabase) -> None:
    database = await make_database(fresh_database_url)
    await migrations.migrate(database)
    await database.write(set_version, "0000")
    with pytest.raises(SchemaOutOfDate, match=rf"revision 0000 .* needs {SCHEMA_VERSION}.*onebeat migrate"):
        await migrations.prepare(database, migrate=False)


async def test_a_newer_revision_of_the_same_major_number_is_served(
    fresh_database_url: str, make_database: MakeDatabase
) -> None:
    database = await make_database(fresh_database_url)
    await migrations.migrate(database)
    await database.write(set_version, "0099")
    schema = await migrations.prepare(database)
    assert (schema.version, schema.pending) == ("0099", False)
    assert await migrations.migrate(database) is False
    assert await database.write(add, "a") == "a"


async def test_a_newer_major_number_is_refused(fresh_database_url: str, make_database: MakeDatabase) -> None:
    database = await make_database(fresh_database_url)
    await migrations.migrate(database)
    await database.write(set_version, "0099")
    await database.write(set_meta, "schema_major", "2")
    for attempt in (migrations.prepare, migrations.check, migrations.migrate):
        with pytest.raises(SchemaOutOfDate, match="major number 2 and this code knows 1"):
            await attempt(database)


async def test_who_looked_before_the_other_migrated_finds_nothing_left_to_do(
    fresh_database_url: str, make_database: MakeDatabase
) -> None:
    early, late = await make_database(fresh_database_url), await make_database(fresh_database_url)
    assert (await migrations.state(late)).pending
    first = await migrations.prepare(early)
    assert await migrations._upgrade(late, None) == first


async def test_two_apps_cannot_share_tables_by_mistake(fresh_database_url: str, make_database: MakeDatabase) -> None:
    database = await make_database(fresh_database_url)
    assert (await migrations.prepare(database)).app is None
    assert (await migrations.prepare(database, app="shop")).app == "shop"  # who names itself first
    with pytest.raises(ConfigurationError, match=r"app 'shop'.*'billing'.*table_prefix.*leave `app` out"):
        await migrations.prepare(database, app="billing")
    assert (await migrations.prepare(database)).app == "shop"  # a nameless one (the command line) is at home everywhere


async def test_two_prefixes_live_side_by_side(fresh_database_url: str, make_database: MakeDatabase) -> None:
    shop = await make_database(fresh_database_url, tables=build("shop_"))
    mail = await make_database(fresh_database_url, tables=build("mail_"))
    one, two = await asyncio.gather(
        migrations.prepare(shop, app="shop"), migrations.prepare(mail, app="mail"), return_exceptions=True
    )
    assert isinstance(one, Schema), one
    assert isinstance(two, Schema), two
    assert one.instance_id != two.instance_id
    await shop.write(add, "a")
    assert await mail.read(names) == []
    await migrations.drop(shop)
    assert {name for name in await mail.read(there) if name.startswith("shop_")} == set()
    assert await mail.read(names) == []


async def test_drop_leaves_nothing_and_may_be_repeated(fresh_database_url: str, make_database: MakeDatabase) -> None:
    database = await make_database(fresh_database_url)
    await migrations.migrate(database)
    await migrations.drop(database)
    assert await database.read(there) == set()
    await migrations.drop(database)


async def test_tables_in_a_schema_of_their_own(database_kind: str, fresh_database_url: str, make_database: Any) -> None:
    if database_kind != "postgresql":
        return  # elsewhere a schema is another database
    database = await make_database(fresh_database_url, tables=build("onebeat_", "jobs"))
    await migrations.migrate(database)
    await database.write(add, "a")
    assert await database.read(there) == set()  # public is untouched
    assert await database.read(lambda tx: tx.execute(text("SELECT name FROM jobs.onebeat_queues")).scalar_one()) == "a"
    await migrations.drop(database)


async def test_a_migration_cut_off_in_the_middle_is_completed_by_the_next(
    fresh_database_url: str, make_database: MakeDatabase
) -> None:
    class PowerCut(Exception):
        pass

    class Cut:
        def reach(self, name: str, tx: Tx) -> None:
            if name == "migrated":
                raise PowerCut

    broken = await make_database(fresh_database_url, points=Cut())
    with pytest.raises(PowerCut):
        await migrations.migrate(broken)
    if broken.dialect.transactional_ddl:
        assert await broken.read(there) == set()
    else:  # statements of the definition commit by themselves: pretend that only some had run

        def half(tx: Tx) -> None:
            tx.execute(text("DROP TABLE onebeat_jobs"))
            tx.execute(text("DROP INDEX onebeat_fires_time ON onebeat_fires"))
            tx.execute(text("DELETE FROM onebeat_schema_version"))

        await broken.exclusive(half, patience=5)
    database = await make_database(fresh_database_url)
    schema = await migrations.prepare(database)
    assert schema.version == SCHEMA_VERSION
    assert schema.instance_id is not None

    def indexes(tx: Tx) -> set[str]:
        tx.dialect.migration_lock(tx.connection, "fresh view of the schema", 5)
        return {str(index["name"]) for index in inspect(tx.connection).get_indexes("onebeat_fires")}

    assert "onebeat_fires_time" in await database.read(indexes)


def by_hand(script: str) -> Callable[[Tx], None]:
    """What somebody does who runs the printed statements one by one."""

    def run(tx: Tx) -> None:
        body = "\n".join(line for line in script.splitlines() if not line.startswith("--"))
        for statement in body.split(";\n"):
            if statement.strip() and statement.strip() not in ("BEGIN", "COMMIT"):
                tx.connection.exec_driver_sql(statement)

    return run


def drop_schema(tx: Tx, name: str) -> None:
    tx.connection.exec_driver_sql(f"DROP SCHEMA {name}")


async def test_the_sql_for_another_hand_makes_the_schema_too(database_kind: str, fresh_database_url: str) -> None:
    if database_kind == "sqlite":
        with pytest.raises(ConfigurationError, match="SQLite, which has none"):
            integration_of(Scheduler(fresh_database_url, schema="jobs")).new_database()
        return
    name = f"onebeat_test_{secrets.token_hex(6)}"
    async with integration_of(Scheduler(fresh_database_url, schema=name)).new_database() as database:
        await database.exclusive(by_hand(migrations.sql(database)), patience=5)
        try:
            async with Scheduler(fresh_database_url, schema=name, migrate=False, role="client") as scheduler:
                assert await scheduler.jobs.count() == 0
        finally:
            cascade = " CASCADE" if database_kind == "postgresql" else ""
            await database.write(drop_schema, f"{name}{cascade}")


async def test_the_sql_for_another_hand_makes_the_same_tables(fresh_database_url: str, make_database: Any) -> None:
    database = await make_database(fresh_database_url)
    await database.exclusive(by_hand(migrations.sql(database)), patience=5)
    schema = await migrations.check(database)
    assert schema.instance_id is not None
    tables = build()
    assert await database.read(there) == {t.name for t in tables.metadata.sorted_tables} | {tables.version_table}


async def test_a_table_of_other_origin_under_our_name_is_said_and_left_alone(
    fresh_database_url: str, make_database: MakeDatabase
) -> None:
    database = await make_database(fresh_database_url)

    def foreign(tx: Tx) -> None:
        tx.connection.exec_driver_sql("CREATE TABLE onebeat_jobs (id INTEGER)")
        tx.connection.exec_driver_sql("INSERT INTO onebeat_jobs VALUES (42)")

    await database.write(foreign)
    with pytest.raises(ConfigurationError, match="table_prefix"):
        await migrations.prepare(database)
    kept = await database.read(lambda tx: tx.connection.exec_driver_sql("SELECT id FROM onebeat_jobs").scalar_one())
    assert kept == 42
    other = await make_database(fresh_database_url, tables=build("jobs_"))
    assert not (await migrations.prepare(other)).pending


async def test_a_user_who_may_not_create_tables_is_told_so(
    fresh_database_url: str, database_kind: str, make_database: Any
) -> None:
    if database_kind == "sqlite":
        return  # a file has no users; see the read-only file
    from sqlalchemy import make_url

    url = make_url(fresh_database_url)
    user = f"{url.database}_u"
    if database_kind == "postgresql":
        ADMINS[database_kind].run(f"CREATE ROLE {user} LOGIN PASSWORD 's3cret'")
    else:
        ADMINS[database_kind].run(
            f"CREATE USER '{user}'@'%' IDENTIFIED BY 's3cret'", f"GRANT SELECT ON {url.database}.* TO '{user}'@'%'"
        )
    try:
        database = await make_database(url.set(username=user, password="s3cret"))
        with pytest.raises(DatabaseUnavailable, match=r"does not allow this.*onebeat migrate --sql") as caught:
            await migrations.prepare(database)
        assert caught.value.reason == "permission"
        assert "s3cret" not in str(caught.value)
        await database.close()
    finally:
        drop = f"DROP ROLE {user}" if database_kind == "postgresql" else f"DROP USER '{user}'@'%'"
        if database_kind == "postgresql":
            ADMINS[database_kind].end_sessions(str(url.database))
        ADMINS[database_kind].run(drop)


async def test_the_applications_autogenerate_does_not_see_onebeats_tables(database: Database, tables: Tables) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext
    from sqlalchemy import Column, Integer, MetaData, Table

    mine = MetaData()
    Table("users", mine, Column("id", Integer, primary_key=True))

    def compare(tx: Tx, /, **options: Any) -> set[tuple[str, str]]:
        context = MigrationContext.configure(tx.connection, opts=options)
        return {
            (change[0], change[1].name) for change in compare_metadata(context, mine) if change[0].endswith("_table")
        }

    assert ("remove_table", tables.jobs.name) in await database.read(compare)  # what would happen without it
    with_it = await database.read(compare, include_name=onebeat_alembic.include_name)
    assert with_it == {("add_table", "users")}
