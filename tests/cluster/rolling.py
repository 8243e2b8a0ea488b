"""What the rolling restarts run: the tasks of `tests.cluster.app`, and one that runs in a child process."""

from __future__ import annotations

import os
import time
from typing import Any

from onebeat import Scheduler
from tests.cluster import app


def work_in_process(seconds: float) -> None:
    """Sleep in a child process, which can be ended."""
    time.sleep(seconds)


def build(database: str | None = None, **settings: Any) -> Scheduler:
    """A scheduler with all these tasks."""
    made = app.build(database, **settings)
    made.task(name="work_in_process", run_in="process")(work_in_process)
    return made


if "PROOF_RUNNER" in os.environ:
    scheduler = build()
    app.on_the_record(scheduler)
