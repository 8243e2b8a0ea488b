"""Every example that is shown runs: the docstrings' and the marked Python blocks of README and docs."""

from __future__ import annotations

import ast
import asyncio
import doctest
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

import onebeat
import onebeat.model.events
from onebeat import Event, OnebeatError, Settings

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "onebeat"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RUNS = re.compile(r"<!-- runs -->\n```python\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\[[^\]]+\]\(([^)#:]+)(?:#[^)]*)?\)")


def modules() -> list[str]:
    """Every module of the package, by name, except the one that runs the command line when imported as a program."""
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("onebeat", *path.relative_to(PACKAGE).with_suffix("").parts)
        if "versions" not in parts:  # Alembic loads its revisions itself
            names.append(".".join(parts).removesuffix(".__init__"))
    return names


@pytest.mark.parametrize("name", modules())
def test_the_examples_in_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
    result = doctest.testmod(import_module(name), optionflags=flags)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples failed; the output is above"


def blocks() -> list[tuple[str, int, str]]:
    """Page, line and text of each block marked `<!-- runs -->`."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        for match in RUNS.finditer(text):
            line = text[: match.start(1)].count("\n") + 1
            found.append((page.relative_to(ROOT).as_posix(), line, match[1]))
    return found


@pytest.mark.parametrize(("page", "line", "block"), blocks(), ids=lambda part: str(part) if len(str(part)) < 60 else "")
async def test_the_marked_blocks_of_the_pages_run(
    page: str, line: int, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`await` may stand at the top level; the working folder is empty."""
    monkeypatch.chdir(tmp_path)
    tree = ast.parse(block, filename=page)
    ast.increment_lineno(tree, line - 1)
    code = compile(tree, str(ROOT / page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    namespace: dict[str, object] = {"__name__": "page"}
    if code.co_flags & inspect.CO_COROUTINE:
        async with asyncio.timeout(60):
            await eval(code, namespace)
    else:
        exec(code, namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = [match[1] for match in LINK.finditer(page.read_text("utf-8"))]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []


def test_every_public_name_has_an_example_that_runs() -> None:
    """In its docstring or in a marked block; errors and events are listed on their pages, which tests walk."""
    shown = "\n".join(block for _, _, block in blocks())
    without = []
    for name in onebeat.__all__:
        value = getattr(onebeat, name)
        listed = isinstance(value, type) and issubclass(value, OnebeatError | Event)
        if not listed and ">>>" not in (inspect.getdoc(value) or "") and not re.search(rf"\b{name}\b", shown):
            without.append(name)
    assert without == []


def test_the_page_lists_every_setting_with_its_default_and_every_event() -> None:
    page = (ROOT / "docs" / "reference.md").read_text("utf-8")
    told = {name: default.strip("`") for name, default in re.findall(r"^\| `(\w+)` \| (.+?) \|", page, re.MULTILINE)}
    words = {"database_url": "–", "app": "–", "queues": "all", "schema": "–", "retention": "7 and 30 days"}
    real = {}
    for name, field in Settings.model_fields.items():
        shown = name.rstrip("_")
        default = str(field.get_default()).lower() if isinstance(field.get_default(), bool) else field.get_default()
        real[shown] = words.get(shown, str(default))
    assert told == real
    events = [name for name, value in vars(onebeat.model.events).items() if _is_event(value)]
    assert [name for name in events if f"`{name}`" not in page] == []


def _is_event(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Event)
