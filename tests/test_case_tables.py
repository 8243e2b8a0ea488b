"""The tables of cases (`CASES.md` of logs, tracking and offload) hold every case, and each names tests that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGES = {"t": TESTS / "tracking", "f": TESTS / "fastapi", "o": TESTS / "offload"}  # how the tables abbreviate them
CASES = {"tracking": range(1, 51), "logs": range(51, 73), "offload": range(73, 89)}


@pytest.mark.parametrize("package", CASES)
def test_every_case_is_there_and_names_tests_that_exist(package: str) -> None:
    table = (TESTS / package / "CASES.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \| .+? \| (.+) \|$", table, re.MULTILINE)
    assert {int(number) for number, _ in rows} >= set(CASES[package])
    for number, cell in rows:
        named = list(named_in(cell, TESTS / package))
        assert named, f"case {number} names no test"
        for path, test in named:
            assert f"def {test}(" in path.read_text("utf-8"), f"case {number}: {test} is not in {path}"


def named_in(cell: str, folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield file and name of each test that a cell names; `…::name` means the file named before it."""
    path = folder
    for letter, file, test in re.findall(r"(?:\b([tfo])/)?(\w+\.py|…)::(test_\w+)", cell):
        path = path if file == "…" else PACKAGES.get(letter, folder) / file
        yield path, test
