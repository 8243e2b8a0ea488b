"""The shop as `make demo` starts it: four uvicorn workers, a real mail server, real files, SIGTERM at the end."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from examples.shop.__main__ import free_port

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60  # seconds beyond the nominal time before a wait counts as failed, on a busy machine

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(300)]  # waits for whole minutes


@dataclass(frozen=True)
class Shop:
    """A running demo."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    output: Path

    def ask(self, method: str, path: str, **headers: str) -> Any:
        """One request to whichever worker takes it."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=20) as response:
            return json.loads(response.read())

    def logged(self, tracking_id: str) -> list[dict[str, Any]]:
        """What `grep <tracking id>` over the folder of logs finds, oldest first; the empty text finds all."""
        found = []
        for file in sorted((self.folder / "logs").iterdir()):
            found += [json.loads(line) for line in file.read_text().splitlines() if tracking_id in line]
        return sorted(found, key=lambda record: str(record["ts"]))

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """What an independent reader sees in the database."""
        connection = sqlite3.connect(f"file:{self.folder / 'shop.db'}?mode=ro", uri=True, timeout=10)
        try:
            return connection.execute(sql, values).fetchall()
        finally:
            connection.close()

    def mails(self) -> list[dict[str, Any]]:
        """The mail server's own ledger."""
        ledger = self.folder / "mails" / "ledger.jsonl"
        return [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.exists() else []

    def until(self, what: str, found: Callable[[], Any], limit: float) -> Any:
        """Wait for something to become true; fail with the demo's own words when it does not."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            value = found()
            if value:
                return value
            assert self.process.poll() is None, f"the demo ended while we waited for {what}:\n{self.output.read_text()}"
            time.sleep(0.05)  # between two looks at another process
        pytest.fail(f"{what}: not within {limit} s\n{self.output.read_text()}")

    def job(self, job_id: str) -> tuple[Any, ...] | None:
        """state, reason, attempt, value, error of one job."""
        found = self.rows(
            "select state, reason, attempt, value, error from onebeat_jobs where id = ?", UUID(job_id).hex
        )
        return found[0] if found else None

    def ended(self, job_id: str) -> Callable[[], tuple[Any, ...] | None]:
        """A question for `until`: has the job ended?"""
        return lambda: row if (row := self.job(job_id)) and row[0] in ("succeeded", "failed", "cancelled") else None


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    output = folder / "output.txt"
    port = free_port()
    command = [sys.executable, "-m", "examples.shop", "--folder", str(folder), "--port", str(port), "--quiet"]
    with output.open("wb") as sink:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        )
    running = Shop(folder=folder, port=port, process=process, output=output)
    try:
        running.until("the guide", lambda: "The shop is open" in output.read_text(), 90)
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(90)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def asked(shop: Shop) -> tuple[float, dict[int, str]]:
    """Eight mails are asked for at once, each under a tracking id of its own: when, and user → job."""
    began = time.time()
    jobs = {
        user: str(
            shop.ask("PUT", f"/send_email?user_id={user}&message=hello-{user}", **{"X-Request-ID": f"story-of-{user}"})[
                "job_id"
            ]
        )
        for user in range(8)
    }
    assert shop.mails() == [], "a mail came before its time"
    return began, jobs


def test_an_app_that_cannot_be_imported_is_one_message_and_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "fastapi.py").write_text("raise ImportError('broken on purpose')")
    demo = subprocess.run(
        [sys.executable, "-m", "examples.shop", "--folder", str(tmp_path), "--port", str(free_port())],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT / 'src'}"},
    )  # fmt: skip
    assert demo.returncode == 1
    assert "cannot be imported, so it was not started: ImportError: broken on purpose" in demo.stderr
    assert "Traceback" not in demo.stderr
    assert demo.stdout == ""


def test_a_request_leads_to_one_mail_ten_seconds_later(shop: Shop, asked: tuple[float, dict[int, str]]) -> None:
    began, jobs = asked
    for job in jobs.values():
        state, _, attempt, _, error = shop.until(f"job {job}", shop.ended(job), 10 + PATIENCE)
        assert (state, attempt) == ("succeeded", 1), error
    mails = shop.mails()
    assert Counter(mail["message_id"] for mail in mails) == Counter(
        f"<{job}@shop.example.org>" for job in jobs.values()
    )
    assert min(mail["at"] for mail in mails) >= began + 9.9, "the delay is ten seconds"
    assert sorted(mail["text"] for mail in mails) == [f"hello-{user}" for user in jobs]


def test_one_tracking_id_tells_the_whole_story_from_request_to_mail(
    shop: Shop, asked: tuple[float, dict[int, str]]
) -> None:
    job = asked[1][7]
    shop.until("the mail", shop.ended(job), 10 + PATIENCE)
    [mail] = [mail for mail in shop.mails() if mail["message_id"] == f"<{job}@shop.example.org>"]
    assert mail["tracking_id"] == "story-of-7", "the mail carries the request's own id"
    records = shop.until(
        "the job's last record", lambda: found if len(found := shop.logged("story-of-7")) >= 3 else None, PATIENCE
    )
    assert {record["tracking_id"] for record in records} == {"story-of-7"}
    request, sent, settled = records
    assert (request["method"], request["path"], request["status"]) == ("PUT", "/send_email", 202)
    assert sent["msg"] == "mail sent to user7@example.org"
    assert (sent["job_id"], settled["job_id"]) == (job, job)
    assert "succeeded" in settled["msg"]


def test_a_job_without_luck_is_retried_and_seen_as_failed(shop: Shop) -> None:
    job = shop.ask("POST", "/charge?order_id=8&luck=0")["job_id"]
    state, reason, attempt, _, error = shop.until("the failure", shop.ended(job), PATIENCE)
    assert (state, reason, attempt) == ("failed", "exhausted", 3)
    assert "the bank declined order 8" in error
    outcomes = shop.rows("select attempt, outcome from onebeat_attempts where job_id = ? order by 1", UUID(job).hex)
    assert [number for number, _ in outcomes] == [1, 2, 3]
    assert job in {seen["id"] for seen in shop.ask("GET", "/jobs?state=failed")}


def test_a_job_with_luck_succeeds_and_keeps_its_value(shop: Shop) -> None:
    job = shop.ask("POST", "/charge?order_id=9&luck=1")["job_id"]
    state, _, attempt, value, _ = shop.until("the success", shop.ended(job), PATIENCE)
    assert (state, attempt, json.loads(value)) == ("succeeded", 1, "order 9 is paid")
    assert shop.ask("GET", f"/jobs/{job}")["value"] == "order 9 is paid"


def test_a_minutely_cron_removes_expired_files(shop: Shop) -> None:
    old = shop.folder / "reports" / "forgotten.txt"
    old.write_text("this report is an hour old")
    os.utime(old, (time.time() - 3600, time.time() - 3600))
    fresh = shop.folder / "reports" / "fresh.txt"
    fresh.write_text("this one is not old yet, whenever the cron fires")
    os.utime(fresh, (time.time() + 3600, time.time() + 3600))
    shop.until("the removal of an expired file", lambda: not old.exists(), 60 + PATIENCE)
    assert fresh.exists()
    [(value,)] = shop.until(
        "the cron's own row",
        lambda: shop.rows(
            "select value from onebeat_jobs where schedule_id = 'remove_expired_reports' and state = 'succeeded' "
            "and value like '%forgotten.txt%'"
        ),
        PATIENCE,
    )
    assert "fresh.txt" not in value


def test_the_interval_fires_each_once_whichever_worker_takes_it(shop: Shop) -> None:
    sql = "select fire_us, state, error from onebeat_jobs where schedule_id = 'write_report' order by fire_us"
    shop.until("six reports", lambda: len([row for row in shop.rows(sql) if row[1] == "succeeded"]) >= 6, 30 + PATIENCE)
    rows = shop.rows(sql)
    instants = [row[0] for row in rows]
    assert len(set(instants)) == len(instants), "a fire has two jobs"
    assert not [row for row in rows if row[1] == "failed"], "a second run of a fire finds its file and fails"
    verdicts = shop.rows("select fire_us, count(*) from onebeat_fires where schedule_id = 'write_report' group by 1")
    assert {count for _, count in verdicts} == {1}
    decided = [instant for instant, _ in verdicts]
    assert decided == list(range(decided[0], decided[-1] + 1, 5_000_000)), "an instant without a verdict"


def test_at_sigterm_everything_drains_and_the_demo_ends_with_zero(shop: Shop) -> None:
    """The last test of the file: it ends the demo."""
    pids = _descendants(shop.process.pid)
    assert len(pids) >= 5, "uvicorn and its four workers"
    waiting = shop.ask("PUT", "/send_email?user_id=99&message=later")["job_id"]
    shop.process.send_signal(signal.SIGTERM)
    assert shop.process.wait(90) == 0, shop.output.read_text()
    assert [pid for pid in pids if _alive(pid)] == []
    unexpected = [
        record
        for record in shop.logged("")
        if record["level"] in ("ERROR", "CRITICAL") and "the bank declined" not in record["msg"]
    ]
    assert unexpected == []
    states = Counter(state for (state,) in shop.rows("select state from onebeat_jobs"))
    assert states["running"] == 0
    assert shop.job(waiting) is not None, "an accepted job must not vanish"
    assert {state for (state,) in shop.rows("select state from onebeat_workers")} == {"stopped"}


def _descendants(pid: int) -> list[int]:
    """Every process below `pid`, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended between the listing and the reading
        children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found: list[int] = []
    todo = [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
