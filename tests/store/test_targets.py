"""What may be given as database, and what is said about the rest."""

from __future__ import annotations

import sys
import traceback

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from onebeat.errors import ConfigurationError
from onebeat.locks.redis import RedisLocks
from onebeat.store.connection.addresses import show_address
from onebeat.store.connection.database import Database
from onebeat.store.connection.targets import describe_target, read_target
from onebeat.store.tables import Tables
from tests.conftest import MakeDatabase
from tests.store.test_database import add, names
from tests.support.databases import kind_of

ALIASES = {
    "sqlite": ("sqlite", "sqlite+aiosqlite", "sqlite+pysqlite"),
    "postgresql": ("postgresql", "postgres", "postgresql+psycopg2", "postgresql+psycopg", "postgresql+asyncpg"),
    "mariadb": ("mysql", "mariadb", "mysql+pymysql", "mariadb+mariadbconnector", "mysql+aiomysql", "mysql+asyncmy"),
}


async def test_any_url_of_the_same_back_end_is_accepted(database_url: str, make_database: MakeDatabase) -> None:
    rest = database_url.partition(":")[2]
    for scheme in ALIASES[kind_of(database_url)]:
        database = await make_database(f"{scheme}:{rest}")
        await database.write(add, scheme)
    assert await database.read(names) == sorted(ALIASES[kind_of(database_url)])


def test_an_unknown_scheme_is_named_with_those_that_work(tables: Tables) -> None:
    with pytest.raises(ConfigurationError, match=r"'oracle'.*sqlite, postgresql, mysql and mariadb"):
        Database("oracle+cx://u:secret@h/d", tables=tables)


@pytest.mark.parametrize("url", ["", "no url", "postgresql//u:s3cret@h", "postgresql://u:s3cret@h:port/d"])
def test_an_unreadable_url_is_answered_with_an_example_and_without_its_text(url: str, tables: Tables) -> None:
    with pytest.raises(ConfigurationError, match=r"sqlite:///app\.db") as caught:
        Database(url, tables=tables)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("module", "url", "extra"),
    [
        ("asyncpg", "postgresql://h/d", "postgresql"),
        ("asyncmy", "mysql://h/d", "mysql"),
        ("asyncmy", "mariadb://h/d", "mysql"),
    ],
)
def test_a_missing_driver_names_the_extra(
    module: str, url: str, extra: str, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match=rf"{module}.*pip install 'onebeat\[{extra}\]'"):
        Database(url, tables=tables)


def test_no_password_is_ever_shown(tables: Tables) -> None:
    database = Database("postgresql://user:s3cret@host/db", tables=tables)
    assert "s3cret" not in repr(database) + str(database.url) + repr(database.url) + database.where
    assert database.url.password == "s3cret"


async def test_an_engine_is_taken_over_and_left_alone(database_url: str, make_database: MakeDatabase) -> None:
    drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "mariadb": "mysql+asyncmy"}
    engine = create_async_engine(drivers[kind_of(database_url)] + ":" + database_url.partition(":")[2])
    database = await make_database(engine)
    await database.write(add, "a")
    await database.close()
    async with engine.connect() as connection:  # the application's engine still works
        assert (await connection.execute(text("SELECT name FROM onebeat_queues"))).scalar_one() == "a"
    await engine.dispose()


async def test_an_engines_connect_arguments_are_taken_over(
    database_kind: str, database_url: str, make_database: MakeDatabase
) -> None:
    if database_kind != "postgresql":
        return  # what the server can tell of a client differs; one is enough to show that the creator is used
    engine = create_async_engine(
        "postgresql+asyncpg:" + database_url.partition(":")[2],
        connect_args={"server_settings": {"application_name": "shop"}},
    )
    database = await make_database(engine)
    assert await database.read(lambda tx: tx.execute(text("SHOW application_name")).scalar_one()) == "shop"
    await engine.dispose()


async def test_a_function_may_make_the_engine_each_time(database_url: str, make_database: MakeDatabase) -> None:
    made: list[AsyncEngine] = []
    drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "mariadb": "mysql+asyncmy"}

    def engine() -> AsyncEngine:
        made.append(create_async_engine(drivers[kind_of(database_url)] + ":" + database_url.partition(":")[2]))
        return made[-1]

    database = await make_database(engine)
    await database.write(add, "a")
    assert await database.read(names) == ["a"]
    assert made


def test_a_function_that_returns_something_else_is_refused(tables: Tables) -> None:
    with pytest.raises(ConfigurationError, match="returned int"):
        Database(lambda: 5, tables=tables)  # type: ignore[arg-type, return-value]  # the mistake itself


def test_parameters_of_other_drivers_are_understood() -> None:
    target = read_target("postgresql+psycopg2://u@h/d?sslmode=require&application_name=shop&connect_timeout=3")
    arguments = target.engine({}).sync_engine.dialect.create_connect_args(target.url)[1]
    assert arguments == {"host": "h", "database": "d", "user": "u"}


async def test_libpq_parameters_reach_the_server(
    database_kind: str, database_url: str, make_database: MakeDatabase
) -> None:
    if database_kind != "postgresql":
        return
    database = await make_database(f"{database_url}?sslmode=disable&application_name=shop&connect_timeout=3")
    assert await database.read(lambda tx: tx.execute(text("SHOW application_name")).scalar_one()) == "shop"
    assert await database.read(lambda tx: tx.execute(select(1)).scalar_one()) == 1


REDIS = ("redis", "rediss", "unix")
UNESCAPED = ("@", "/", "#", "?", "@/", "/@", "?@x=", "#@", "@:5/", "@@", "%", "[", " ")


@pytest.mark.parametrize("scheme", ["postgresql", "mysql", "mariadb+pymysql", "oracle", "redis", "rediss", "unix"])
@pytest.mark.parametrize("special", UNESCAPED)
def test_a_password_with_unescaped_characters_is_shown_nowhere(scheme: str, special: str, tables: Tables) -> None:
    for password in (f"s3c{special}r3t", f"12{special}r3t", f"{special}s3c", f"s3c{special}"):
        url = f"{scheme}://shop:{password}@db.internal:6379/5"
        shown = [show_address(url), describe_target(url)]
        try:
            shown.append(repr(Database(url, tables=tables) if scheme not in REDIS else RedisLocks(url)))
        except ConfigurationError as error:
            shown.append("".join(traceback.format_exception(error, limit=0)))
        assert not [text for text in shown if "s3c" in text or "r3t" in text], (url, shown)


def test_an_escaped_password_reaches_the_driver_and_is_not_shown() -> None:
    target = read_target("postgresql://shop:s3c%40%2F%3F%23r3t@db/shop")
    assert target.url.password == "s3c@/?#r3t"
    assert target.where == "postgresql+asyncpg://shop:***@db/shop"
    assert repr(RedisLocks("redis://:s3c%40r3t@cache:6379/5?db=5")) == "<RedisLocks redis://:***@cache:6379/5>"


@pytest.mark.parametrize("url", ["postgresql://me@corp:s3cret@db/shop", "postgresql://db/shop?user=me@corp"])
def test_an_at_sign_that_is_no_part_of_the_password_is_read(url: str) -> None:
    assert read_target(url).where.endswith("db/shop")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite+aiosqlite:///:memory:"])
def test_a_database_in_memory_is_called_so(url: str) -> None:
    assert show_address(url).endswith(":///:memory:")
