"""The shop: a request schedules a mail, a cron removes expired files, one job fails at random, one runs each 5 s."""

from __future__ import annotations

import logging
import os
import random
import smtplib
import time
from dataclasses import asdict
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from uuid import UUID

from fastapi import FastAPI, Response
from onebeat import JobContext, JobInfo, Retry, Scheduler, install

FOLDER = Path(os.environ.get("SHOP_FOLDER", ".run/shop"))  # reports, logs and, on SQLite, the database
DATABASE = os.environ.get("SHOP_DATABASE", f"sqlite:///{FOLDER.resolve()}/shop.db")
SMTP = ("127.0.0.1", int(os.environ.get("SHOP_SMTP_PORT", "8025")))
MAIL_DELAY = 10  # seconds between the request and its mail
REPORTS_LIVE = 30  # seconds until a report counts as expired
LOGS = {"directory": FOLDER / "logs", "console": "text", "access_exclude": ["/health"]}
REPORTS = FOLDER / "reports"
REPORTS.mkdir(parents=True, exist_ok=True)

log = logging.getLogger("shop")
scheduler = Scheduler(DATABASE)
app = FastAPI(title="The shop")
install(app, scheduler, logs=LOGS)


# ── the work ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@scheduler.task(retry=Retry(attempts=5, base=2), timeout=30)
def send_email(job: JobContext, user_id: int, message: str) -> dict[str, str]:
    """Send one mail. The job's id is its Message-ID, so a mail server could tell a repetition."""
    mail = EmailMessage()
    mail["From"] = "shop@example.org"
    mail["To"] = f"user{user_id}@example.org"
    mail["Subject"] = "News from the shop"
    mail["Message-ID"] = f"<{job.id}@shop.example.org>"
    mail["X-Tracking-ID"] = job.tracking_id
    mail.set_content(message)
    with smtplib.SMTP(*SMTP, timeout=10) as server:
        server.send_message(mail)
    log.info("mail sent to %s", mail["To"])
    return {"sent_to": mail["To"]}


@scheduler.task(retry=Retry(attempts=3, base=1))
async def charge(order_id: int, luck: float) -> str:
    """Charge a card; the bank says no at random. `luck` is the chance of each attempt, from 0 to 1."""
    if random.random() >= luck:
        raise RuntimeError(f"the bank declined order {order_id}")
    return f"order {order_id} is paid"


@scheduler.every(seconds=5)
def write_report(job: JobContext) -> str:
    """Write one report for each fire. A second run of the same fire would find its file and fail."""
    assert job.fire_time is not None
    path = REPORTS / f"{job.fire_time:%Y%m%dT%H%M%S}.txt"
    with path.open("x") as file:
        file.write(f"report of {job.fire_time.isoformat()}, written by process {os.getpid()}\n")
    return path.name


@scheduler.cron("* * * * *")
def remove_expired_reports() -> list[str]:
    """Each minute, remove the reports that have lived long enough; the value says which."""
    expired = [path for path in sorted(REPORTS.glob("*.txt")) if time.time() - path.stat().st_mtime > REPORTS_LIVE]
    for path in expired:
        path.unlink(missing_ok=True)
    return [path.name for path in expired]


# ── the face ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@app.put("/send_email", status_code=202)
async def ask_for_email(user_id: int, message: str) -> dict[str, str]:
    """Schedule one mail, ten seconds ahead."""
    job = await send_email.options(delay=MAIL_DELAY).enqueue(user_id, message)
    return {"job_id": str(job.id), "look_at": f"/jobs/{job.id}"}


@app.post("/charge", status_code=202)
async def ask_for_charge(order_id: int, luck: float = 0.5) -> dict[str, str]:
    """Charge a card in the background."""
    job = await charge.enqueue(order_id, luck)
    return {"job_id": str(job.id), "look_at": f"/jobs/{job.id}"}


@app.get("/jobs")
async def list_jobs(state: str | None = None, task: str | None = None, limit: int = 20) -> list[dict[str, Any]]:
    """The newest jobs, for example `?state=failed`."""
    page = await scheduler.jobs.list(state=state, task=task, limit=limit)
    return [_shown(job) for job in page.items]


@app.get("/jobs/{job_id}")
async def show_job(job_id: UUID) -> dict[str, Any]:
    """One job: where it stands and what it returned."""
    return _shown(await scheduler.jobs.get(job_id))


@app.get("/health")
async def health(response: Response) -> dict[str, Any]:
    """Whether this process runs jobs: 503 while it cannot, and why."""
    found = await scheduler.health()
    response.status_code = 200 if found.ok else 503
    return {"pid": os.getpid(), **asdict(found)}


def _shown(job: JobInfo) -> dict[str, Any]:
    """What everybody may see: these routes are open, and the text of an error may tell too much. The log has it."""
    names = ("id", "task", "state", "reason", "attempt", "value", "run_at", "finished_at", "tracking_id")
    return {name: getattr(job, name) for name in names}
