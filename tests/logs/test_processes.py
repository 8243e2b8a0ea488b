"""Several processes at midnight, and every way in which a process ends or begins: nothing is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from datetime import date, timedelta
from pathlib import Path

import pytest

from tests.logs.conftest import Script, environment, parsed, read

MIDNIGHT = """
import logging, sys, time
from onebeat.logs import flush_logs, setup_logging
who, start, count = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
setup_logging(console=None, directory="logs", keep_days=None)
log = logging.getLogger("shop")
midnight = 1_772_409_600.0  # 2026-03-02, UTC
plain = logging.getLogRecordFactory()
number = 0
def at_midnight(*args, **kwargs):
    record = plain(*args, **kwargs)
    record.created = midnight - 1 + 2 * number / count  # a virtual clock: half of the lines on each side
    return record
logging.setLogRecordFactory(at_midnight)
for number in range(count):
    log.info("line", extra={"who": who, "n": number})
sys.exit(0 if flush_logs(60) else 1)
"""


def test_four_processes_write_a_hundred_thousand_lines_across_midnight(tmp_path: Path) -> None:
    """None lost, none torn, each in the file of its date, every line parses, order kept for each process."""
    command = [sys.executable, "-c", MIDNIGHT]
    workers = [
        subprocess.Popen([*command, str(who), "0", "25000"], cwd=tmp_path, env=environment()) for who in range(4)
    ]
    assert [worker.wait(110) for worker in workers] == [0] * 4
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["app-2026-03-01.log", "app-2026-03-02.log"]
    seen: dict[str, list[int]] = {str(who): [] for who in range(4)}
    for day in ("2026-03-01", "2026-03-02"):
        for record in parsed((tmp_path / "logs" / f"app-{day}.log").read_bytes()):
            assert record["ts"].startswith(day)
            seen[record["who"]].append(record["n"])
    for numbers in seen.values():
        assert numbers == list(range(25_000))


KEPT = """
import json, os, sys, time
from datetime import datetime
from onebeat.logs.files import DatedFiles
from tests.logs.test_files import batch
os.environ["TZ"] = "Europe/Berlin"
time.tzset()
begin = datetime.fromisoformat(sys.argv[2]).timestamp()
files = DatedFiles("logs", keep_days=7, utc=False, clock=lambda: now)
for quarter in range(12 * 96):
    now = begin + quarter * 900  # a virtual clock
    day = str(datetime.fromtimestamp(now).date())
    files.write(batch((now, json.dumps({"who": sys.argv[1], "day": day}).encode() + b"\\n")))
"""


@pytest.mark.parametrize(("begin", "hours"), [("2026-03-22", 23), ("2026-10-18", 25)], ids=["spring", "autumn"])
def test_seven_days_are_kept_by_several_processes_across_a_clock_change(begin: str, hours: int, tmp_path: Path) -> None:
    """Twelve local days, the eighth of which is an hour short or long: eight files remain, each with all of its day."""
    command = [sys.executable, "-c", KEPT]
    workers = [subprocess.Popen([*command, who, begin], cwd=tmp_path, env=environment()) for who in "abc"]
    assert [worker.wait(100) for worker in workers] == [0] * 3
    files = sorted((tmp_path / "logs").iterdir())
    lines = {path.name[4:14]: parsed(path.read_bytes()) for path in files}
    assert len(files) == 8
    for day, records in lines.items():
        assert {record["day"] for record in records} == {day}
    changed = (date.fromisoformat(begin) + timedelta(days=7)).isoformat()
    assert [record["who"] for record in lines[changed]].count("a") == hours * 4
    assert len(lines[changed]) == hours * 4 * 3


ENDINGS = {
    "plain exit": "",
    "sys.exit": "import sys; sys.exit(0)",
    "an exception nobody catches": "raise RuntimeError('unhandled')",
    "SIGTERM": "import os, signal, time; os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)",
    "Ctrl-C": (  # what a shell starts in the background ignores it, and its children with it
        "import os, signal, time; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "os.kill(os.getpid(), signal.SIGINT); time.sleep(30)"
    ),
    "logging.shutdown and then more": "logging.shutdown(); log.info('more'); log.info('more')",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_record_is_written_however_a_script_ends(ending: str, script: Script, tmp_path: Path) -> None:
    source = f"""
import logging
from onebeat.logs import setup_logging
setup_logging(console=None, directory="logs", finish_at_sigterm=True)
log = logging.getLogger("shop")
for number in range(2000):
    log.info("n", extra={{"n": number}})
{ENDINGS[ending]}
"""
    done = script(source, check=False)
    records = read(tmp_path / "logs")
    assert [record["n"] for record in records if "n" in record] == list(range(2_000))
    assert sum(record["msg"] == "more" for record in records) == (2 if "more" in ending else 0)
    expected = {"SIGTERM": -signal.SIGTERM, "Ctrl-C": -signal.SIGINT, "an exception nobody catches": 1}
    assert done.returncode == expected.get(ending, 0)


def test_sigterm_in_the_middle_of_a_log_call_loses_no_line_and_does_not_wait(script: Script, tmp_path: Path) -> None:
    """The signal comes while the main thread holds the queue's lock, which the writer needs to write."""
    source = """
import logging, os, signal, time
from onebeat.logs import setup_logging
from onebeat.logs.queue import BoundedQueue
setup_logging(console=None, directory="logs", finish_at_sigterm=True)
for number in range(2000):
    logging.info("n", extra={"n": number})
sort = BoundedQueue._sort
def ends(queue):
    BoundedQueue._sort = sort
    os.kill(os.getpid(), signal.SIGTERM)
    sort(queue)
BoundedQueue._sort = ends
logging.info("x" * 2000, extra={"n": 2000})
time.sleep(30)
"""
    done = script(source, check=False)
    assert done.returncode == -signal.SIGTERM
    assert done.stderr == ""  # no complaint of lines left unwritten
    assert [record["n"] for record in read(tmp_path / "logs") if "n" in record] == list(range(2_001))


def test_os_exit_loses_at_most_the_queue_and_write_through_keeps_errors(script: Script, tmp_path: Path) -> None:
    source = """
import logging, os
from onebeat.logs import setup_logging
setup_logging(console=None, directory="logs", write_through="ERROR")
for number in range(100):
    logging.info("n", extra={"n": number})
logging.error("last words")
logging.info("may be lost")
os._exit(0)
"""
    script(source)
    records = read(tmp_path / "logs")
    assert [record["n"] for record in records[:100]] == list(range(100))
    assert records[100]["msg"] == "last words"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_lose_nothing_though_they_end_without_atexit(
    method: str, script: Script, tmp_path: Path
) -> None:
    source = """
import logging, multiprocessing, sys
from onebeat.logs import setup_logging
def work(number):
    setup_logging(console=None, directory="logs") if sys.argv[1] != "fork" else None
    logging.info("child", extra={"n": number})
if __name__ == "__main__":
    setup_logging(console=None, directory="logs")
    logging.info("parent")
    context = multiprocessing.get_context(sys.argv[1])
    children = [context.Process(target=work, args=(number,)) for number in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
"""
    script(source, method)
    records = read(tmp_path / "logs")
    assert sorted(record.get("n", -1) for record in records) == [-1, 0, 1, 2]  # and the parent's line once
    assert len({record["pid"] for record in records}) == 4


def test_a_fork_in_the_middle_of_logging_threads_never_deadlocks(script: Script, tmp_path: Path) -> None:
    source = """
import logging, os, threading
from onebeat.logs import flush_logs, setup_logging
setup_logging(console=None, directory="logs")
stop = threading.Event()
def chatter():
    while not stop.is_set():
        logging.info("chatter")
threads = [threading.Thread(target=chatter) for _ in range(3)]
for thread in threads: thread.start()
children = []
for number in range(30):
    pid = os.fork()
    if pid == 0:
        logging.info("child", extra={"n": number})
        os._exit(0 if flush_logs(20) else 3)
    children.append(pid)
assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 30
stop.set()
for thread in threads: thread.join()
"""
    script(source)
    records = read(tmp_path / "logs")
    assert sorted(record["n"] for record in records if record["msg"] == "child") == list(range(30))


def test_dict_config_under_eight_logging_threads_neither_deadlocks_nor_loses_a_line(
    script: Script, tmp_path: Path
) -> None:
    source = """
import logging, logging.config, threading
from onebeat.logs import setup_logging
setup_logging(console=None, directory="logs")
def work(who):
    log = logging.getLogger(f"shop.{who}")
    for number in range(500):
        log.info("n", extra={"who": who, "n": number})
threads = [threading.Thread(target=work, args=(who,)) for who in range(8)]
for thread in threads: thread.start()
for _ in range(50):  # what uvicorn does when it starts: it closes every handler it finds, those in use included
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "loggers": {"uvicorn": {"level": 20}}})
for thread in threads: thread.join()
"""
    script(source)
    assert len(read(tmp_path / "logs")) == 4_000


def test_the_handler_can_come_from_dict_config_alone(script: Script, tmp_path: Path) -> None:
    source = """
import json, logging, logging.config
from onebeat.logs import uvicorn_log_config
config = uvicorn_log_config(console=None, directory="logs", fields={"msg": "message"})
logging.config.dictConfig(json.loads(json.dumps(config)))
logging.getLogger("uvicorn.error").info("started")
logging.getLogger("shop").info("hello")
"""
    script(source)
    assert [(record["logger"], record["message"]) for record in read(tmp_path / "logs")] == [
        ("uvicorn.error", "started"),
        ("shop", "hello"),
    ]


def test_loading_the_logs_loads_neither_a_database_nor_a_web_framework(script: Script) -> None:
    source = """
import sys
import onebeat.logs
print(sorted({name.partition(".")[0] for name in sys.modules} & {"sqlalchemy", "fastapi", "starlette", "pydantic"}))
"""
    assert script(source).stdout == "[]\n"


def test_two_setups_write_each_record_once_and_the_first_is_written_out(tmp_path: Path, script: Script) -> None:
    source = """
import logging
from onebeat.logs import setup_logging
setup_logging(console=None, directory="first")
logging.info("one")
setup_logging(console=None, directory="second")
logging.info("two")
"""
    script(source)
    assert [record["msg"] for record in read(tmp_path / "first")] == ["one"]
    assert [record["msg"] for record in read(tmp_path / "second")] == ["two"]


def test_neither_console_nor_files_is_no_error_and_says_nothing(script: Script) -> None:
    done = script(
        "from onebeat.logs import *\nimport logging\nsetup_logging(console=None)\nlogging.error('')\nprint(log_stats())"
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_deadline_that_passes_at_the_end_is_told_with_the_number_of_lines(script: Script, tmp_path: Path) -> None:
    source = """
import logging, os
from onebeat.logs import exits, setup_logging
exits.finish.__defaults__ = (0.2,)
reader, writer = os.pipe()
os.dup2(writer, 1)
setup_logging(console="json", stream="stdout")
for number in range(1000):
    logging.warning("%d", number, extra={"filler": "x" * 200})
open("over", "w").close()
"""
    done = script(source)
    assert time.time() - (tmp_path / "over").stat().st_mtime < 5  # logging.shutdown does not wait a second time
    assert "log records were not written within 0.2 s at the end of process" in done.stderr
