"""SQLite: one file, many processes, and the places where it must not lie."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from onebeat.errors import ConfigurationError, DatabaseUnavailable, NotStarted
from onebeat.store import migrations
from onebeat.store.connection import sqlite_file
from onebeat.store.connection.database import Database
from onebeat.store.connection.sqlite_threads import SQLiteThreads
from onebeat.store.tables import Tables, build
from onebeat.store.tx import Tx
from tests.conftest import MakeDatabase
from tests.store.test_database import add, names
from tests.support.databases import Shelf

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def url(shelf: Shelf, tmp_path: Path) -> str:
    """A file with onebeat's tables."""
    return shelf.take("sqlite", tmp_path)


def path_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


def count_up(tx: Tx) -> None:
    """Read, then write: what fails at once in a deferred transaction beside another writer."""
    limits = tx.tables.limits
    used = tx.execute(select(limits.c.tokens).where(limits.c.name == "n")).scalar_one()
    tx.execute(limits.update().where(limits.c.name == "n").values(tokens=used + 1))


async def test_reading_then_writing_waits_for_the_other_writer_instead_of_failing(
    url: str, make_database: MakeDatabase
) -> None:
    one, two = await make_database(url), await make_database(url)
    await one.write(lambda tx: tx.execute(tx.tables.limits.insert().values(name="n", kind="task")))

    runs = 0

    def counted(tx: Tx) -> None:
        nonlocal runs
        runs += 1
        count_up(tx)

    async def many(database: Database) -> None:
        for _ in range(100):
            await database.write(counted)

    await asyncio.gather(many(one), many(two))
    assert runs == 200  # none was undone and tried again
    used = await one.read(lambda tx: tx.execute(select(tx.tables.limits.c.tokens)).scalar_one())
    assert used == 200


async def test_who_waits_for_the_lock_is_served_sooner_than_by_sqlites_own_waiting(
    url: str, make_database: MakeDatabase
) -> None:
    """SQLite's busy handler sleeps up to 100 ms at a time; beside a greedy writer that starves whoever has waited."""
    database = await make_database(url)
    holder = sqlite3.connect(path_of(url), isolation_level=None, timeout=5)
    stock = sqlite3.connect(path_of(url), isolation_level=None, timeout=5, check_same_thread=False)
    loop = asyncio.get_running_loop()

    def wait_as_sqlite_does() -> None:
        stock.execute("BEGIN IMMEDIATE")
        stock.execute("ROLLBACK")

    async def after_release(wait: Any) -> float:
        holder.execute("BEGIN IMMEDIATE")
        waiting = asyncio.ensure_future(wait())
        await asyncio.sleep(0.3)
        assert not waiting.done()
        holder.execute("ROLLBACK")
        released = loop.time()
        await waiting
        return loop.time() - released

    ours, theirs = [], []
    for number in range(9):
        ours.append(await after_release(lambda number=number: database.write(add, f"q{number}")))
        theirs.append(await after_release(lambda: asyncio.to_thread(wait_as_sqlite_does)))
    holder.close()
    stock.close()
    assert statistics.median(ours) < statistics.median(theirs) / 2, (ours, theirs)


@pytest.mark.parametrize(("given", "told"), [("FULL", 2), ("NORMAL", 1)])
async def test_the_file_is_opened_in_wal_with_the_synchronous_asked_for(
    url: str, make_database: MakeDatabase, given: str, told: int
) -> None:
    database = await make_database(url, sqlite_synchronous=given)

    def ask(tx: Tx) -> tuple[str, int]:
        def pragma(name: str) -> Any:
            return tx.connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()

        return pragma("journal_mode"), pragma("synchronous")

    assert await database.write(ask) == ("wal", told)


async def test_calls_that_wait_together_are_committed_together(url: str, make_database: MakeDatabase) -> None:
    database = await make_database(url)
    backend = database._backend
    assert isinstance(backend, SQLiteThreads)
    writer = backend._thread(write=True)
    before = writer.commits
    await asyncio.gather(*(database.write(add, f"q{number}") for number in range(400)))
    assert writer.commits - before < 200  # without grouping: 400
    assert len(await database.read(names)) == 400


async def test_a_group_is_told_only_after_its_commit(url: str, make_database: MakeDatabase) -> None:
    seen: list[int] = []

    class Look:
        def reach(self, name: str, tx: Tx) -> None:
            if name == "commit":
                seen.append(sum(task.done() for task in tasks))

    database = await make_database(url, points=Look())
    tasks: list[asyncio.Task[str]] = []
    tasks += [asyncio.create_task(database.write(add, f"q{number}")) for number in range(20)]
    await asyncio.gather(*tasks)
    assert seen
    assert seen[0] == 0


async def test_a_call_cancelled_while_it_waits_is_never_run(url: str, make_database: MakeDatabase) -> None:
    import threading

    go, holds = threading.Event(), threading.Event()
    database = await make_database(url)

    def hold(tx: Tx) -> None:
        holds.set()
        go.wait(10)

    holder = asyncio.create_task(database.write(hold))
    assert await asyncio.to_thread(holds.wait, 10)  # it runs, so what follows waits
    waiting = [asyncio.create_task(database.write(add, f"q{number}")) for number in range(10)]
    await asyncio.sleep(0)
    for task in waiting[::2]:
        task.cancel()
    await asyncio.gather(*waiting[::2], return_exceptions=True)
    go.set()
    await asyncio.gather(holder, *waiting[1::2])
    assert await database.read(names) == [f"q{number}" for number in range(1, 10, 2)]


async def test_an_urgent_call_goes_ahead_of_what_waits(url: str, make_database: MakeDatabase) -> None:
    import threading

    go, holds, order = threading.Event(), threading.Event(), []
    database = await make_database(url)

    def hold(tx: Tx) -> None:
        holds.set()
        go.wait(10)

    def note(tx: Tx, name: str) -> None:
        order.append(name)

    holder = asyncio.create_task(database.write(hold))
    assert await asyncio.to_thread(holds.wait, 10)
    waiting = [asyncio.create_task(database.write(note, f"q{number}")) for number in range(300)]
    await asyncio.sleep(0)
    async with database.heartbeat_database() as heartbeat:
        beat = asyncio.create_task(heartbeat.write(note, "beat"))
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(holder, beat, *waiting)
    assert order[0] == "beat"


def test_a_child_after_fork_may_not_use_what_it_inherited(url: str) -> None:
    script = """
import asyncio, os, sys, threading
from onebeat.errors import NotStarted
from onebeat.store.connection.database import Database
from onebeat.store.tables import build

def add(tx, name):
    tx.execute(tx.tables.queues.insert().values(name=name))

finished = []

async def on_its_own(database):
    await database.close()  # leaves what is the parent's alone
    for child in (database, Database(sys.argv[1], tables=build())):
        try:
            await child.open(10)
        except NotStarted as error:
            assert "after the fork" in str(error)
        else:
            os._exit(5)
    async with Database(sys.argv[1] + ".own", tables=build()) as own:  # another file is nothing to it
        await own.read(lambda tx: tx.now())
    finished.append(True)

async def main():
    async with Database(sys.argv[1], tables=build()) as database:
        await database.write(add, "parent")
        pid = os.fork()
        if pid == 0:
            try:
                await database.write(add, "child")
                os._exit(9)
            except NotStarted as error:
                if "fork" not in str(error):
                    os._exit(8)
            thread = threading.Thread(target=asyncio.run, args=(on_its_own(database),))
            thread.start()
            thread.join(30)
            os._exit(7 if finished else 6)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        await database.write(add, "parent again")

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(path_of(url)) as connection:
        found = {name for (name,) in connection.execute("SELECT name FROM onebeat_queues")}
    assert found == {"parent", "parent again"}


async def test_a_full_disk_is_said_and_loses_nothing(url: str, make_database: MakeDatabase) -> None:
    database = await make_database(url)
    await database.write(add, "before")

    def limit(tx: Tx, more: int) -> None:
        pages = tx.connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        tx.connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + more}")

    def large(tx: Tx) -> None:
        add(tx, "large")
        tx.execute(tx.tables.queues.update().values(paused_reason="x" * 1_000_000))

    await database.write(limit, 3)
    with pytest.raises(DatabaseUnavailable, match="no room left") as caught:
        await database.write(large)
    assert caught.value.reason == "full"
    outcomes = await asyncio.gather(database.write(add, "small"), database.write(large), return_exceptions=True)
    assert outcomes[0] == "small"  # its neighbour's lack of room is not its own
    assert isinstance(outcomes[1], DatabaseUnavailable)
    assert await database.read(names) == ["before", "small"]
    await database.write(limit, 10_000)
    await database.write(large)
    assert await database.read(names) == ["before", "large", "small"]


async def test_a_file_that_can_only_be_read_is_refused_at_start(url: str, make_database: MakeDatabase) -> None:
    with pytest.raises(DatabaseUnavailable, match="can only be read") as caught:
        await make_database(f"sqlite:///file:{path_of(url)}?mode=ro&uri=true")
    assert caught.value.reason == "read-only"


async def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(
    tmp_path: Path, make_database: MakeDatabase
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database " * 100)
    with pytest.raises(DatabaseUnavailable, match="damaged or is no database") as caught:
        await make_database(f"sqlite:///{path}")
    assert caught.value.reason == "corrupt"
    assert path.read_text() == "not a database " * 100


async def test_a_missing_directory_and_a_directory_are_told_apart(tmp_path: Path, make_database: MakeDatabase) -> None:
    with pytest.raises(ConfigurationError, match="does not exist; create it"):
        await make_database(f"sqlite:///{tmp_path}/none/app.db")
    with pytest.raises(ConfigurationError, match="is a directory"):
        await make_database(f"sqlite:///{tmp_path}")


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / /srv/net rw - {kind} server:/export rw
31 22 0:27 / /srv/with\\040blank rw - 9p share rw
32 30 254:1 / /srv/net/local rw - xfs /dev/vdb rw
"""


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "virtiofs", "ceph"])
def test_a_network_file_system_is_refused_unless_allowed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS.replace("{kind}", kind))
    monkeypatch.setattr(Path, "is_dir", lambda path: not path.suffix)  # /srv/net is not there in truth
    with pytest.raises(ConfigurationError, match=rf"\({kind}\).*sqlite_allow_network=True"):
        sqlite_file.require_place(Path("/srv/net/data/app.db"), allow_network=False, mountinfo=mounts)
    with pytest.raises(ConfigurationError, match=r"\(9p\)"):
        sqlite_file.require_place(Path("/srv/with blank/app.db"), allow_network=False, mountinfo=mounts)
    sqlite_file.require_place(Path("/srv/net/data/app.db"), allow_network=True, mountinfo=mounts)
    sqlite_file.require_place(Path("/srv/net/local/app.db"), allow_network=False, mountinfo=mounts)
    sqlite_file.require_place(Path("/srv/other/app.db"), allow_network=False, mountinfo=mounts)


async def test_the_start_looks_at_the_file_system(
    url: str, make_database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "filesystem_of", lambda path, mountinfo: "nfs4")
    with pytest.raises(ConfigurationError, match="network or shared file system"):
        await make_database(url)
    await make_database(url, sqlite_allow_network=True)


def test_the_file_system_of_a_real_path_is_found(tmp_path: Path) -> None:
    expected = subprocess.run(
        ["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True
    ).stdout.strip()
    found = sqlite_file.filesystem_of(tmp_path / "app.db")
    assert found is not None
    assert sqlite_file.filesystem_of(Path("/proc/self/status")) == "proc"
    assert found[:4] in expected or expected in ("ext2/ext3", "overlayfs", "UNKNOWN")


async def test_an_old_library_is_refused_with_what_is_needed(
    url: str, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(ConfigurationError, match=r"SQLite 3\.34\.1; onebeat needs 3\.35"):
        await make_database(url)


async def test_a_library_with_a_rare_race_is_mentioned(
    url: str, make_database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 2))
    assert "3.51.3 does not" in (await make_database(url)).cautions[0]
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 3))
    assert (await make_database(url)).cautions == []


async def test_a_database_in_memory_serves_all_siblings_of_one_process(tables: Tables, make_database: Any) -> None:
    database = await make_database("sqlite:///:memory:")
    await migrations.migrate(database)
    await database.write(add, "a")
    assert await database.read(names) == ["a"]

    def in_a_thread() -> list[str]:
        async def work() -> list[str]:
            async with database.heartbeat_database() as sibling:
                await sibling.write(add, "b")
                return list(await sibling.read(names))

        return asyncio.run(work())

    assert await asyncio.to_thread(in_a_thread) == ["a", "b"]


async def test_a_lock_held_for_ever_is_said_in_the_end(url: str, make_database: Any) -> None:
    database = await make_database(url)
    holder = sqlite3.connect(path_of(url), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(database.exclusive(lambda tx: add(tx, "a"), patience=0.3))
    with pytest.raises(DatabaseUnavailable, match="other connections hold its write lock") as caught:
        await waiting
    assert caught.value.reason == "retry"
    assert await database.read(names) == []  # readers never wait
    holder.execute("ROLLBACK")
    holder.close()
    assert await database.write(add, "a") == "a"


async def test_what_a_closed_database_had_queued_is_refused_not_forgotten(url: str, make_database: Any) -> None:
    database = await make_database(url)
    calls = [asyncio.create_task(database.write(add, f"q{number}")) for number in range(50)]
    await asyncio.sleep(0)
    await database.close()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    reopened = await make_database(url)
    written = await reopened.read(names)
    assert all(outcome in written or isinstance(outcome, NotStarted) for outcome in outcomes)
    assert written == sorted(outcome for outcome in outcomes if isinstance(outcome, str))


def test_sqlites_own_crash_leaves_only_what_was_told(tmp_path: Path, shelf: Shelf) -> None:
    """A process killed while it writes: everything it had told is there, in order."""
    url = shelf.take("sqlite", tmp_path)
    script = """
import asyncio, sys
from onebeat.store.connection.database import Database
from onebeat.store.tables import build

def add(tx, name):
    tx.execute(tx.tables.queues.insert().values(name=name))
    return name

async def main():
    database = Database(sys.argv[1], tables=build())
    await database.open(10)
    number = 0
    while True:
        batch = [f"{number + i:08}" for i in range(20)]
        for told in await asyncio.gather(*(database.write(add, name) for name in batch)):
            print(told, flush=True)
        number += 20

asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", script, url], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [process.stdout.readline().strip() for _ in range(500)]
    process.kill()
    told += [line.strip() for line in process.stdout if len(line) == 9]
    process.wait()
    with sqlite3.connect(path_of(url)) as connection:
        kept = {name for (name,) in connection.execute("SELECT name FROM onebeat_queues")}
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert set(told) <= kept
    assert os.path.exists(path_of(url))


def test_the_prefix_is_checked_before_anything_is_opened() -> None:
    with pytest.raises(ConfigurationError, match="table_prefix"):
        build("x; DROP TABLE")


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["a.db", "file:{}/a.db?uri=true", "file:{}/a%20b.db?mode=rwc&uri=true"])
async def test_a_new_file_is_readable_by_its_user_alone(name: str, tmp_path: Path, tables: Tables) -> None:
    """Jobs keep their arguments in clear text."""
    place = name.format(tmp_path) if name.startswith("file:") else str(tmp_path / name)
    async with Database(f"sqlite:///{place}", tables=tables) as database:
        await migrations.migrate(database)
        found = modes(tmp_path)
    assert len(found) == 3, "the file, -wal and -shm"
    assert set(found.values()) == {0o600}, found


async def test_a_file_that_is_there_keeps_its_mode(tmp_path: Path, tables: Tables) -> None:
    (tmp_path / "a.db").touch()
    (tmp_path / "a.db").chmod(0o640)
    async with Database(f"sqlite:///{tmp_path}/a.db", tables=tables) as database:
        await migrations.migrate(database)
        assert set(modes(tmp_path).values()) == {0o640}


async def test_a_file_that_may_not_be_made_is_not_made(tmp_path: Path, tables: Tables) -> None:
    with pytest.raises(DatabaseUnavailable):
        await Database(f"sqlite:///file:{tmp_path}/a.db?mode=rw&uri=true", tables=tables).open(timeout=1)
    assert modes(tmp_path) == {}
