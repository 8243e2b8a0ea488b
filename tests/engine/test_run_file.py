"""Run files of workers on one host."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import pytest

from onebeat.engine import run_file


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="run files need locks of files, which Windows has not")
def test_without_a_folder_of_its_own_a_worker_goes_by_its_lease_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / f"onebeat-{os.getuid()}"
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    assert run_file.directory() == folder
    folder.chmod(0o777)  # anyone could put files there that say who is dead
    assert run_file.directory() is None
    with contextlib.suppress(OSError):
        folder.rmdir()
    folder.write_text("no folder")
    assert run_file.directory() is None
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "missing"))
    assert run_file.directory() is None
    file = run_file.RunFile("w")
    file.hold()
    file.release()
    assert run_file.dead_siblings(["w"]) == []
