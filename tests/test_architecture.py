"""The house as drawn in docs/architecture.md is the house as built."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "onebeat"
DOC = (ROOT / "docs" / "architecture.md").read_text("utf-8")
FILES = sorted(p for p in PACKAGE.rglob("*.py") if "versions" not in p.parts)


def drawn() -> dict[str, str]:
    """Path inside the package → caption, as the document draws it."""
    block = DOC.split("```")[1]
    captions: dict[str, str] = {}
    folders: list[str] = []
    for line in block.splitlines():
        match = re.match(r"( *)(\S+?)(/?)(?: {2,}(.*))?$", line)
        if not line.strip() or not match:
            continue
        depth, name, folder, caption = len(match[1]) // 4, match[2], match[3], match[4]
        del folders[depth:]
        if folder:
            folders.append(name)
        else:
            captions["/".join([*folders[1:], name])] = caption or ""
    return captions


def layers() -> tuple[dict[str, int], dict[int, set[str]]]:
    """Room → layer, and layer → external packages, as the document's table says."""
    rooms: dict[str, int] = {}
    packages: dict[int, set[str]] = {}
    for number, names, external in re.findall(r"^\| (\d) \| (.+?) \| (.+?) \|$", DOC, re.MULTILINE):
        rooms.update(dict.fromkeys(names.split(", "), int(number)))
        packages[int(number)] = set(external.split(", ")) - {"–"}
    return rooms, packages


def same(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().rstrip(".").lower()


def imports(path: Path) -> set[str]:
    """Absolute names of what a file imports when it runs."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                visit(other)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import from the defining module by its full name"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text("utf-8")))
    return found


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_each_file_is_drawn_with_its_caption(path: Path) -> None:
    caption = drawn().get(path.relative_to(PACKAGE).as_posix())
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    assert caption is not None, "draw this file in docs/architecture.md"
    assert same(docstring.splitlines()[0] if docstring else "") == same(caption)


def test_everything_drawn_exists() -> None:
    missing = [name for name in drawn() if not (PACKAGE / name).exists()]
    assert not missing


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_point_downward(path: Path) -> None:
    rooms, packages = layers()
    own = room(path)
    if own == "__init__":
        return  # the root loads its names lazily, from any layer
    layer = rooms[own]
    allowed = set().union(*(packages[n] for n in range(layer + 1)))
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "onebeat":
            target = rest[0] if rest and rest[0] in rooms else None
            assert target is not None, f"{path}: {name}: import from the defining module"
            assert rooms[target] <= layer, f"{path}: layer {layer} must not import {name}"
            if layer == 5 and own != "__main__":
                assert rooms[target] < 5 or target == own, f"{path}: surfaces never import each other ({name})"
        elif top not in sys.stdlib_module_names:
            assert top in allowed, f"{path}: layer {layer} must not import {top}"


def test_the_dialects_name_is_read_in_one_place() -> None:
    readers = [
        str(p.relative_to(PACKAGE))
        for p in FILES
        if re.search(r"dialect\.name|\.drivername|get_backend_name", p.read_text("utf-8"))
    ]
    assert set(readers) <= {"store/dialects/by_url.py", "store/tables.py"}
