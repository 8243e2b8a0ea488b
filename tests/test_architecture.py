"""The code keeps the layers that docs/architecture.md states, and the page draws every file."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "onebeat"
DOC = (ROOT / "docs" / "architecture.md").read_text("utf-8")
FILES = sorted(p for p in PACKAGE.rglob("*.py") if "versions" not in p.parts)
MODULES = {
    ".".join(("onebeat", *p.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): p for p in FILES
}

MUTABLE = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp, ast.Call)
MUTATORS = {"append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "remove", "discard", "clear"}


def layers() -> tuple[dict[str, int], dict[int, set[str]]]:
    """Package → layer, and layer → external packages, as the page's table says."""
    numbers: dict[str, int] = {}
    external: dict[int, set[str]] = {}
    for number, names, packages in re.findall(r"^\| (\d) \| (.+?) \| (.+?) \|$", DOC, re.MULTILINE):
        numbers.update(dict.fromkeys(names.split(", "), int(number)))
        external[int(number)] = set(packages.split(", ")) - {"–"}
    return numbers, external


def imports(path: Path) -> set[str]:
    """Absolute names of what a file imports when it runs: modules, or names in them."""
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


def graph() -> dict[str, set[str]]:
    """Module → the modules of this package that it imports, function bodies included."""
    edges: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        targets = {name if name in MODULES else name.rpartition(".")[0] for name in imports(path)}
        edges[module] = {name for name in targets if name in MODULES and name != module}
    return edges


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The cycles of a graph, each as the path on which a depth-first walk met it."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for target in sorted(edges[module]):
                walk(target, [*path, module])
            done.add(module)

    for module in sorted(edges):
        walk(module, [])
    return found


def package(module: str) -> str:
    """The part of a module's name that the table of layers lists."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def test_a_cycle_of_imports_is_found() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["b", "c", "b"]]


def test_no_module_imports_itself_through_others() -> None:
    assert not cycles(graph()), "an import cycle: move what both need to a module below them"


def test_the_page_draws_every_file_with_its_first_line() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "draw_architecture.py"), "--check"]
    drawn = subprocess.run(command, check=False)
    assert drawn.returncode == 0, "run `python scripts/draw_architecture.py`"
    names = [line.split()[0] for line in DOC.split("```")[1].splitlines() if ".py " in line]
    assert len(names) == len(FILES)


def test_each_file_says_what_it_holds() -> None:
    silent = [str(p) for p in FILES if not (ast.get_docstring(ast.parse(p.read_text("utf-8"))) or "").strip()]
    assert len(FILES) > 100
    assert silent == [], "a file begins with one sentence about what it holds"


def test_every_import_points_downward() -> None:
    numbers, external = layers()
    for module in MODULES:
        if module != "onebeat":
            imports_downward(module, numbers, external)


def imports_downward(module: str, numbers: dict[str, int], external: dict[int, set[str]]) -> None:
    own = package(module)
    layer = numbers[own]
    allowed = set().union(*(external[n] for n in range(layer + 1)))
    for name in imports(MODULES[module]):
        top, *rest = name.split(".")
        if top == "onebeat":
            target = rest[0] if rest and rest[0] in numbers else None
            assert target is not None, f"{module}: {name}: import from the defining module"
            assert numbers[target] <= layer, f"{module}: layer {layer} must not import {name}"
            if layer == 5 and own != "__main__":
                assert numbers[target] < 5 or target == own, f"{module}: surfaces never import each other ({name})"
        elif top not in sys.stdlib_module_names:
            assert top in allowed, f"{module}: layer {layer} must not import {top}"


@pytest.mark.parametrize(
    ("own", "others"),
    [("timing", {"timing", "errors"}), ("concurrency", {"concurrency"}), ("model", {"model", "timing", "errors"})],
)
def test_the_lowest_packages_import_only_what_the_page_allows(own: str, others: set[str]) -> None:
    edges = graph()
    reached = {package(target) for module, targets in edges.items() if package(module) == own for target in targets}
    assert reached <= others
    if own == "concurrency":
        foreign = {name.split(".")[0] for m in MODULES if package(m) == own for name in imports(MODULES[m])}
        assert foreign - set(sys.stdlib_module_names) <= {"onebeat"}


@pytest.mark.parametrize("module", [m for m in MODULES if package(m) == "model"])
def test_model_modules_hold_no_state_of_the_process(module: str) -> None:
    assert not imports(MODULES[module]) & {"asyncio", "contextvars", "threading", "logging"}
    assert not written_globals(MODULES[module])


def written_globals(path: Path) -> set[str]:
    """Return the module-level names that this module changes after it is imported."""
    tree = ast.parse(path.read_text("utf-8"))
    mutable = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, MUTABLE)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    written: set[str] = set()
    rebound: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Global(names=names):
                rebound.update(names)
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method)) if method in MUTATORS:
                written.add(name)
            case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()):
                written.add(name)
            case ast.AugAssign(target=ast.Name(id=name)):
                written.add(name)
    return mutable & written | rebound


def test_a_module_level_list_that_is_written_is_found(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("KNOWN = ['a']\nseen: list[str] = []\n\ndef see(name):\n    seen.append(name)\n", "utf-8")
    assert written_globals(module) == {"seen"}


def test_fastapi_is_imported_below_the_surfaces_in_one_place() -> None:
    numbers, _ = layers()
    importers = [m for m in MODULES if numbers.get(package(m), 5) < 5 and _imports_fastapi(MODULES[m])]
    assert importers == ["onebeat.tasks.dependencies"]


def _imports_fastapi(path: Path) -> bool:
    return any(name.split(".")[0] == "fastapi" for name in imports(path))


def test_the_dialects_name_is_read_in_one_place() -> None:
    readers = [
        str(p.relative_to(PACKAGE))
        for p in FILES
        if re.search(r"dialect\.name|\.drivername|get_backend_name", p.read_text("utf-8"))
    ]
    assert set(readers) <= {"store/dialects/by_url.py", "store/tables/columns.py"}


def test_one_name_means_one_thing() -> None:
    """No two public classes of the package share a name."""
    classes: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes.setdefault(node.name, []).append(module)
    assert {name: where for name, where in classes.items() if len(where) > 1} == {}
