"""The stretches of constant offset are those the zone files themselves say, and a fingerprint notices other data."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from datetime import UTC, datetime, timedelta, tzinfo
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from zoneinfo import TZPATH, ZoneInfo

import pytest

from onebeat.errors import InvalidTrigger
from onebeat.timing import zones as module
from onebeat.timing.clock import DAY, SECOND, to_us
from onebeat.timing.cron import expression
from onebeat.timing.dst import Dst, next_occurrence, previous_occurrence
from onebeat.timing.zones import Zone, changed, fingerprint, stale, zone, zone_name
from tests.timing.oracle import changes, zones

SINCE = int(datetime(1970, 1, 1, tzinfo=UTC).timestamp())
UNTIL = int(datetime(2037, 12, 31, tzinfo=UTC).timestamp())


def written(name: str) -> list[tuple[int, int]]:
    """(instant, offset from then on) as the zone's file lists them, where the offset changes."""
    for folder in TZPATH:
        path = Path(folder) / name
        if path.is_file():
            data = path.read_bytes()
            break
    else:
        package = files("tzdata") / "zoneinfo"
        for part in name.split("/"):
            package = package / part
        data = package.read_bytes()
    stream = io.BytesIO(data)
    counts = struct.unpack(">4s c 15x 6l", stream.read(44))
    if counts[1] >= b"2":  # the second block has the wide instants
        isutc, isstd, leap, times, types, chars = counts[2:]
        stream.seek(44 + times * 5 + types * 6 + chars + leap * 8 + isstd + isutc)
        counts = struct.unpack(">4s c 15x 6l", stream.read(44))
    _, _, _, times, types, _ = counts[2:]
    instants = struct.unpack(f">{times}q", stream.read(8 * times))
    indices = stream.read(times)
    offsets = [struct.unpack(">lbb", stream.read(6))[0] for _ in range(types)]
    found: list[tuple[int, int]] = []
    for instant, index in zip(instants, indices, strict=True):
        before = found[-1][1] if found else offsets[0]
        if offsets[index] != before or not found:
            found.append((instant, offsets[index]))
    return found


def test_no_two_changes_are_closer_than_the_step_at_which_zones_are_looked_at() -> None:
    close = [
        (name, a, b)
        for name in zones()
        for (a, _), (b, _) in pairwise(written(name))
        if a > SINCE and b - a <= module._STEP
    ]
    assert close == []


@pytest.mark.parametrize("nth", [100, pytest.param(1, marks=[pytest.mark.soak, pytest.mark.timeout(3_600)])])
def test_every_change_in_the_files_is_found_to_the_second(nth: int) -> None:
    for name in zones()[::nth]:
        known = {instant for instant, _ in written(name) if SINCE < instant < UNTIL}
        seen = {start for start, _, _ in Zone(name, ZoneInfo(name)).spans(SINCE, UNTIL)} - {SINCE}
        assert known <= seen | {i for i in known if zone(name).offset(i) == zone(name).offset(i - 1)}, name


def test_pieces_agree_with_the_hourly_look_of_the_oracle() -> None:
    for name in ("Europe/Berlin", "Africa/Casablanca", "Australia/Lord_Howe"):
        for year in (2020, 2037):
            at, found = int(datetime(year, 1, 1, tzinfo=UTC).timestamp()), []
            end = int(datetime(year + 1, 1, 1, tzinfo=UTC).timestamp())
            while at < end:
                period = zone(name).period(at)
                if period.wall_before != period.start + period.offset and period.start >= at:
                    found.append(datetime.fromtimestamp(period.start, UTC))
                at = period.end
            assert tuple(found) == changes(name, year)


@pytest.mark.parametrize("block", [3_600, 5 * 3_600, 86_400])
def test_fires_do_not_depend_on_where_a_block_begins(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    rules = [expression("0,15,30,45 0,1,2,3,12,23 * * *"), expression("*/15 * * * *")]
    changed_at = [("Europe/Berlin", 2026), ("Antarctica/Troll", 2026), ("Africa/Cairo", 2026), ("Pacific/Apia", 2011)]
    for name, year in changed_at:
        for change in changes(name, year):
            at = round(change.timestamp())
            moments = range(at - 4 * 3_600, at + 4 * 3_600, 420)
            expected = [next_occurrence(rule, zone(name), Dst.VIXIE, moment) for rule in rules for moment in moments]
            back = [previous_occurrence(rule, zone(name), Dst.VIXIE, moment) for rule in rules for moment in moments]
            with monkeypatch.context() as patch:
                patch.setattr(module, "_BLOCK", block)
                other = Zone(name, ZoneInfo(name))
                assert [next_occurrence(rule, other, Dst.VIXIE, m) for rule in rules for m in moments] == expected
                assert [previous_occurrence(rule, other, Dst.VIXIE, m) for rule in rules for m in moments] == back


def test_blocks_are_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT", 10)
    berlin = Zone("Europe/Berlin", ZoneInfo("Europe/Berlin"))
    for n in range(100):
        berlin.period(n * 40 * 86_400)
    assert len(berlin._blocks) <= 10


def test_a_fingerprint_stays_equal_while_the_data_does_and_notices_other_data() -> None:
    now = to_us(datetime(2026, 11, 1, tzinfo=UTC))
    stored = fingerprint("Europe/Berlin", now)
    assert not changed("Europe/Berlin", stored)
    assert fingerprint("Europe/Berlin", now + 3600 * SECOND) == stored
    assert changed("America/New_York", stored)
    assert changed("Europe/Berlin", "")
    assert not stale(stored, now + 199 * DAY)
    assert stale(stored, now + 201 * DAY)
    assert stale("nonsense", now)
    assert len(fingerprint("Europe/Berlin", now + 100_000 * DAY)) <= 64


def test_zones_are_there_on_a_machine_without_zone_data() -> None:
    """A slim image has none; the package `tzdata` stands in."""
    code = (
        "from datetime import UTC, datetime; from onebeat import Cron;"
        "print(Cron('30 2 * * *', 'Europe/Berlin').next_after(datetime(2026, 3, 28, 12, tzinfo=UTC)).isoformat())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONTZPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("2026-03-29T03:00:00+02:00", "")


@pytest.mark.parametrize("given", ["Europe/Berlin", ZoneInfo("Europe/Berlin"), UTC, "UTC", "America/Port-au-Prince"])
def test_zones_are_given_by_name_or_as_zoneinfo(given: str | tzinfo) -> None:
    assert zone_name(given) == (getattr(given, "key", None) or ("UTC" if given is UTC else given))


def test_a_nameless_zone_is_refused() -> None:
    from datetime import timezone

    with pytest.raises(InvalidTrigger, match="by name"):
        zone_name(timezone(timedelta(hours=2)))
