"""The last words of a run name the zone data that was used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from zoneinfo import TZPATH

import tzdata


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The package's version, and the machine's where Python prefers that."""
    terminalreporter.write_line(f"zone data: {_machine() or 'none on this machine'}; tzdata {tzdata.IANA_VERSION}")


def _machine() -> str | None:
    for folder in TZPATH:
        listing = Path(folder) / "tzdata.zi"
        if listing.is_file():
            with listing.open(encoding="utf-8") as lines:
                match = re.search(r"version (\w+)", lines.readline())
            return f"{folder} {match[1] if match else '(no version)'}"
        if Path(folder).is_dir():
            return f"{folder} (no version)"
    return None
