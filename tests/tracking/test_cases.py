"""The tables of cases, here and of work off the event loop, name tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
ROOMS = {"t": TESTS / "tracking", "f": TESTS / "fastapi", "o": TESTS / "offload"}


@pytest.mark.parametrize(("room", "numbers"), [("tracking", range(1, 51)), ("offload", range(73, 89))])
def test_every_case_names_a_test_that_exists(room: str, numbers: range) -> None:
    rows = re.findall(r"^\| (\d+) \| .+? \| (.+) \|$", (TESTS / room / "CASES.md").read_text("utf-8"), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(numbers)
    for number, cell in rows:
        named = re.findall(r"\b([tfo])/(\w+\.py)::(\w+)", cell)
        assert named, f"case {number} names no test"
        for where, file, test in named:
            assert f"def {test}(" in (ROOMS[where] / file).read_text("utf-8"), f"case {number}: {test}"
