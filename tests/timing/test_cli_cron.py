"""`onebeat cron` shows words, fires with their marks, and lint; faults end with one message and code 1 or 2."""

from __future__ import annotations

import subprocess
import sys


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "onebeat", "cron", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_it_shows_words_lint_and_marked_fires() -> None:
    done = run("30 2 * * *", "--tz", "Europe/Berlin", "-n", "2", "--after", "2026-03-28T12:00")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "at 02:30 every day, in Europe/Berlin",
        "note: 02:30 does not exist on 2026-03-29, when clocks go forward; it runs at 03:00 instead",
        "note: 02:30 comes twice on 2026-10-25, when clocks go back; it runs only the first time",
        "Sun 2026-03-29 03:00:00+02:00   2026-03-29 01:00:00Z   gap",
        "Mon 2026-03-30 02:30:00+02:00   2026-03-30 00:30:00Z",
        "gap: clocks go forward here; this fire stands for the times that do not exist",
    ]


def test_ten_fires_from_now_in_utc_unless_told_otherwise() -> None:
    done = run("*/5 * * * *")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("every 5 minutes, in UTC\n")
    assert len(done.stdout.splitlines()) == 11


def test_a_fault_is_one_line_with_its_position() -> None:
    done = run("60 * * * *")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip() == "onebeat: cron '60 * * * *', at 0: minute 60 is not within 0-59"
    assert run("0 9 * * *", "--tz", "Europe/Berln").returncode == 1
    assert run("0 9 * * *", "--after", "tomorrow").returncode == 2
    assert "bind" in run("H 9 * * *").stderr
    assert run("H 9 * * *", "--seed", "report", "-n", "1").returncode == 0
