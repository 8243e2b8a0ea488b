"""The engine and the store get their clock and their random numbers from their constructors."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "onebeat"
FILES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))

CLOCKS = {
    *(f"time.{name}" for name in ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns")),
    *(f"time.{name}" for name in ("process_time", "process_time_ns", "thread_time", "thread_time_ns")),
    *(f"time.{name}" for name in ("clock_gettime", "clock_gettime_ns", "localtime", "gmtime")),
    *(f"datetime.datetime.{name}" for name in ("now", "utcnow", "today")),
    "datetime.date.today",
}
# A generator that somebody passes in is `random.Random`, and to make one is to choose where chance comes from.
CHANCE = ("random.", "secrets.", "os.urandom", "uuid.uuid")
LOOP_TIME = ("engine/", "store/")  # an event loop's own clock counts as a reading there; elsewhere it only waits

READERS = {
    "timing/clock.py": "the clock of the process: what every other file is given",
    "concurrency/private_folder.py": "a secret must be unguessable, so it comes from the system",
    "model/ids.py": "ids and tokens must be unguessable and differ between processes, so they come from the system",
    "scheduler/": "makes the clock and the random generator of the engine, and measures a health check",
    "logs/": "a record has the time at which it was written, whatever a test's clock says",
    "offload/": "measures threads and processes of this machine; a simulation does not run them",
    "tracking/": "tracking ids are made for requests outside the engine, and notices are limited by real time",
    "locks/": "file and Redis locks wait for other processes in real time",
    "testing/": "contract tests watch real locks in real time",
    "engine/heartbeat.py": "makes a generator where its caller gives none",
    "store/connection/database.py": "makes a generator where none is given; opens with a timeout in real time",
    "store/connection/server_pool.py": "a server closes idle connections in real time",
    "store/migrations/__init__.py": "the id of a new database must differ from every other",
    "store/tx.py": "makes a generator where its caller gives none",
}


def readings(path: str) -> list[str]:
    """What a file reads of a clock or of chance, each with its line."""
    tree = ast.parse((SOURCE / path).read_text("utf-8"))
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    typed = in_annotations(tree)
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Name | ast.Attribute) or id(node) in typed:
            continue
        name = full_name(node, names)
        loop = path.startswith(LOOP_TIME) and name.endswith(("loop.time", "loop().time"))
        if name in CLOCKS or name.startswith(CHANCE) or loop:
            found.append(f"{path}:{node.lineno} {name}")
    return found


def in_annotations(tree: ast.AST) -> set[int]:
    """The nodes that only say what type something has."""
    roots: list[ast.expr | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            roots.append(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            roots.append(node.returns)
    return {id(node) for root in roots if root is not None for node in ast.walk(root)}


def full_name(node: ast.expr, names: dict[str, str]) -> str:
    """The dotted name of an expression, with the names that imports gave it spelled out."""
    if isinstance(node, ast.Name):
        return names.get(node.id, f"local.{node.id}")
    if isinstance(node, ast.Attribute):
        return f"{full_name(node.value, names)}.{node.attr}"
    if isinstance(node, ast.Call):
        return f"{full_name(node.func, names)}()"
    return "?"


def is_listed(path: str) -> bool:
    return any(path == entry or (entry.endswith("/") and path.startswith(entry)) for entry in READERS)


def test_no_other_file_reads_a_clock_or_chance() -> None:
    others = [path for path in FILES if not is_listed(path)]
    assert len(others) > 50
    found = {path: read for path in others if (read := readings(path))}
    assert found == {}, "take `clock` and `random` from the constructor, or write the reason into READERS"


def test_what_is_listed_still_has_a_reason() -> None:
    readers = {path for path in FILES if readings(path)}
    idle = [entry for entry in READERS if not any(path.startswith(entry) for path in readers)]
    assert idle == [], "nothing here reads a clock or chance any more: delete the entry"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import time\ntime.monotonic()", ["time.monotonic"]),
        ("from time import monotonic as now\nnow()", ["time.monotonic"]),
        ("import datetime as dt\ndt.datetime.now()", ["datetime.datetime.now"]),
        ("from datetime import datetime\ndatetime.now(tz)", ["datetime.datetime.now"]),
        ("from random import random\nrandom()", ["random.random"]),
        ("import asyncio\nasyncio.get_running_loop().time()", ["asyncio.get_running_loop().time"]),
        ("loop = here()\nloop.time()", ["local.loop.time"]),
        ("import time\ndef f(clock=time.monotonic): ...", ["time.monotonic"]),
        ("from random import Random\nRandom()", ["random.Random"]),
        ("from random import Random\ndef f(random: Random) -> float:\n    return random.random()", []),
        ("def f(random: float) -> float:\n    return random", []),
        ("import time\ntime.sleep(1)", []),
    ],
)
def test_a_reading_is_found_under_whatever_name(
    text: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "part.py").write_text(text)
    monkeypatch.setattr("tests.test_time_and_chance.SOURCE", tmp_path)
    assert [reading.split(" ", 1)[1] for reading in readings("engine/part.py")] == expected
