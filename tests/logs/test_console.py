"""The console: text for people, JSON for machines, whole lines from several processes, no trouble when it is closed."""

from __future__ import annotations

import errno
import json
import os
import pty
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from onebeat.logs.console import Console
from onebeat.logs.queue import Bucket
from onebeat.logs.text import TextView
from tests.logs.conftest import ROOT, Script, environment, parsed

PIPES = """
import logging, sys
from onebeat.logs.setup import flush_logs, setup_logging
setup_logging(console="json", directory=None)
log = logging.getLogger(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()  # until all are
for number in range(60):
    log.info("%d", number, extra={f"part{part}": sys.argv[1] * 7000 for part in range(3)})
flush_logs(60)  # batches of a megabyte, of which a pipe takes 64 KiB at a time
"""


def test_four_processes_write_twenty_kilobyte_records_to_one_pipe_and_none_is_torn() -> None:
    reader, writer = os.pipe()
    command = [sys.executable, "-c", PIPES]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": writer}
    workers: list[Any] = [subprocess.Popen([*command, letter], **pipes, env=environment()) for letter in "abcd"]
    os.close(writer)
    for worker in workers:
        assert worker.stdout.readline() == b"ready\n"
    for worker in workers:
        worker.stdin.close()
    with open(reader, "rb") as pipe:
        records = parsed(pipe.read())
    assert [worker.wait() for worker in workers] == [0] * 4
    for letter in "abcd":
        assert [record["msg"] for record in records if record["logger"] == letter] == [str(n) for n in range(60)]
    assert all(len(record["part2"]) == 7000 for record in records)


def test_a_console_nobody_reads_is_left_quietly_and_the_file_goes_on(script: Script) -> None:
    source = """
import logging, os, sys
from onebeat.logs.setup import flush_logs, log_stats, setup_logging
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 1)
setup_logging(console="json", stream="stdout", directory="logs")
for number in range(100):
    logging.warning("%d", number)
    flush_logs()
print(*[(stats.sink, stats.written, stats.lost) for stats in log_stats()], file=sys.stderr)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
"""
    assert script(source).stderr == "('console', 0, 100) ('file', 100, 0)\n"


def test_a_blocked_console_does_not_stop_the_file(script: Script) -> None:
    source = """
import logging, os, sys
from onebeat.logs.setup import flush_logs, log_stats, setup_logging
reader, writer = os.pipe()  # nobody reads, nobody closes: a stuck log driver
os.dup2(writer, 1)
setup_logging(console="json", stream="stdout", directory="logs")
for number in range(3000):
    logging.warning("%d", number, extra={"filler": "x" * 100})
while log_stats()[1].written < 3000:
    flush_logs(0.01)
console, file = log_stats()
print(file.written, console.written < 3000, file=sys.stderr)
os._exit(0)
"""
    assert script(source).stderr == "3000 True\n"


def test_a_terminal_shows_coloured_text_and_a_pipe_json(script: Script) -> None:
    source = "import logging, onebeat.logs as l; l.setup_logging()\nlogging.warning('héllo', extra={'n': 1})"
    assert json.loads(script(source).stderr)["msg"] == "héllo"
    primary, secondary = pty.openpty()
    shown = b""

    def listen() -> None:
        nonlocal shown
        while not shown.endswith(b"\n"):
            shown += os.read(primary, 1000)

    thread = threading.Thread(target=listen)
    thread.start()
    subprocess.run([sys.executable, "-c", source], stderr=secondary, check=True, env=environment(), cwd=ROOT)
    thread.join(10)
    os.close(secondary)
    os.close(primary)
    text = shown.decode()
    assert "\x1b[33mWARNING \x1b[0m root: héllo" in text
    assert "n=1" in text


def test_text_escapes_what_could_drive_a_terminal_or_forge_a_line() -> None:
    view = TextView({}, colour=False)
    line = json.dumps(
        {
            "level": "INFO",
            "logger": "a\n2026 forged",
            "msg": "x\x1b[2J\r\n\x9b",
            "k\x1b": "v\x07",
            "exc": {"text": "T:\n  \x1b]0;"},
        }
    )
    text = view.render(line.encode())
    assert not set(text) & set("\x1b\x07\r\x9b")
    assert text.count("\n") == 3
    assert "x\\x1b[2J\\x0d\\x0a" in text


def test_no_line_of_a_traceback_can_be_taken_for_a_record_of_its_own() -> None:
    view = TextView({}, colour=False)
    forged = "2026-01-02 03:04:05.678 ERROR    onebeat: forged"
    hostile = f"x\n{forged}"
    for block in ({"exc": {"text": hostile}}, {"stack": hostile}, {"msg": hostile}):
        line = json.dumps({"level": "INFO", "logger": "l", "msg": "m", **block})
        first, *rest = view.render(line.encode()).splitlines()
        assert all(line.startswith("  | ") for line in rest), rest
        assert first.startswith("????")


def test_text_follows_renamed_fields_and_survives_what_is_no_record() -> None:
    view = TextView({"msg": "message", "ts": "@timestamp", "func": None}, colour=False)
    text = view.render(
        b'{"@timestamp":"2026-01-02T03:04:05.678901Z","level":"INFO","logger":"l","message":"m","user":"a b"}'
    )
    assert text.endswith('.678 INFO     l: m user="a b"\n')
    assert view.render(b"no json\n") == "no json\n"


def test_a_console_without_a_descriptor_is_written_through_its_stream(script: Script) -> None:
    source = """
import io, logging, sys
sys.stderr = io.StringIO()
from onebeat.logs.setup import flush_logs, setup_logging
setup_logging(console="json")
logging.warning("to a notebook")
flush_logs()
print(sys.stderr.getvalue(), end="")
"""
    assert json.loads(script(source).stdout)["msg"] == "to a notebook"


@pytest.mark.parametrize("room", [0, 1, 5, 6, 17, 18], ids="{} bytes fit".format)
def test_a_full_disk_behind_the_console_doubles_and_tears_no_line(
    room: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What fits is written, then the disk is full; once there is room, the rest follows where it ended."""
    lines = [b"%05d\n" % number for number in range(6)]
    batch: deque[Bucket] = deque()
    for first in (0, 2):
        bucket = Bucket(0.0)
        bucket.lines, bucket.levels = lines[first : first + 2], [20, 20]
        batch.append(bucket)
    real, left = os.write, room

    def write(fd: int, data: bytes) -> int:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, "full")
        count = real(fd, bytes(data)[:left])
        left -= count
        return count

    sink = Console("stderr")
    with open(tmp_path / "out", "wb") as out:
        monkeypatch.setattr("onebeat.logs.console.descriptor", lambda stream: out.fileno())
        with monkeypatch.context() as patch:
            patch.setattr("onebeat.logs.console.os.write", write)
            with pytest.raises(OSError, match="full"):
                sink.write(batch)
        assert sum(len(bucket.lines) for bucket in batch) == 4 - room // 6
        sink.write(batch)
    assert (tmp_path / "out").read_bytes() == b"".join(lines[:4])
