"""Hypercorn: a draining worker survives the SIGTERM that follows a sibling's end; trio is refused in words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from onebeat.logs.setup import uvicorn_log_config
from tests.cluster import app
from tests.support import rows
from tests.support.cluster import ROOT, Cluster
from tests.support.ledger import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(150)]


def hypercorn(*options: str) -> tuple[str, ...]:
    """Return the command of a Hypercorn server on a free port."""
    return ("-m", "hypercorn", "tests.cluster.app:app", "--bind", "127.0.0.1:0", *options)


async def test_a_draining_worker_outlives_the_sigterm_after_its_sibling_s_end(sqlite_url: str, tmp_path: Path) -> None:
    """Hypercorn ends all its workers once the first has ended; the others are still draining then."""
    async with app.build(sqlite_url, role="client"):
        await app.work.enqueue(4, True)
    with Cluster(sqlite_url, tmp_path, count=1, command=hypercorn("--workers", "2")) as cluster:
        await cluster.ready(children=2)
        until(cluster.ledger, lambda lines: any(line.event == "start" for line in lines), 30)
        await cluster.terminate()
    [job] = (await rows.read(sqlite_url)).jobs
    assert (job.state, job.attempt, job.crashes) == ("succeeded", 1, 0)


@pytest.mark.campaign
@pytest.mark.parametrize("end", ["a sibling dies", "SIGTERM to the worker"])
@pytest.mark.parametrize("logs", [False, True], ids=["own logs", "onebeat's log config"])
async def test_no_worker_dies_with_jobs_before_its_lifespan_ends(
    end: str, logs: bool, sqlite_url: str, tmp_path: Path
) -> None:
    """Hypercorn ends the others at once when a worker died, without waiting for the end of their lifespans."""
    async with app.build(sqlite_url, role="client"):
        await app.work.enqueue_many([(5, True)] * 16)
    config = tmp_path / "log.json"
    config.write_text(json.dumps(uvicorn_log_config(console="json")))
    options = ("--log-config", f"json:{config}") if logs else ()
    with Cluster(sqlite_url, tmp_path, count=1, command=hypercorn("--workers", "2", *options)) as cluster:
        await cluster.ready(children=2)
        lines = until(cluster.ledger, lambda lines: sum(line.event == "start" for line in lines) == 16, 30)
        first, second = {line.pid for line in lines if line.event == "start"}
        os.kill(first, signal.SIGTERM if end == "SIGTERM to the worker" else signal.SIGKILL)
        if end == "SIGTERM to the worker":
            os.kill(second, signal.SIGTERM)
        await cluster.ended(40)
    mine = {line.job for line in lines if line.event == "start" and line.pid == second}
    ended = {(job.state, job.attempt, job.crashes) for job in (await rows.read(sqlite_url)).jobs if job.id in mine}
    assert ended == {("succeeded", 1, 0)}


def test_trio_is_refused_with_what_to_start_instead(sqlite_url: str, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
        "ONEBEAT_DATABASE_URL": sqlite_url,
        "PROOF_RUNNER": str(os.getpid()),
    }
    process = subprocess.Popen(
        [sys.executable, *hypercorn("-k", "trio")],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, text=True,
    )  # fmt: skip  # one argument a line says no more
    try:
        output, _ = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    assert "needs an asyncio event loop" in output
    assert "hypercorn -k asyncio" in output
    assert "get_running_loop" not in output.splitlines()[-1]
    assert process.returncode != -signal.SIGKILL, "it went on without a scheduler"
