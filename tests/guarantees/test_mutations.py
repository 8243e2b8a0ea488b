"""tests/mutations.md and the tests it speaks of agree."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = (HERE.parent / "mutations.md").read_text("utf-8")
WITHOUT = re.compile(r"test_(without|with|by)_")  # how the tests of a mechanism taken out begin


def named_here() -> set[str]:
    found: set[str] = set()
    for path in HERE.glob("test_*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        found |= {node.name for node in tree.body if isinstance(node, functions) and node.name.startswith("test_")}
    return found


def test_every_test_the_page_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert named
    assert named - named_here() == set()


def test_every_mechanism_that_is_taken_out_is_on_the_page() -> None:
    assert {name for name in named_here() if WITHOUT.match(name)} - set(re.findall(r"`(test_\w+)`", PAGE)) == set()


def test_each_promise_has_a_test_named_after_it_and_one_without_its_mechanism() -> None:
    promises = {name.split("_")[1] for name in named_here() if re.match(r"test_g\d+_", name)}
    assert promises == {"g1", "g2", "g4", "g5", "g6", "g7", "g9", "g10"}
    assert {row.lower() for row in re.findall(r"^\| (G\d+) \|", PAGE, re.MULTILINE)} == promises
