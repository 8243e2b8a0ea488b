"""`make databases` makes servers of this clone's own, and leaves those of the system as they are."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.servers import ROOT, VARIABLES

NOT_COPIED = (".git", ".run", ".venv*", ".*_cache", ".hypothesis", "__pycache__", "*.db*")
ELSEWHERE = {VARIABLES[kind]: f"{kind}://elsewhere/" for kind in ("postgresql", "mariadb")}
PARTS = ("scripts/databases.py", "tests/__init__.py", "tests/support/__init__.py", "tests/support/servers.py")
MADE = Path(".run") / "databases"


def clone(folder: Path, *parts: str) -> Path:
    """A copy of the clone, or of a few of its files, whose `.venv` is the Python of this test."""
    target = folder / "clone"
    if parts:
        for part in parts:
            (target / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / part, target / part)
    else:
        shutil.copytree(ROOT, target, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
        python = target / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
    return target


def databases(target: Path, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    unknown = {*VARIABLES.values(), "ONEBEAT_TEST_INSTALL"}
    known = {name: value for name, value in os.environ.items() if name not in unknown}
    return subprocess.run(
        [sys.executable, target / "scripts" / "databases.py", command],
        env={**known, **environment}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip


def ping(password: str, port: int) -> str:
    command = ["redis-cli", "-h", "127.0.0.1", "-p", str(port), "ping"]
    return subprocess.run(command, env={**os.environ, "REDISCLI_AUTH": password}, capture_output=True, text=True).stdout


def works_in(folder: Path) -> list[Path]:
    """The processes that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd").startswith(str(folder.resolve())):
                found.append(process)
        except OSError:  # it ended meanwhile
            continue
    return found


@pytest.mark.skipif("not shutil.which('redis-server') or sys.platform != 'linux'", reason="there is no Redis, or /proc")
def test_a_server_of_the_clone_needs_its_password_and_is_not_roots(tmp_path: Path) -> None:
    target = clone(tmp_path, *PARTS)
    try:
        first = databases(target, "start", **ELSEWHERE)
        assert first.returncode == 0, first.stderr
        file = target / MADE / "servers.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        kept = json.loads(file.read_text())
        assert list(kept) == ["redis"], "the other two have addresses by variables"
        port = int(kept["redis"]["url"].rpartition(":")[2].partition("/")[0])
        assert ping(kept["redis"]["password"], port) == "PONG\n"
        assert "PONG" not in ping("", port)
        home = Path(kept["redis"]["home"])
        (process,) = works_in(home)
        assert process.stat().st_uid != 0
        assert kept["redis"]["password"] not in (process / "cmdline").read_text() + first.stdout + first.stderr
        assert databases(target, "start", **ELSEWHERE).returncode == 0
        assert works_in(home) == [process], "a server that runs is kept"
    finally:
        removed = databases(target, "remove", **ELSEWHERE)
    assert removed.returncode == 0, removed.stderr
    assert not works_in(home)
    assert not (target / MADE).exists()
    assert not home.exists()


def test_a_missing_program_is_installed_by_explicit_wish_only(tmp_path: Path) -> None:
    target = clone(tmp_path, *PARTS)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "apt-get").write_text(f"#!/bin/sh\necho called >> {tmp_path}/calls\n")
    (tools / "apt-get").chmod(0o755)
    environment = {"PATH": str(tools), **ELSEWHERE}
    refused = databases(target, "start", **environment)
    assert refused.returncode == 1
    assert "redis: its program is missing; install the package redis-server, or name a server in" in refused.stderr
    assert not (tmp_path / "calls").exists()
    if os.getuid() == 0:
        assert databases(target, "start", ONEBEAT_TEST_INSTALL="1", **environment).returncode == 1
        assert (tmp_path / "calls").read_text() == "called\n" * 2
    assert databases(target, "remove", **environment).returncode == 0


@pytest.mark.campaign  # the small versions are above
@pytest.mark.timeout(600)
@pytest.mark.skipif("os.getuid() != 0 or not shutil.which('unshare')", reason="needs root, for a network of its own")
def test_servers_of_the_system_that_have_passwords_stay_as_they_are() -> None:
    """Stand-ins take the usual ports and the system's folders, in a network and a process table of their own."""
    with tempfile.TemporaryDirectory(prefix="onebeat-neighbours-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the servers' users pass through
        done = subprocess.run(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
             sys.executable, "-m", "tests.support.neighbours", str(clone(folder)), str(folder)],
            cwd=ROOT, capture_output=True, text=True, timeout=580,
        )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    assert done.stdout.count("as before") == 3, done.stdout
