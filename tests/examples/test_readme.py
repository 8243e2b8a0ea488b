"""The README's example, copied as a reader would copy it and served by four workers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from uuid import UUID

import pytest
from examples.shop.__main__ import free_port
from sqlalchemy import make_url

from onebeat import Scheduler
from tests.support.databases import ADMINS, find_servers

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(180)
def test_the_thirty_second_example_serves_schedules_and_ends_cleanly(tmp_path: Path) -> None:
    [block, *_] = re.findall(r"```python\n# app\.py\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    (tmp_path / "app.py").write_text(block)
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "app:app", "--workers", "4", "--port", str(port)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdin=subprocess.DEVNULL,
        stdout=(tmp_path / "output.txt").open("wb"),
        stderr=subprocess.STDOUT,
    )
    try:
        answer = _ask(process, port, tmp_path / "output.txt")
        with sqlite3.connect(tmp_path / "app.db") as connection:
            sql = "select task, state, args, run_at_us - created_us from onebeat_jobs where id = ?"
            [(task, state, args, ahead)] = connection.execute(sql, [UUID(answer["job_id"]).hex]).fetchall()
            schedules = dict(connection.execute("select id, state from onebeat_schedules").fetchall())
        assert (task, state) == ("send_email", "scheduled")
        assert "hello" in args
        assert 5_000_000 < ahead < 10_500_000, "ten seconds from the request, less what the insert waited"
        assert schedules == {"cleanup": "active", "poll": "active"}
    finally:
        process.terminate()
        code = process.wait(90)
    assert code == 0, (tmp_path / "output.txt").read_text()
    assert "Traceback" not in (tmp_path / "output.txt").read_text()


@pytest.mark.parametrize("database_kind", [kind for kind in find_servers() if kind in ADMINS])
async def test_a_process_opens_no_more_connections_than_the_readme_says(database_kind: str, database_url: str) -> None:
    assert "at most 4 connections a process" in (ROOT / "README.md").read_text("utf-8")
    name = str(make_url(database_url).database)
    scheduler = Scheduler(database_url, heartbeat=0.2, lease=60)

    @scheduler.task(name="count")
    async def count(number: int) -> int:
        return number

    most = 0
    async with scheduler:
        for _ in range(5):
            jobs = await asyncio.gather(*(count.enqueue(number) for number in range(50)))
            most = max(most, ADMINS[database_kind].sessions(name))
            await asyncio.gather(*(job.wait(60) for job in jobs))
            most = max(most, ADMINS[database_kind].sessions(name))
    assert 2 <= most <= 4


def _ask(process: subprocess.Popen[bytes], port: int, output: Path) -> dict[str, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/send_email?user_id=1&message=hello", method="PUT")
    deadline = time.monotonic() + 90
    while True:
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                answer: dict[str, str] = json.loads(response.read())
                return answer
        except ConnectionError:
            pass  # not up yet
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionError):
                raise
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.1)  # between two looks at another process
