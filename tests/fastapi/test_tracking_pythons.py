"""The tests of tracking, its layer and the logs under each Python that onebeat supports."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
VERSIONS = ("3.11", "3.12", "3.13")


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("version", VERSIONS)
def test_requests_and_context_under(version: str, tmp_path: Path) -> None:
    python = _find(version)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    subprocess.run([python, "-m", "venv", str(tmp_path / "venv")], check=True, env=environment)
    own = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([own, "-m", "pip", "install", "-qq", "-e", f"{ROOT}[dev]"], check=True, env=environment)
    folders = ["tests/tracking", "tests/fastapi", "tests/logs"]
    command = [own, "-m", "pytest", "-q", "-m", "not soak", *folders, "-p", "no:cacheprovider", f"--ignore={__file__}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-8000:]


def _find(version: str) -> str:
    """The interpreter that answers with this version, among those on the path, pyenv's and this one's neighbours."""
    candidates = [shutil.which(f"python{version}")]
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates += [str(path) for path in sorted(home.glob(f"versions/{version}*/bin/python{version}"))]
    for candidate in filter(None, candidates):
        asked = [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        done = subprocess.run(asked, capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip() == version:
            return candidate
    pytest.fail(f"Python {version} is not installed; it is one onebeat supports")
