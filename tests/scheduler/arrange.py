"""A scheduler on a new SQLite file, two tasks, and an independent count of its jobs."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from onebeat import Scheduler


def scheduler_on(folder: Path, **settings: Any) -> Scheduler:
    """A scheduler on a new SQLite file."""
    return Scheduler(f"sqlite:///{folder / 'app.db'}", **settings)


def jobs_in(folder: Path) -> int:
    """How many job rows an independent reader sees."""
    with sqlite3.connect(folder / "app.db") as connection:
        [(count,)] = connection.execute("select count(*) from onebeat_jobs").fetchall()
    return int(count)


async def do_nothing() -> None:
    """Do nothing."""


async def do_nothing_else() -> None:
    """Do nothing either."""
