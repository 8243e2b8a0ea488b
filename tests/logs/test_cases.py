"""The table of cases names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_every_test_named_in_the_table_exists() -> None:
    table = (HERE / "CASES.md").read_text("utf-8")
    named = set(re.findall(r"test_[a-z0-9_]+(?=`|\b)", table)) - {path.stem for path in HERE.glob("*.py")}
    defined = set(re.findall(r"def (test_\w+)", "".join(path.read_text("utf-8") for path in HERE.glob("test_*.py"))))
    assert len(named) > 30
    assert named <= defined
    assert set(map(int, re.findall(r"^\| (\d+) \|", table, re.MULTILINE))) >= set(range(51, 73))
