"""The pytest plugin, in runs of pytest as a user's project has them."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import onebeat.testing
from onebeat.testing.pytest_plugin import scheduler_named

SHOP = """
from onebeat import Scheduler

scheduler = Scheduler("postgresql://nobody@localhost:1/nothing")

@scheduler.cron("0 3 * * *", timezone="Europe/Berlin")
async def nightly() -> None: ...
"""

TESTS = """
from datetime import UTC, datetime

import pytest
from shop import nightly

pytestmark = pytest.mark.onebeat(now="2026-03-28T12:00:00+01:00")


@pytest.mark.asyncio
async def test_with_pytest_asyncio(beat):
    await beat.advance(days=3)
    assert len(beat.fired("nightly")) == 3


@pytest.mark.anyio
async def test_with_anyio(beat):
    await beat.advance(days=1)
    beat.assert_enqueued(nightly)


@pytest.mark.onebeat(now="2026-01-01T00:00:00+00:00", workers=2)
def test_without_a_loop(sync_beat):
    sync_beat.advance(hours=2)
    assert sync_beat.workers == (0, 1)
    assert sync_beat.now() == datetime(2026, 1, 1, 2, tzinfo=UTC)
    assert [fire.decision for fire in sync_beat.fired("nightly")] == ["started"]
"""

ANYIO = """
import pytest

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""

MISTAKES = """
import pytest
from onebeat import Scheduler

class TestMarker:
    @pytest.fixture
    def onebeat_scheduler(self):
        return Scheduler("sqlite://")

    @pytest.mark.onebeat("2026-01-01T00:00:00+00:00")
    def test_positional(self, sync_beat): ...

    @pytest.mark.onebeat(now="noon")
    def test_no_instant(self, sync_beat): ...

    def test_own_fixture(self, sync_beat): ...
"""


def pytest_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a folder, with the plugin, which an installed onebeat brings along."""
    plugin = scheduler_named.__module__
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    if plugin not in {point.value for point in entry_points(group="pytest11")}:  # installed before it had the plugin
        command += ["-p", plugin]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=100
    )


def test_the_fixtures_serve_tests_of_each_kind_and_tell_mistakes(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP, "utf-8")
    (tmp_path / "conftest.py").write_text(ANYIO, "utf-8")
    (tmp_path / "test_shop.py").write_text(TESTS, "utf-8")
    (tmp_path / "test_mistakes.py").write_text(MISTAKES, "utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nonebeat_scheduler = shop:scheduler\n", "utf-8")
    run = pytest_in(tmp_path, "--strict-markers", "--tb=line", "-W", "error::pytest.PytestCollectionWarning")
    assert "4 passed, 2 errors" in run.stdout, run.stdout + run.stderr
    for words in ("takes named arguments", "now='noon' is no instant"):
        assert words in run.stdout


def test_a_run_that_does_not_use_the_plugin_does_not_load_the_engine() -> None:
    code = (
        "import sys, onebeat.testing.pytest_plugin; print([m for m in ('sqlalchemy', 'fastapi') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "set onebeat_scheduler = module:attribute"),
        ("no_such_module:scheduler", "No module named 'no_such_module'"),
        ("onebeat:planner", "has no attribute"),
    ],
)
def test_a_setting_that_names_no_scheduler_is_told(name: str, words: str) -> None:
    with pytest.raises(pytest.UsageError, match=words):
        scheduler_named(name)


def test_an_installed_onebeat_brings_the_plugin() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"onebeat": scheduler_named.__module__}


@pytest.mark.parametrize("name", ["TestScheduler", "SyncTestScheduler"])
def test_pytest_takes_no_class_of_the_kit_for_tests(name: str) -> None:
    assert getattr(onebeat.testing, name).__test__ is False
