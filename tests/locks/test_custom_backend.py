"""The contract for a back end of one's own: another project can run it, and no broken back end passes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(folder: Path, *options: str, without: str = "") -> subprocess.CompletedProcess[str]:
    """Run the contract of memory_backend.py in a project that has no settings for pytest or pytest-asyncio."""
    (folder / "test_memory.py").write_text((ROOT / "tests" / "locks" / "memory_backend.py").read_text())
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "test_memory.py"],
        cwd=folder, capture_output=True, text=True, timeout=110,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "WITHOUT": without},
    )  # fmt: skip


def test_another_project_runs_the_contract_as_documented(tmp_path: Path) -> None:
    ran = run(tmp_path)
    assert ran.returncode == 0, ran.stdout
    assert " passed" in ran.stdout
    assert "skipped" not in ran.stdout


@pytest.mark.parametrize(
    ("without", "caught"),
    [
        ("exclusion", "test_only_one_holds_it"),
        ("growing fences", "test_fences_grow_whoever_acquires"),
        ("renewal", "test_a_held_lock_outlives_its_ttl"),
        ("release", "test_only_one_holds_it"),
        ("owner in release", "test_a_release_that_comes_too_late_frees_nobody_elses_lock"),
        ("owner in renewal", "test_a_renewal_that_comes_too_late_takes_nothing_back"),
        ("expiry in renewal", "test_a_lease_that_ran_out_is_over_for_good"),
        ("repeating", "test_a_request_whose_answer_was_lost_is_recognised"),
    ],
)
def test_a_back_end_without_one_of_its_rules_does_not_pass(tmp_path: Path, without: str, caught: str) -> None:
    ran = run(tmp_path, "-k", caught, without=without)
    assert ran.returncode == 1, ran.stdout
    assert f"FAILED test_memory.py::TestMemoryLocks::{caught}" in ran.stdout
