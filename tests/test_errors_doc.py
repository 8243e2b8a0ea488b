"""docs/errors.md names every error and every fault, and each row's test exists."""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache
from pathlib import Path

import pytest

from onebeat import errors

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "errors.md").read_text("utf-8")
CLASSES = sorted(
    name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, errors.OnebeatError)
)


def rows() -> list[list[str]]:
    """The cells of every table row, headings and rules left out."""
    lines = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if row[-1] != "test"]


@cache
def functions_of(path: str) -> set[str]:
    """Names of the test functions in a file."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("name", CLASSES)
def test_every_error_class_has_a_row(name: str) -> None:
    assert [row for row in rows() if row[0] == f"`{name}`"], f"docs/errors.md lacks a row for {name}"


@pytest.mark.parametrize("name", sorted({row[0].strip("`") for row in rows() if re.fullmatch(r"`\w+`", row[0])}))
def test_every_error_that_is_named_exists(name: str) -> None:
    assert name in CLASSES


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0].strip("`")[:50])
def test_every_row_names_a_test_that_exists(row: list[str]) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[-1])
    assert named, f"no test is named: {row}"
    for path, test in named:
        assert (ROOT / path).exists(), f"{path} does not exist"
        assert test in functions_of(path), f"{test} is not in {path}"


def test_the_tree_drawn_in_the_source_is_the_tree() -> None:
    drawn = (
        set(re.findall(r"^[│├└─ ]*(\w+)", errors.__doc__.split("\n\n", 1)[1], re.MULTILINE))
        if errors.__doc__
        else set()
    )
    assert set(CLASSES) <= drawn
