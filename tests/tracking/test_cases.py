"""The table of cases names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
ROOMS = {"t": HERE, "f": HERE.parent / "fastapi"}


def test_every_case_names_a_test_that_exists() -> None:
    rows = re.findall(r"^\| (\d+) \| .+? \| (.+) \|$", (HERE / "CASES.md").read_text("utf-8"), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 51))
    for number, cell in rows:
        named = re.findall(r"\b([tf])/(\w+\.py)::(\w+)", cell)
        assert named, f"case {number} names no test"
        for room, file, test in named:
            assert f"def {test}(" in (ROOMS[room] / file).read_text("utf-8"), f"case {number}: {test}"
