"""Who works on a database, and what waits in each queue."""

from __future__ import annotations

import asyncio
import os

from sqlalchemy import update

from onebeat.scheduler.scheduler import Scheduler
from onebeat.store.connection.database import Database
from tests.support.builders import registered
from tests.support.databases import waits_until


async def test_queues_count_unfinished_jobs_and_name_their_workers(database_url: str) -> None:
    client, mailer = Scheduler(database_url, role="client"), Scheduler(database_url, queues=("mail", "idle"), poll=0.1)
    go = asyncio.Event()
    for scheduler in (client, mailer):

        @scheduler.task(name="send", queue="mail")
        async def send() -> None:
            await go.wait()

        @scheduler.task(name="scan", queue="slow")
        async def scan() -> None: ...

    async with client, mailer:
        jobs = [await client.registry.get("send").enqueue() for _ in range(2)]
        await client.registry.get("send").options(delay=3600).enqueue()
        await client.registry.get("scan").enqueue()
        await waits_until(lambda: all_running(client))
        (worker,) = await client.workers.list(state="alive")
        assert (worker.queues, worker.running, worker.pid) == (("mail", "idle"), 2, os.getpid())
        assert {"send", "scan"} <= set(worker.tasks)
        assert [(q.name, q.queued, q.running, q.scheduled, q.workers) for q in await client.queues.list()] == [
            ("idle", 0, 0, 0, 1),
            ("mail", 0, 2, 1, 1),
            ("slow", 1, 0, 0, 0),
        ]
        go.set()
        for job in jobs:
            await job.wait(10)
        await mailer.stop()
        assert [worker.state for worker in await client.workers.list()] == ["stopped"]
        left = [(q.name, q.queued, q.running, q.scheduled, q.workers) for q in await client.queues.list()]
        assert left == [("mail", 0, 0, 1, 0), ("slow", 1, 0, 0, 0)], "ended jobs are in no queue"


async def all_running(client: Scheduler) -> bool:
    return await client.jobs.count(queue="mail", state="running") == 2


async def test_a_worker_whose_lease_ran_out_is_shown_as_dead(database_url: str, database: Database) -> None:
    worker_id = await registered(database, slots=3)
    table = database.tables.workers
    await database.write(lambda tx: tx.execute(update(table).values(lease_until_us=tx.now())) and None)
    async with Scheduler(database_url, role="client") as client:
        (worker,) = await client.workers.list()
        assert (worker.id, worker.state, worker.running) == (worker_id, "dead", 0)
        assert list(await client.workers.list(state="alive")) == []
        assert list(await client.queues.list()) == []
