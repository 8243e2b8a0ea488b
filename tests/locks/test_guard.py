"""fence_guard: in the user's own transaction, with each kind of session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from onebeat import ConfigurationError, LeaseLost, SchemaOutOfDate, fence_guard

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "mariadb": "mysql+asyncmy"}


@pytest.fixture
async def engine(database_url: str, database_kind: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(make_url(database_url).set(drivername=DRIVERS[database_kind]))
    yield engine
    await engine.dispose()


async def test_a_stale_writer_is_refused_and_writes_nothing(engine: AsyncEngine) -> None:
    async def write(fence: int, resource: str = "report") -> None:
        async with AsyncSession(engine) as session, session.begin():
            await fence_guard(session, resource, fence)
            await session.execute(text("INSERT INTO onebeat_queues (name) VALUES (:n)"), {"n": f"{resource}{fence}"})

    await write(5)
    with pytest.raises(LeaseLost, match="written under fence 5"):
        await write(4)
    await write(4, "other")
    await write(7)
    with pytest.raises(LeaseLost):
        await write(6)
    async with engine.connect() as connection:
        names = (await connection.execute(text("SELECT name FROM onebeat_queues ORDER BY name"))).scalars().all()
    assert names == ["other4", "report5", "report7"]


async def test_the_same_holder_writes_again(engine: AsyncEngine) -> None:
    for _ in range(2):
        async with engine.begin() as connection:
            await fence_guard(connection, "report", 5)


async def test_a_write_that_rolls_back_raises_no_fence(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await fence_guard(connection, "report", 9)
        await connection.rollback()
        await fence_guard(connection, "report", 5)


def test_plain_sessions_and_connections_need_no_await(tmp_path: Any, shelf: Any) -> None:
    engine = create_engine(shelf.take("sqlite", tmp_path))
    with Session(engine) as session, session.begin():
        fence_guard(session, "report", 5)
    with engine.begin() as connection:
        fence_guard(connection, "report", 6)
    with engine.begin() as connection, pytest.raises(LeaseLost):
        fence_guard(connection, "report", 5)
    engine.dispose()


async def test_a_database_without_the_table_says_what_to_do(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        with pytest.raises(SchemaOutOfDate, match=r"other_fences, which is missing.*onebeat migrate"):
            await fence_guard(connection, "report", 5, table_prefix="other_")


async def test_what_is_no_fence_or_no_resource_is_refused(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        for fence in ("5", 1.5, -1, True, None, 1 << 63):
            with pytest.raises(ConfigurationError, match="fence"):
                await fence_guard(connection, "report", fence)  # type: ignore[arg-type]  # that is the test
        with pytest.raises(ConfigurationError, match="name"):
            await fence_guard(connection, "a b", 5)
