"""What the tests of logs share: logging put back as it was, lines read back, scripts run in processes of their own."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onebeat.logs.record import RecordEncoder
from onebeat.logs.setup import reset_logging

ROOT = Path(__file__).resolve().parents[2]
Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    servers = {name: logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "uvicorn.access")}
    before = {name: (list(one.handlers), one.propagate, one.level) for name, one in servers.items()}
    yield
    reset_logging()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, one in servers.items():
        one.handlers[:], one.propagate = before[name][:2]
        one.setLevel(before[name][2])


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Runs Python source in a process of its own, in a directory of its own."""

    def run(source: str, *args: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "script.py"
        path.write_text(source)
        done = subprocess.run(
            [sys.executable, str(path), *args],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=100,
            **options,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    return run


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}


def read(directory: Path) -> list[dict[str, Any]]:
    """Every record of every file, in the order of the file names."""
    return [record for path in sorted(directory.glob("*.log")) for record in parsed(path.read_bytes())]


def parsed(data: bytes) -> list[dict[str, Any]]:
    assert data == b"" or data.endswith(b"\n"), "the last line is whole"
    return [json.loads(line) for line in data.splitlines()]


def encoded(encoder: RecordEncoder | None = None, **attributes: Any) -> dict[str, Any]:
    """What one record becomes, its exception rendered."""
    from onebeat.logs.failure import finished

    level = attributes.pop("level", logging.INFO)
    record = logging.LogRecord("shop", level, __file__, 7, attributes.pop("msg", "hello"), None, None, "f")
    record.__dict__.update(attributes)
    _, _, line, failure = (encoder or RecordEncoder()).encode(record)
    whole = finished(line, failure)
    assert whole.endswith(b"\n")
    assert whole.count(b"\n") == 1
    value: dict[str, Any] = json.loads(whole)
    return value
