"""An application that keeps its orders in onebeat's own SQLite file, in SQLAlchemy's sessions, beside a busy worker."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated

from sqlalchemy import create_engine, func, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from fastapi import Depends, FastAPI
from onebeat import Scheduler, configure_sqlite, install

PATH = Path(os.environ.get("ONEBEAT_TEST_LOGS", ".")) / "app.db"
engine = create_engine(f"sqlite:///{PATH}")
async_engine = create_async_engine(f"sqlite+aiosqlite:///{PATH}")
configure_sqlite(engine)
configure_sqlite(async_engine)
scheduler = Scheduler(f"sqlite:///{PATH}")


class Base(DeclarativeBase):
    """The application's tables."""


class Order(Base):
    """One row a request."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@scheduler.task(name="mail")
async def mail(order: int) -> None:
    """What each request enqueues."""


def get_session() -> Iterator[Session]:
    """A session for one request, as SQLModel's tutorial has it."""
    with Session(engine) as session:
        yield session


async def get_async_session() -> AsyncIterator[AsyncSession]:
    """The same with `await`."""
    async with AsyncSession(async_engine) as session:
        yield session


SyncSession = Annotated[Session, Depends(get_session)]
AwaitedSession = Annotated[AsyncSession, Depends(get_async_session)]


def served() -> FastAPI:
    """The application."""
    Base.metadata.create_all(engine)
    app = FastAPI()
    busy: list[asyncio.Task[None]] = []

    @app.get("/busy")
    async def start() -> str:
        busy.append(asyncio.create_task(keep_busy()))
        return "busy"

    app.get("/add-sync")(add_sync)
    app.get("/add-mixed")(add_mixed)
    app.get("/add-async")(add_async)
    app.get("/together-sync")(together_sync)
    app.get("/together-async")(together_async)
    app.get("/read-sync")(read_sync)
    app.get("/read-async")(read_async)
    install(app, scheduler)
    return app


async def keep_busy() -> None:
    """Give the worker more jobs than it can run."""
    while True:
        await mail.enqueue_many([(number,) for number in range(20)])
        await asyncio.sleep(0.005)


def add_sync(session: SyncSession) -> str:
    """Add, commit, refresh, enqueue; in a thread."""
    return str(mail.enqueue_sync(_added(session)).state)


async def add_mixed(session: SyncSession) -> str:
    """The same on the event loop, where the session blocks it."""
    return str((await mail.enqueue(_added(session))).state)


def _added(session: Session) -> int:
    order = Order(name="ink")
    session.add(order)
    session.commit()
    session.refresh(order)
    return order.id


async def add_async(session: AwaitedSession) -> str:
    """The same with `await`."""
    order = Order(name="ink")
    session.add(order)
    await session.commit()
    await session.refresh(order)
    return str((await mail.enqueue(order.id)).state)


def together_sync(session: SyncSession) -> str:
    """Read, write and enqueue in one transaction, in a thread."""
    order = Order(name=str(session.scalar(select(func.count()).select_from(Order))))
    session.add(order)
    session.flush()
    job = mail.options(session=session).enqueue_sync(order.id)
    session.commit()
    return str(job.state)


async def together_async(session: AwaitedSession) -> str:
    """The same with `await`."""
    order = Order(name=str(await session.scalar(select(func.count()).select_from(Order))))
    session.add(order)
    await session.flush()
    job = await mail.options(session=session).enqueue(order.id)
    await session.commit()
    return str(job.state)


def read_sync(session: SyncSession) -> str:
    """Read and enqueue, in a thread."""
    count = session.scalar(select(func.count()).select_from(Order))
    return str(mail.enqueue_sync(count or 0).state)


async def read_async(session: AwaitedSession) -> str:
    """Read and enqueue, on the event loop."""
    count = await session.scalar(select(func.count()).select_from(Order))
    return str((await mail.enqueue(count or 0)).state)
