"""Opening a database: a server that is absent, late, refuses the login or lacks the database."""

from __future__ import annotations

import asyncio
import traceback

import pytest

from onebeat.errors import DatabaseUnavailable, NotStarted
from onebeat.store.connection.database import Database
from onebeat.store.tables import Tables
from tests.store.conftest import Private
from tests.store.test_database import add, names
from tests.support.servers import PostgreSQLServer, free_port


@pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
async def test_an_unreachable_server_is_tried_until_the_timeout_and_then_named(scheme: str, tables: Tables) -> None:
    database = Database(f"{scheme}://user:s3cret@127.0.0.1:{free_port()}/app", tables=tables)
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(DatabaseUnavailable, match=r"cannot be reached; is it running") as caught:
        await database.open(timeout=1.0)
    assert 0.5 < loop.time() - started < 10
    assert caught.value.reason == "unreachable"
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(NotStarted):
        await database.read(names)


async def test_a_host_that_does_not_exist_is_said(tables: Tables) -> None:
    database = Database("postgresql://user@no-such-host.invalid/app", tables=tables)
    with pytest.raises(DatabaseUnavailable, match=r"no-such-host\.invalid.*cannot be reached"):
        await database.open(timeout=0.5)


async def test_a_server_that_comes_up_in_time_is_waited_for(running: Private, tables: Tables) -> None:
    running.kill()
    database = Database(running.url, tables=tables)
    opening = asyncio.create_task(database.open(timeout=60))
    await asyncio.sleep(0.3)
    assert not opening.done()
    await asyncio.to_thread(running.start)
    await opening
    assert await database.write(add, "a") == "a"
    await database.close()


async def test_a_wrong_password_is_refused_at_once_and_never_shown(
    running: Private, tables: Tables, caplog: pytest.LogCaptureFixture
) -> None:
    if isinstance(running, PostgreSQLServer):
        running.sql("DROP ROLE IF EXISTS shop; CREATE ROLE shop LOGIN PASSWORD 'right'")
        url = f"postgresql://shop:s3cret-wrong@127.0.0.1:{running.port}/postgres"
    else:
        running.sql("CREATE OR REPLACE USER 'shop'@'%' IDENTIFIED BY 'right'")
        url = f"mysql://shop:s3cret-wrong@127.0.0.1:{running.port}/app"
    database = Database(url, tables=tables)
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(DatabaseUnavailable, match="refused the login; check user and password") as caught:
        await database.open(timeout=30)
    assert loop.time() - started < 15
    assert caught.value.reason == "login"
    assert "s3cret-wrong" not in "".join(traceback.format_exception(caught.value)) + caplog.text


async def test_a_missing_database_is_refused_at_once(served: str, tables: Tables) -> None:
    database = Database(served + "_none", tables=tables)
    with pytest.raises(DatabaseUnavailable, match="create the database first") as caught:
        await database.open(timeout=30)
    assert caught.value.reason == "missing-database"
