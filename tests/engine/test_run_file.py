"""Run files of workers on one host."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import pytest

from onebeat.concurrency.private_folder import private_folder
from onebeat.engine import run_file
from onebeat.model.ids import token


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="run files need locks of files, which Windows has not")
def test_without_a_folder_of_its_own_a_worker_goes_by_its_lease_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / f"onebeat-{os.getuid()}"
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    assert private_folder() == folder
    folder.chmod(0o777)  # anyone could put files there that say who is dead
    assert private_folder() is None
    with contextlib.suppress(OSError):
        folder.rmdir()
    folder.write_text("no folder")
    assert private_folder() is None
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "missing"))
    assert private_folder() is None
    file = run_file.RunFile("w")
    file.hold()
    file.release()
    assert run_file.dead_siblings([token()]) == []


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="run files need locks of files, which Windows has not")
def test_an_id_that_no_worker_made_removes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker ids come from the database, where another application may write."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    folder = private_folder()
    assert folder is not None
    dead = token()
    odd = [f"../{dead}", f"{tmp_path}/{dead}", "w", f"./{dead}", f"{dead}.run/../{dead}", dead.upper(), f"{dead}\n"]
    for place in (folder, tmp_path):
        for name in (dead, "w", f"{dead}\n", dead.upper()):
            (place / f"{name}.run").touch()
    assert run_file.dead_siblings(odd) == []
    assert len([*tmp_path.glob("*.run"), *folder.glob("*.run")]) == 8
    assert run_file.dead_siblings([*odd, dead]) == [dead]
    assert not (folder / f"{dead}.run").exists()
