"""Files named by date: the right day, nothing lost to removal, rotation by others, full disks or strange neighbours."""

from __future__ import annotations

import os
import time
from collections import deque
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from onebeat.errors import ConfigurationError
from onebeat.logs.files import DatedFiles, _disk_of, on_local_disk, prune
from onebeat.logs.queue import BoundedQueue, Bucket
from tests.logs.conftest import Script, read

DAY = 86_400


def batch(*entries: tuple[float, bytes]) -> deque[Bucket]:
    queue = BoundedQueue(records=1_000_000)
    for moment, line in entries:
        assert queue.put((moment, 40, line, None))
    return queue.take(1 << 40)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_each_line_goes_to_the_file_of_its_own_date_whenever_it_is_written(tmp_path: Path) -> None:
    files = DatedFiles(tmp_path, keep_days=None)
    midnight = datetime(2026, 3, 2, tzinfo=UTC).timestamp()
    late = batch((midnight - 0.001, b"a\n"), (midnight, b"b\n"), (midnight - 1, b"c\n"), (midnight + DAY, b"d\n"))
    files.write(late)
    assert not late
    assert (tmp_path / "app-2026-03-01.log").read_bytes() == b"a\nc\n"
    assert (tmp_path / "app-2026-03-02.log").read_bytes() == b"b\n"
    assert (tmp_path / "app-2026-03-03.log").read_bytes() == b"d\n"
    assert (tmp_path / "app-2026-03-01.log").stat().st_mode & 0o777 == 0o640


def test_only_a_few_files_stay_open(tmp_path: Path) -> None:
    files = DatedFiles(tmp_path, keep_days=None)
    before = len(os.listdir("/proc/self/fd"))
    files.write(batch(*((day * DAY, b"x\n") for day in range(100))))
    assert len(os.listdir("/proc/self/fd")) - before <= 3
    files.close()
    assert len(names(tmp_path)) == 100


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Asia/Kathmandu", "America/St_Johns"])
def test_local_dates_follow_the_local_midnight_through_clock_changes(
    zone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        files = DatedFiles(tmp_path, utc=False, keep_days=None)
        for hour in range(24 * 400):
            moment = 1_767_000_000.0 + hour * 3_600
            expected = datetime.fromtimestamp(moment).date().isoformat()
            assert files.day(moment) == expected
            assert files.day(moment // 900 * 900) == expected  # what a bucket remembers of its moments
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_clock_that_steps_back_an_hour_loses_and_misplaces_nothing(tmp_path: Path) -> None:
    files = DatedFiles(tmp_path, keep_days=None)
    midnight = 1_000 * DAY
    for offset in (-1_800, 1_800, -1_800, 1_800):
        files.write(batch((midnight + offset, b"%d\n" % offset)))
    assert [path.read_text().split() for path in sorted(tmp_path.iterdir())] == [["-1800"] * 2, ["1800"] * 2]


# ── retention ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_seven_full_days_before_today_are_kept_and_nothing_foreign_is_touched(tmp_path: Path) -> None:
    today = date(2026, 3, 15)
    for age in range(-2, 30):
        (tmp_path / f"app-{today - timedelta(days=age)}.log").touch()
    foreign = ["app-2020-01-01.log.gz", "other-2020-01-01.log", "app-2020-02-31.log", "app-2020-01-01.txt", "notes"]
    for name in foreign:
        (tmp_path / name).touch()
    (tmp_path / "app-2020-01-02.log").mkdir()
    (tmp_path / "app-2020-01-03.log").symlink_to(tmp_path / "notes")
    (tmp_path / "app-2020-01-04.host.12.log").touch()
    now = datetime(2026, 3, 15, 12, tzinfo=UTC).timestamp()
    DatedFiles(tmp_path, clock=lambda: now).write(batch((now, b"x\n")))
    kept = {f"app-{today - timedelta(days=age)}.log" for age in range(-2, 8)}
    assert set(names(tmp_path)) == kept | set(foreign) | {"app-2020-01-02.log", "app-2020-01-03.log"}
    assert len([name for name in kept if name <= f"app-{today}.log"]) == 8


def test_retention_runs_again_on_the_next_day(tmp_path: Path) -> None:
    now = 20_000.0 * DAY
    files = DatedFiles(tmp_path, keep_days=1, clock=lambda: now)
    for _ in range(5):
        files.write(batch((now, b"x\n")))
        now += DAY
    assert len(names(tmp_path)) == 2


def test_what_another_process_deleted_first_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "app-2020-01-01.log").touch()
    really = os.unlink

    def too_late(path: str, **folder: Any) -> None:
        really(path, **folder)
        really(path, **folder)

    monkeypatch.setattr("onebeat.logs.files.os.unlink", too_late)
    assert prune(tmp_path, "app", date(2026, 1, 1)) == []
    assert capfd.readouterr().err == ""
    assert prune(tmp_path / "missing", "app", date(2026, 1, 1)) == []


def test_a_file_that_cannot_be_deleted_keeps_no_other_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for day in range(1, 6):
        (tmp_path / f"app-2020-01-0{day}.log").touch()
    with os.scandir(tmp_path) as entries:
        first = next(entries).name  # the order of the directory, in which they are deleted
    really = os.unlink

    def unlink(path: str, **folder: Any) -> None:
        if path == first:
            raise PermissionError("somebody else's")
        really(path, **folder)

    monkeypatch.setattr("onebeat.logs.files.os.unlink", unlink)
    assert len(prune(tmp_path, "app", date(2026, 1, 1))) == 4
    assert names(tmp_path) == [first]
    assert "not deleted: somebody else's" in capfd.readouterr().err


# ── what others do to the files ───────────────────────────────────────────────────────────────────────────────────────
def test_a_file_removed_or_moved_away_is_begun_anew(tmp_path: Path) -> None:
    files = DatedFiles(tmp_path, keep_days=None)
    path = tmp_path / "app-1970-01-01.log"
    files.write(batch((0, b"1\n")))
    path.unlink()
    files.write(batch((0, b"2\n")))
    path.rename(tmp_path / "rotated")
    files.write(batch((0, b"3\n")))
    assert path.read_bytes() == b"3\n"
    assert (tmp_path / "rotated").read_bytes() == b"2\n"
    path.rename(tmp_path / "rotated")
    path.write_bytes(b"another process was first\n")
    files.write(batch((0, b"5\n")))
    assert path.read_bytes() == b"another process was first\n5\n"
    path.unlink()
    (tmp_path / "rotated").unlink()
    tmp_path.rmdir()
    files.write(batch((0, b"4\n")))
    assert path.read_bytes() == b"4\n"


def test_a_file_truncated_in_place_goes_on(tmp_path: Path) -> None:
    files = DatedFiles(tmp_path, keep_days=None)
    files.write(batch((0, b"1\n")))
    os.truncate(tmp_path / "app-1970-01-01.log", 0)
    files.write(batch((0, b"2\n")))
    assert (tmp_path / "app-1970-01-01.log").read_bytes() == b"2\n"


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory"])
def test_what_is_no_regular_file_is_refused_and_never_followed_or_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "app-1970-01-01.log"
    if kind == "symlink":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    waiting = batch((0, b"x\n"))
    with pytest.raises(OSError):
        DatedFiles(tmp_path, keep_days=None).write(waiting)
    assert waiting[0].lines == [b"x\n"]  # kept, to be tried again
    assert not (tmp_path / "elsewhere").exists()


# ── what another user prepared ────────────────────────────────────────────────────────────────────────────────────────
def prepare(folder: Path, how: str) -> None:
    """Put the folder there as somebody else would."""
    real = folder.with_name("real")
    real.mkdir()
    (real / "app-2020-01-01.log").touch()
    if how == "a link":
        folder.symlink_to(real)
        return
    real.rename(folder)
    if how == "writable by all":
        folder.chmod(0o777)
    elif how == "of another user":
        os.chown(folder, 65534, 65534)


HOW = ["a link", "writable by all", pytest.param("of another user", marks=pytest.mark.skipif("os.getuid() != 0"))]


@pytest.mark.parametrize("how", HOW)
def test_a_folder_that_another_user_prepared_is_refused_at_setup(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    prepare(folder, how)
    with pytest.raises(ConfigurationError, match=r"log directory cannot be used.*(is a link|may be written)"):
        DatedFiles(folder)


@pytest.mark.parametrize("how", HOW)
def test_a_folder_that_another_user_puts_in_the_place_is_neither_written_nor_pruned(
    how: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "logs"
    files = DatedFiles(folder)
    files.write(batch((0, b"1\n")))
    folder.rename(tmp_path / "ours")
    prepare(folder, how)
    waiting = batch((0, b"2\n"))
    with pytest.raises(OSError, match=r"is a link|may be written by other users"):
        files.write(waiting)
    assert waiting[0].lines == [b"2\n"]  # kept, to be tried again
    assert prune(folder, "app", date(2026, 1, 1)) == []
    assert names(folder) == ["app-2020-01-01.log"]
    assert "not deleted" in capfd.readouterr().err
    folder.rename(tmp_path / "theirs")
    (tmp_path / "ours").rename(folder)
    files.write(waiting)
    assert (folder / "app-1970-01-01.log").read_bytes() == b"1\n2\n"


@pytest.mark.parametrize("how", HOW[1:])
def test_a_file_that_another_user_prepared_is_not_written(how: str, tmp_path: Path) -> None:
    path = tmp_path / "app-1970-01-01.log"
    path.touch()
    if how == "writable by all":
        path.chmod(0o666)
    else:
        os.chown(path, 65534, 65534)
    with pytest.raises(OSError, match="may be written by other users"):
        DatedFiles(tmp_path, keep_days=None).write(batch((0, b"x\n")))
    assert path.read_bytes() == b""


def test_a_folder_of_a_group_is_used(tmp_path: Path) -> None:
    """With the umask 0002, which many systems give to people, every new folder is one."""
    folder = tmp_path / "logs"
    folder.mkdir()
    folder.chmod(0o775)
    DatedFiles(folder, keep_days=None).write(batch((0, b"x\n")))
    assert names(folder) == ["app-1970-01-01.log"]


def test_half_a_line_left_by_a_crash_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "app-1970-01-01.log"
    path.write_bytes(b'{"a":1}\n{"b":')
    DatedFiles(tmp_path, keep_days=None).write(batch((0, b'{"c":3}\n')))
    assert path.read_bytes() == b'{"a":1}\n{"b":\n{"c":3}\n'


FULL_DISK = """
import json, resource, signal, sys
from collections import deque
from pathlib import Path
from typing import Any
from onebeat.errors import ConfigurationError
from onebeat.logs.files import DatedFiles
from tests.logs.test_files import batch

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
files = DatedFiles("logs", keep_days=None)
lines = [json.dumps({"n": number}).encode() + b"\\n" for number in range(200)]
waiting = batch(*((0, line) for line in lines))
failures = 0
while waiting:
    try:
        files.write(waiting)
    except OSError:
        failures += 1
        if sys.argv[2:] and failures == 1:  # another process writes behind our half line, then there is room again
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            with open("logs/app-1970-01-01.log", "ab") as other:
                other.write(b"\\n" + json.dumps({"other": 1}).encode() + b"\\n")
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit + failures * 37, resource.RLIM_INFINITY))
        if sys.argv[2:]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(failures)
"""


@pytest.mark.parametrize("limit", [1, 500, 503, 509, 512])
def test_a_full_disk_that_is_freed_leaves_no_torn_and_no_doubled_line(
    limit: int, script: Script, tmp_path: Path
) -> None:
    """The kernel cuts writes short at a limit of the file's size, as a full disk does; the limit is then moved."""
    done = script(FULL_DISK, str(limit))
    assert int(done.stdout) > 10
    assert [record["n"] for record in read(tmp_path / "logs")] == list(range(200))


def test_a_line_torn_by_a_full_disk_is_written_anew_if_another_process_came_first(
    script: Script, tmp_path: Path
) -> None:
    script(FULL_DISK, "505", "other")
    lines = (tmp_path / "logs" / "app-1970-01-01.log").read_bytes().splitlines()
    whole = [line for line in lines if line.endswith(b"}")]
    assert len(lines) - len(whole) == 1
    assert sorted(line for line in whole if b"other" not in line) == sorted(
        b'{"n": %d}' % number for number in range(200)
    )


# ── where appends are not known to be indivisible ─────────────────────────────────────────────────────────────────────
def test_a_process_can_have_a_file_of_its_own(tmp_path: Path) -> None:
    files = DatedFiles(tmp_path, per_process=True, keep_days=7, clock=lambda: 0.0)
    files.write(batch((0, b"x\n")))
    assert [name.split(".")[-2:] for name in names(tmp_path)] == [[str(os.getpid()), "log"]]
    assert names(tmp_path)[0].startswith("app-1970-01-01.")


def test_network_disks_are_told_from_local_ones(tmp_path: Path) -> None:
    mounts = [
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw",
        "90 22 0:44 / /srv rw,relatime shared:9 - nfs4 host:/srv rw",
        "91 22 0:45 / /srv/with\\040blank rw - tmpfs tmpfs rw",
    ]
    assert _disk_of(Path("/var/log"), mounts) == "ext4"
    assert _disk_of(Path("/srv/app"), mounts) == "nfs4"
    assert _disk_of(Path("/srvother"), mounts) == "ext4"
    assert _disk_of(Path("/srv/with blank/x"), mounts) == "tmpfs"
    assert on_local_disk(tmp_path)
    assert not on_local_disk(Path("/proc"))
