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


def test_each_mode_has_its_own_fires_and_marks() -> None:
    autumn = ("30 2 * * *", "--tz", "Europe/Berlin", "-n", "2", "--after", "2026-10-25T01:00", "--dst")
    both = run(*autumn, "run_both").stdout.splitlines()
    assert "note: 02:30 comes twice on 2026-10-25, when clocks go back; it runs both times" in both
    assert [line.split("   ") for line in both if line.startswith(("Sun", "Mon"))] == [
        ["Sun 2026-10-25 02:30:00+02:00", "2026-10-25 00:30:00Z", "fold"],
        ["Sun 2026-10-25 02:30:00+01:00", "2026-10-25 01:30:00Z", "fold"],
    ]
    once = run(*autumn, "vixie").stdout.splitlines()
    assert [line.split("   ")[0] for line in once if line.startswith(("Sun", "Mon"))] == [
        "Sun 2026-10-25 02:30:00+02:00",
        "Mon 2026-10-26 02:30:00+01:00",
    ]
    spring = run(
        "30 2 * * *", "--tz", "Europe/Berlin", "-n", "1", "--after", "2026-03-28T12:00", "--dst", "skip_missing"
    )
    assert "when clocks go forward; it is left out" in spring.stdout
    assert "Mon 2026-03-30 02:30:00+02:00" in spring.stdout
    wrong = run(*autumn, "sometimes")
    assert (wrong.returncode, "'vixie', 'skip_missing', 'run_both'" in wrong.stderr) == (1, True)


def test_it_notes_what_the_rule_may_not_mean() -> None:
    assert "note: this is every minute of the hour" in run("* 9 * * *").stdout
    assert "note: the step of 7 minutes is uneven" in run("*/7 * * * *").stdout
    assert "note: both day fields are given: it runs when either matches" in run("0 0 1 * 1").stdout


def test_ten_fires_from_now_in_utc_unless_told_otherwise() -> None:
    done = run("*/5 * * * *")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("every 5 minutes, in UTC\n")
    assert len(done.stdout.splitlines()) == 11


def test_clock_changes_that_are_past_are_not_noted() -> None:
    done = run("30 2 * * *", "--tz", "Europe/Berlin", "-n", "1", "--after", "2026-11-28T12:00")
    assert [line[:45] for line in done.stdout.splitlines()[1:3]] == [
        "note: 02:30 does not exist on 2027-03-28, whe",
        "note: 02:30 comes twice on 2027-10-31, when c",
    ]


def test_a_fault_is_one_line_with_its_position() -> None:
    done = run("60 * * * *")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip() == "onebeat: cron '60 * * * *', at 0: minute 60 is not within 0-59"
    assert run("0 9 * * *", "--tz", "Europe/Berln").returncode == 1
    assert run("0 9 * * *", "--after", "tomorrow").returncode == 2
    assert "bind" in run("H 9 * * *").stderr
    assert run("H 9 * * *", "--seed", "report", "-n", "1").returncode == 0
