"""The application of the story: a request that enqueues a mail, sent later by whichever process claims it."""

from __future__ import annotations

import asyncio
import logging
import os

from fastapi import FastAPI
from onebeat.fastapi.install import install
from onebeat.scheduler.scheduler import Scheduler

log = logging.getLogger("shop")
scheduler = Scheduler(os.environ["DATABASE"])
app = FastAPI()
install(app, scheduler, logs={"console": None, "directory": os.environ["LOGS"]})


@scheduler.task()
async def send_email(message: str) -> None:
    log.info("mail sent", extra={"mail": message})
    await receipt.enqueue(message)


@scheduler.task()
def receipt(message: str) -> None:
    log.info("receipt printed", extra={"mail": message})


@app.put("/send_email")
async def ask(message: str) -> dict[str, str]:
    log.info("asked", extra={"mail": message})
    job = await send_email.options(delay=2).enqueue(message)
    await asyncio.sleep(0)
    return {"job_id": str(job.id)}
