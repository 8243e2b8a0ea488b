"""The same tests on every other supported Python that is installed here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("3.12", "3.13", "3.14")


def interpreter(version: str) -> Path | None:
    """An installed Python of this version: on the path, or one of pyenv's."""
    if (found := shutil.which(f"python{version}")) and works(Path(found)):
        return Path(found)
    folder = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    return next((path / "bin" / "python" for path in sorted(folder.glob(f"{version}.*"))), None)


def works(python: Path) -> bool:
    """pyenv puts a program for each version on the path, also where that version is not active."""
    return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", VERSIONS)
def test_offload_works_on_the_other_pythons(version: str, tmp_path: Path) -> None:
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return  # this is the one that runs
    if (python := interpreter(version)) is None:
        pytest.skip(f"Python {version} is not installed here")
    home = tmp_path / "venv"
    subprocess.run([python, "-m", "venv", home], check=True)
    python = home / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-qq", "-e", f"{ROOT}[dev]"], check=True)
    done = subprocess.run(
        [python, "-m", "pytest", "-m", "not soak", "-p", "no:cacheprovider", "tests/offload"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
