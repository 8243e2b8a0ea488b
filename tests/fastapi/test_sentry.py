"""Sentry with a transport of its own: each failed job and each 500 is reported once, with its exception."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETUP, HOOK = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "sentry.md").read_text("utf-8"), re.DOTALL)
SOURCE = """
import json, sentry_sdk, sys
from sentry_sdk.transport import Transport

events = []

class Sink(Transport):
    def capture_envelope(self, envelope):
        if (event := envelope.get_event()) is not None:
            events.append(event)

init = sentry_sdk.init
sentry_sdk.init = lambda dsn, **options: init(dsn, transport=Sink, **options)
{setup}
from fastapi import FastAPI
from fastapi.testclient import TestClient
from onebeat import Retry, Scheduler, install

scheduler = Scheduler(f"sqlite:///{{sys.argv[1]}}/app.db", poll=0.05)
app = FastAPI()
install(app, scheduler, logs={{"console": None}} if sys.argv[2] == "logs" else False)
{hook}

@app.get("/boom")
async def boom():
    raise LookupError("a route")

@scheduler.task(retry=Retry(attempts=2, base=0.01, jitter=False))
async def charge(user_id: int):
    raise ValueError(f"no card of user {{user_id}}")

@scheduler.task(retry=Retry(attempts=1))
def in_a_thread():
    raise KeyError("thread")

@scheduler.task(retry=Retry(attempts=1), timeout=0.2)
async def slow():
    import asyncio
    await asyncio.sleep(60)

ids = []
with TestClient(app, raise_server_exceptions=False) as client:
    assert client.get("/boom").status_code == 500
    for task, args in ((charge, (1,)), (charge, (2,)), (in_a_thread, ()), (slow, ())):
        job = client.portal.call(task.enqueue, *args)
        assert client.portal.call(job.wait, 30).state == "failed"
        ids.append(str(job.id))
print(json.dumps({{"events": events, "ids": ids}}, default=str))
"""


@pytest.mark.parametrize("logs", ["logs", "no logs"])
def test_each_failure_is_reported_once_with_its_exception(logs: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SOURCE.format(setup=SETUP, hook=""))
    events, ids = ran(tmp_path, logs)
    found = [event["exception"]["values"][-1]["type"] for event in events]
    assert found == ["LookupError", "ValueError", "ValueError", "KeyError", "TimeoutError"]
    jobs = events[1:]
    assert [event["extra"]["job_id"] for event in jobs] == ids
    assert [(event["extra"]["task"], event["extra"]["attempt"]) for event in jobs] == [
        ("charge", 2), ("charge", 2), ("in_a_thread", 1), ("slow", 1)
    ]  # fmt: skip  # a pair for each job
    assert [event["tags"]["task"] for event in jobs] == ["charge", "charge", "in_a_thread", "slow"]
    one, other = jobs[:2]
    assert one["logentry"]["message"] == other["logentry"]["message"] == "job %s %s after %.3f s, now %s (%s): %s"
    assert frames(one) == frames(other)
    assert frames(one)[-1] == "charge"
    assert "slow" in frames(jobs[3])


def test_a_hook_gets_the_exception(tmp_path: Path) -> None:
    """The second block of the page, as it stands there, beside the first; Sentry drops what was reported already."""
    silent = HOOK.replace('event.task.startswith("billing.")', "event.task == 'charge'")
    (tmp_path / "shop.py").write_text(SOURCE.format(setup=SETUP, hook=silent))
    events, _ = ran(tmp_path, "no logs")
    charges = [event for event in events if event["exception"]["values"][-1]["type"] == "ValueError"]
    assert [event["exception"]["values"][-1]["value"] for event in charges] == [
        "no card of user 1",
        "no card of user 2",
    ]


def ran(folder: Path, logs: str) -> tuple[list[dict[str, Any]], list[str]]:
    """What the script's Sentry would have sent, and the ids of its jobs."""
    command = [sys.executable, str(folder / "shop.py"), str(folder), logs]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    return told["events"], told["ids"]


def environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}


def frames(event: dict[str, Any]) -> list[str]:
    """The functions of the exception's traceback, innermost last."""
    return [frame["function"] for frame in event["exception"]["values"][-1]["stacktrace"]["frames"]]
