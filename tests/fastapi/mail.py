"""A web process that only enqueues, and a worker process that runs the jobs: one id through both."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from onebeat import Scheduler, install
from onebeat.logs import setup_logging
from onebeat.tracking import bind

LOGS = Path(os.environ.get("ONEBEAT_TEST_LOGS", "."))
log = logging.getLogger("shop.mail")


def make_scheduler(**settings: Any) -> Scheduler:
    """Two tasks, the second enqueued by the first, and a schedule."""
    scheduler = Scheduler(f"sqlite:///{LOGS / 'shop.db'}", **settings)

    @scheduler.task(name="send_email")
    async def send_email(user_id: int) -> None:
        log.info("mail to %d", user_id)
        await archive.enqueue(user_id)

    @scheduler.task(name="archive")
    def archive(user_id: int) -> None:
        log.info("archived in a thread")

    @scheduler.every(seconds=1, name="tick")
    async def tick() -> None:
        log.info("tick")

    return scheduler


def web() -> FastAPI:
    """For `uvicorn --factory`."""
    scheduler = make_scheduler(role="client")
    send_email = next(task for task in scheduler.registry if task.name == "send_email")
    app = FastAPI()
    install(app, scheduler, logs={"console": None, "directory": LOGS})

    @app.put("/send_email")
    async def ask(user_id: int) -> dict[str, str]:
        bind(customer=user_id)
        job = await send_email.options(delay=0.5).enqueue(user_id)
        log.info("asked")
        return {"job_id": str(job.id), "tracking_id": job.tracking_id}

    return app


if __name__ == "__main__":
    setup_logging(console=None, directory=LOGS, finish_at_sigterm=True)
    make_scheduler().run()
    sys.exit(0)
