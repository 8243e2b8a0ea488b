"""One id answers what happened to a request: from the edge to the jobs that ran later in another process."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.logs.conftest import environment, read
from tests.logs.test_server import end, read_now, wait_until


@contextmanager
def shop(directory: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    env = {
        **environment(),
        "LOGS": str(directory / "logs"),
        "DATABASE": f"sqlite:///{directory / 'shop.db'}",
    }
    command = [sys.executable, "-m", "uvicorn", "tests.logs.story_app:app", "--port", str(port), "--workers", "2"]
    with open(directory / "output", "wb") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
    try:
        wait_until(lambda: put(port, "hello", "first") is not None, "the shop answers", timeout=80)
        yield process, port
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def put(port: int, message: str, tracking_id: str) -> str | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("PUT", f"/send_email?message={message}", headers={"X-Request-ID": tracking_id})
        response = connection.getresponse()
        assert response.status == 200
        assert response.headers["X-Request-ID"] == tracking_id
        return str(json.loads(response.read())["job_id"])
    except OSError:
        return None
    finally:
        connection.close()


def printed(logs: Path) -> set[str]:
    return {record["mail"] for record in read_now(logs) if record["msg"] == "receipt printed"}


def test_grep_for_the_id_tells_the_whole_story(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    ids = [f"order-{number}" for number in range(12)]
    with shop(tmp_path) as (process, port):
        jobs = {one: put(port, one, one) for one in ids}
        wait_until(lambda: set(ids) <= printed(logs), "every receipt is printed", timeout=80)
        assert end(process) == 0
    found = subprocess.run(["grep", "-rh", '"order-5"', str(logs)], capture_output=True, text=True, check=True).stdout
    story = [json.loads(line) for line in found.splitlines()]
    assert {record["tracking_id"] for record in story} == {"order-5"}
    words = [record["msg"] for record in sorted(story, key=lambda record: record["ts"])]
    steps = ["asked", "mail sent", "receipt printed"]
    assert [word for word in words if word in steps] == steps
    access = next(record for record in story if record["logger"] == "onebeat.access")
    assert (access["path"], access["status"]) == ("/send_email", 200)
    mail = next(record for record in story if record["msg"] == "mail sent")
    assert (mail["unit"], mail["job_id"], mail["task"], mail["attempt"]) == ("job", jobs["order-5"], "send_email", 1)
    receipt = next(record for record in story if record["msg"] == "receipt printed")
    assert receipt["job_id"] != mail["job_id"]
    assert receipt["parent_id"] == mail["unit_id"]
    ended = [record for record in story if record["logger"] == "onebeat.jobs"]
    assert {record["job_id"] for record in ended} == {mail["job_id"], receipt["job_id"]}
    everything = read(logs)
    asked = {record["mail"]: record["pid"] for record in everything if record["msg"] == "asked"}
    sent = {record["mail"]: record["pid"] for record in everything if record["msg"] == "mail sent"}
    assert os.getpid() not in {*asked.values(), *sent.values()}
    assert any(asked[one] != sent[one] for one in ids)  # of twelve, some were sent by the other worker
