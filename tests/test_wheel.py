"""What is shipped: the wheel's contents, and words the source must not hold."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "onebeat"
SOURCES = sorted(PACKAGE.rglob("*.py"))
IMPORTERS = {
    "__init__.py",
    "cli/target.py",
    "locks/__init__.py",
}  # names come from this code, argv or the registry in memory


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    [built] = folder.glob("onebeat-*.whl")
    return built


def test_the_wheel_holds_the_package_whole_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in names if ".dist-info/" not in name}
    here = {
        f"onebeat/{path.relative_to(PACKAGE).as_posix()}"
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert package == here
    assert "onebeat/py.typed" in package
    info = {name.split(".dist-info/")[1] for name in names - package}
    assert {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"} <= info


def test_the_wheel_works_from_its_own_files(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import onebeat, sys\n"
        f"assert onebeat.__file__.startswith({str(tmp_path)!r}), onebeat.__file__\n"
        "for name in onebeat.__all__: getattr(onebeat, name)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True)
    help_ = [sys.executable, "-m", "onebeat", "--help"]
    shown = subprocess.run(help_, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "--version" in shown.stdout


def test_no_source_turns_data_into_code() -> None:
    """No pickle outside offload (processes of one host, never the database), no marshal, eval, exec or yaml.load."""
    assert len(SOURCES) > 100
    assert {str(path): found for path in SOURCES if (found := turns_data_into_code(path))} == {}


def turns_data_into_code(path: Path) -> set[str]:
    """Return the names in this source file that it may not use."""
    where = path.relative_to(PACKAGE).as_posix()
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Call):
            found.add(ast.unparse(node.func))
    forbidden = {"marshal", "shelve", "dill", "cloudpickle", "eval", "exec", "yaml.load", "__import__"}
    if not where.startswith("offload/"):
        forbidden |= {"pickle", "_pickle"}
    if where not in IMPORTERS and not where.startswith("offload/"):  # a child of ours is told by its parent
        forbidden |= {"import_module", "importlib.import_module"}  # nothing is imported by a stored name
    return found & forbidden


def test_no_bound_admits_a_driver_with_a_known_flaw(wheel: Path) -> None:
    """asyncmy before 0.2.12 puts the keys of a dict into SQL as they are (CVE-2025-65896)."""
    with zipfile.ZipFile(wheel) as packed:
        [name] = [name for name in packed.namelist() if name.endswith("/METADATA")]
        metadata = packed.read(name).decode()
    assert "Requires-Dist: asyncmy>=0.2.12; extra == 'mysql'" in metadata
