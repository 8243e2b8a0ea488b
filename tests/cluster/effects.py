"""Orders stored with their jobs in one transaction, and the effects of these jobs, in processes that are killed.

`python -m tests.cluster.effects enqueue URL` stores orders until it is killed, `… work URL` runs their jobs. SIGUSR1
asks a process to die by SIGKILL right after its next COMMIT, before another line of onebeat or of the function runs;
SIGUSR2 right before it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from uuid import uuid4

from sqlalchemy import event, make_url, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from onebeat import JobContext, Retry, Scheduler, configure_sqlite

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "mysql": "mysql+asyncmy"}
MOMENTS = {signal.SIGUSR1: "after_commit", signal.SIGUSR2: "before_commit"}
LEASE = 3  # seconds until the jobs of a killed worker are taken back
ORDERS = 25  # in one transaction
PAUSE = 0.4  # seconds between two transactions: the workers keep up


def scheduler_on(url: str, **settings: str) -> Scheduler:
    """The scheduler of every process."""
    scheduler = Scheduler(url, slots=5, heartbeat=0.5, lease=LEASE, poll=0.2, **settings)  # type: ignore[arg-type]

    @scheduler.task(name="effect", retry=Retry(attempts=20, base=0.1))
    async def effect(order: str, ctx: JobContext) -> None:
        await asyncio.sleep(0.03)  # what a kill can hit, without the write lock of SQLite
        async with ctx.transaction() as session:
            await session.execute(text("INSERT INTO effects (id) VALUES (:id)"), {"id": order})

    return scheduler


async def enqueue(url: str) -> None:
    """Store orders with their jobs, for ever."""
    scheduler = scheduler_on(url, role="client")
    effect = scheduler.registry.get("effect")
    parsed = make_url(url)
    engine = create_async_engine(parsed.set(drivername=DRIVERS[parsed.get_backend_name()]))
    if parsed.get_backend_name() == "sqlite":
        configure_sqlite(engine)
    async with scheduler:
        while True:
            ids = [uuid4().hex for _ in range(ORDERS)]
            async with AsyncSession(engine) as session:
                await session.execute(text("INSERT INTO orders (id) VALUES (:id)"), [{"id": id} for id in ids])
                await effect.options(session=session).enqueue_many([(id,) for id in ids])
                await session.commit()
            await asyncio.sleep(PAUSE)


def die_at_the_next_commit(number: int, _: object) -> None:
    """Handle SIGUSR1 and SIGUSR2."""
    event.listen(Session, MOMENTS[signal.Signals(number)], lambda _: os.kill(os.getpid(), signal.SIGKILL))


if __name__ == "__main__":
    for number in MOMENTS:
        signal.signal(number, die_at_the_next_commit)
    if sys.argv[1] == "enqueue":
        asyncio.run(enqueue(sys.argv[2]))
    else:
        scheduler_on(sys.argv[2]).run()
