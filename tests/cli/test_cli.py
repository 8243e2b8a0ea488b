"""The command line: real processes, exit codes, and messages a person can act upon."""

from __future__ import annotations

import io
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from examples.shop.__main__ import free_port

from onebeat.cli.app import main

ROOT = Path(__file__).resolve().parents[2]

APP = """
import asyncio, os, time
from contextlib import asynccontextmanager
from pathlib import Path
from fastapi import FastAPI
from onebeat import Scheduler, install

scheduler = Scheduler("sqlite:///app.db")
not_an_app = 42

@asynccontextmanager
async def lifespan(app):
    Path("lifespan.txt").write_text("open")
    yield
    Path("lifespan.txt").write_text("closed")

app = FastAPI(lifespan=lifespan)
install(app, scheduler)

@scheduler.task()
async def nap(ends: bool) -> str:
    Path("started.txt").write_text(Path("lifespan.txt").read_text())
    while (await scheduler.health()).worker == "working":
        await asyncio.sleep(0.01)
    Path("draining.txt").write_text("the first signal has arrived")
    if not ends:
        await asyncio.Event().wait()
    Path("ended.txt").write_text("ended")
    return "rested"
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with an app in it."""
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "onebeat", *args]


def environment(**extra: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ONEBEAT_")}
    return {**kept, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200", "NO_COLOR": "1", **extra}


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def onebeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process, in an empty folder; `answer` is typed in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("shop", "broken", "lacking", "making"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in [name for name in os.environ if name.startswith("ONEBEAT_")]:
        monkeypatch.delenv(name)

    def run(*args: str, answer: str = "", **extra: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["onebeat", *args])
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        for name, value in extra.items():
            monkeypatch.setenv(name, value)
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err, err
        return Done(code, out, err)

    return run


def tables(file: Path) -> set[str]:
    with sqlite3.connect(file) as connection:
        return {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}


def enqueue_nap(shop: Path, *, ends: bool) -> None:
    """Store one job, from a script that runs none itself, that ends when its worker drains, or never."""
    code = f"import shop\nwith shop.scheduler:\n    shop.nap.enqueue_sync({ends})\n"
    subprocess.run(
        [sys.executable, "-c", code], cwd=shop, env=environment(ONEBEAT_ROLE="client"), check=True, timeout=60
    )


# ── help and usage ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_help_is_quick_because_it_loads_neither_sqlalchemy_nor_fastapi(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "sys.argv = ['onebeat', '--help']\n"
        "from onebeat.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'sqlalchemy', 'fastapi', 'alembic', 'starlette', 'pydantic', 'asyncpg'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for word in ("migrate", "worker", "cron", "drop"):
        assert word in done.stdout


def test_as_a_process_an_error_is_one_message_and_exit_code_one(tmp_path: Path) -> None:
    wrong = command("migrate", "--database", "oracle://shop:very-secret@127.0.0.1/shop")
    done = subprocess.run(wrong, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("onebeat: ")
    assert "Traceback" not in done.stderr
    assert "very-secret" not in done.stderr


def test_wrong_usage_ends_with_two_and_says_what_is_missing(onebeat: Run, shop: Path) -> None:
    for args, word in (
        (["nonsense"], "nonsense"),
        (["migrate"], "--database"),
        (["migrate", "--app", "shop:app", "--database", "sqlite:///x.db"], "not both"),
        (["worker"], "--app"),
        (["worker", "--database", "sqlite:///x.db"], "--app"),
        (["worker", "--app", "shop"], "module:attribute"),
    ):
        done = onebeat(*args)
        assert done.code == 2, (args, done.out, done.err)
        assert word in done.err, (args, done.err)


@pytest.mark.parametrize(
    ("reference", "word"),
    [
        ("nowhere:app", "no module 'nowhere'"),
        ("shop:nothing", "no attribute 'nothing'; it has"),
        ("shop:not_an_app", "is a int without a scheduler"),
        ("broken:app", "broken.py, line 2"),
        ("lacking:app", "No module named 'not_installed_here'"),
    ],
)
def test_an_app_that_cannot_be_loaded_is_named_with_the_reason(
    onebeat: Run, shop: Path, reference: str, word: str
) -> None:
    (shop / "broken.py").write_text("x = 1\nx / 0\n")
    (shop / "lacking.py").write_text("import not_installed_here\n")
    done = onebeat("migrate", "--app", reference)
    assert (done.code, word in done.err) == (1, True), done.err


FACTORIES = """
from shop import app, scheduler

def create_app():
    return app

def create_scheduler(name="shop"):
    return scheduler

def needs(path):
    return app

async def too_late():
    return app

def fails():
    raise LookupError("no settings")

def nothing():
    return 42

class Made:
    def __call__(self):
        return app

made = Made()
"""


@pytest.mark.parametrize("options", [[], ["--factory"]])
@pytest.mark.parametrize("name", ["create_app", "create_scheduler"])
@pytest.mark.parametrize("command", [["migrate"], ["drop", "--yes"]])
def test_an_app_may_be_made_by_a_function(
    onebeat: Run, shop: Path, command: list[str], name: str, options: list[str]
) -> None:
    (shop / "making.py").write_text(FACTORIES)
    done = onebeat(*command, "--app", f"making:{name}", *options)
    assert done.code == 0, done.err
    assert ("onebeat_jobs" in tables(shop / "app.db")) == (command == ["migrate"])


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("needs", [], "a function without parameters that returns one of them"),
        ("needs", ["--factory"], "takes parameters"),
        ("app", ["--factory"], "takes parameters"),
        ("scheduler", ["--factory"], "is a Scheduler, not a function"),
        ("too_late", [], "is async"),
        ("fails", [], "LookupError: no settings (making.py"),
        ("nothing", ["--factory"], "is a int without a scheduler"),
    ],
)
def test_a_factory_that_cannot_work_is_named_with_the_reason(
    onebeat: Run, shop: Path, name: str, options: list[str], word: str
) -> None:
    (shop / "making.py").write_text(FACTORIES)
    done = onebeat("migrate", "--app", f"making:{name}", *options)
    assert done.code == 1, done.err
    assert word in done.err.replace(f"{shop}/", "")


def test_any_object_that_can_be_called_is_a_factory_when_the_option_says_so(onebeat: Run, shop: Path) -> None:
    (shop / "making.py").write_text(FACTORIES)
    assert onebeat("migrate", "--app", "making:made").code == 1
    assert onebeat("migrate", "--app", "making:made", "--factory").code == 0
    assert onebeat("migrate", "--factory", "--database", "sqlite:///x.db").code == 2


# ── migrate and drop ──────────────────────────────────────────────────────────────────────────────────────────────────
def test_migrate_makes_the_tables_once_and_check_tells_the_difference(onebeat: Run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'app.db'}"
    before = onebeat("migrate", "--check", "--database", url)
    assert before.code == 1
    assert "onebeat migrate" in before.out + before.err
    assert not (tmp_path / "app.db").exists() or tables(tmp_path / "app.db") == set(), "a check changes nothing"

    assert onebeat("migrate", "--database", url).code == 0
    assert {"onebeat_jobs", "onebeat_schedules", "onebeat_schema_version"} <= tables(tmp_path / "app.db")
    again = onebeat("migrate", "--database", url)
    assert again.code == 0
    assert "up to date" in again.out
    assert onebeat("migrate", "--check", "--database", url).code == 0


def test_migrate_finds_its_database_in_the_app_or_in_the_environment(onebeat: Run, shop: Path) -> None:
    assert onebeat("migrate", "--app", "shop:app").code == 0
    assert "onebeat_jobs" in tables(shop / "app.db")
    done = onebeat("migrate", ONEBEAT_DATABASE_URL=f"sqlite:///{shop / 'other.db'}")
    assert done.code == 0, done.err
    assert "onebeat_jobs" in tables(shop / "other.db")


def test_migrate_sql_prints_statements_that_make_the_tables_and_touches_nothing(onebeat: Run, tmp_path: Path) -> None:
    done = onebeat("migrate", "--sql", "--database", f"sqlite:///{tmp_path / 'app.db'}")
    assert done.code == 0, done.err
    assert not (tmp_path / "app.db").exists() or tables(tmp_path / "app.db") == set()
    with sqlite3.connect(tmp_path / "by-hand.db") as connection:
        connection.executescript(done.out)
    check = onebeat("migrate", "--check", "--database", f"sqlite:///{tmp_path / 'by-hand.db'}")
    assert check.code == 0, check.err


def test_drop_asks_first_and_leaves_the_apps_own_tables(onebeat: Run, tmp_path: Path) -> None:
    file = tmp_path / "app.db"
    url = f"sqlite:///{file}"
    with sqlite3.connect(file) as connection:
        connection.execute("create table orders (id integer primary key)")
    assert onebeat("migrate", "--database", url).code == 0

    for answer in ("", "n\n"):
        refused = onebeat("drop", "--database", url, answer=answer)
        assert refused.code == 1
        assert "onebeat_jobs" in tables(file)

    assert onebeat("drop", "--database", url, answer="y\n").code == 0
    assert tables(file) - {"sqlite_sequence"} == {"orders"}
    assert onebeat("migrate", "--database", url).code == 0
    assert onebeat("drop", "--yes", "--database", url).code == 0
    assert tables(file) - {"sqlite_sequence"} == {"orders"}


@pytest.mark.parametrize("arguments", [["migrate"], ["migrate", "--check"], ["drop", "--yes"]])
def test_a_database_that_cannot_be_used_is_one_message_without_its_password(
    onebeat: Run, tmp_path: Path, arguments: list[str]
) -> None:
    for url, word in (
        (f"postgresql://shop:very-secret@127.0.0.1:{free_port()}/shop", "127.0.0.1"),
        ("oracle://shop:very-secret@127.0.0.1/shop", "postgresql"),
        (f"sqlite:///{tmp_path}/no/such/folder/app.db", "no/such/folder"),
    ):
        done = onebeat(*arguments, "--database", url, ONEBEAT_START_TIMEOUT="1")
        assert done.code == 1, (url, done.out, done.err)
        assert word in done.err
        assert "very-secret" not in done.out + done.err


# ── worker ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def start_worker(shop: Path, output: Path, **extra: str) -> subprocess.Popen[bytes]:
    with output.open("wb") as sink:
        return subprocess.Popen(
            command("worker", "--app", "shop:app"),
            cwd=shop,
            env=environment(**extra),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )


def wait_for(file: Path, process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + 60
    while not file.exists() or not file.stat().st_size:  # the file is created before its text is written
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.02)  # between two looks at another process


def states(shop: Path) -> list[tuple[str, int]]:
    with sqlite3.connect(shop / "app.db") as connection:
        return connection.execute("select state, attempt from onebeat_jobs").fetchall()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_runs_jobs_inside_the_apps_lifespan_and_drains_at_the_first_signal(shop: Path, number: int) -> None:
    enqueue_nap(shop, ends=True)
    output = shop / "output.txt"
    process = start_worker(shop, output)
    try:
        wait_for(shop / "started.txt", process, output)
        assert (shop / "started.txt").read_text() == "open", "the app's resources are there while a job runs"
        process.send_signal(number)
        assert process.wait(60) == 0, output.read_text()
    finally:
        process.kill()
    assert (shop / "ended.txt").exists(), "a running job is awaited"
    assert (shop / "lifespan.txt").read_text() == "closed"
    assert states(shop) == [("succeeded", 1)]


def test_a_worker_of_an_app_that_only_enqueues_runs_its_jobs(shop: Path) -> None:
    enqueue_nap(shop, ends=True)
    output = shop / "output.txt"
    process = start_worker(shop, output, ONEBEAT_ROLE="client")
    try:
        wait_for(shop / "started.txt", process, output)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, output.read_text()
    finally:
        process.kill()
    assert states(shop) == [("succeeded", 1)]


def test_a_second_signal_stops_a_worker_at_once_and_its_job_is_not_lost(shop: Path) -> None:
    enqueue_nap(shop, ends=False)
    output = shop / "output.txt"
    process = start_worker(shop, output, ONEBEAT_DRAIN="100")
    try:
        wait_for(shop / "started.txt", process, output)
        process.send_signal(signal.SIGTERM)
        wait_for(shop / "draining.txt", process, output)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143, output.read_text()
    finally:
        process.kill()
        process.wait()
    [(state, _)] = states(shop)
    assert state in ("queued", "running"), "given back, or left to the lease: never lost"
