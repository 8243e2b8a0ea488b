"""Requests that use the application's own sessions and enqueue, on one SQLite file beside a busy worker."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from tests.fastapi.served import serving

ROUTES = ("add-sync", "add-mixed", "add-async", "read-sync", "read-async", "together-sync", "together-async")


def test_a_request_that_has_used_its_session_enqueues_without_a_wait(tmp_path: Path) -> None:
    with serving(tmp_path, app="tests.fastapi.orders:served") as server:
        assert server.get("/busy").json() == "busy"
        seconds = []
        for number in range(56):
            started = time.monotonic()
            answer = server.get("/" + ROUTES[number % len(ROUTES)])
            seconds.append(time.monotonic() - started)
            assert (answer.status, answer.body) == (200, b'"queued"'), server.errors.read_text()
    assert statistics.median(seconds) < 1, seconds
    assert "locked" not in server.errors.read_text()
