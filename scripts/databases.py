"""This clone's own PostgreSQL, MariaDB and Redis: `databases.py start` starts them, `databases.py remove` removes them.

They lie in `.run/databases`, run as an unprivileged user, listen on free ports of 127.0.0.1 and have random passwords,
which `.run/databases/servers.json` keeps for the tests. No server, account or file of the system is read or changed.
A kind whose address is in ONEBEAT_TEST_POSTGRESQL, ONEBEAT_TEST_MARIADB or ONEBEAT_TEST_REDIS is left alone.

With ONEBEAT_TEST_INSTALL=1, as root on Debian, a program that is missing is installed. That is meant for machines of
continuous integration: Debian's packages may start servers of their own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.servers import (
    FOLDER,
    KEPT,
    PATH,
    VARIABLES,
    MariaDBServer,
    PostgreSQLServer,
    RedisServer,
    Server,
    give,
    identity,
    kept_servers,
    program,
)

SERVERS: tuple[type[Server], ...] = (PostgreSQLServer, MariaDBServer, RedisServer)
STOP_WITHIN = 30.0  # seconds for a server's own shutdown
TRIES = 3  # another process may take the free port in between
PACKAGES: dict[str, tuple[tuple[Callable[[], object], str], ...]] = {  # what each kind needs, and Debian's package
    "postgresql": ((PostgreSQLServer.bin, "postgresql"),),
    "mariadb": (
        (lambda: program("mariadbd", "mysqld"), "mariadb-server"),
        (lambda: program("mariadb-install-db", "mysql_install_db"), "mariadb-server"),
        (lambda: program("mariadb", "mysql"), "mariadb-client"),
    ),
    "redis": (
        (lambda: program("redis-server"), "redis-server"),
        (lambda: program("redis-cli"), "redis-tools"),
    ),
}


class Unavailable(Exception):
    """A server that cannot be had here; the text says what to do."""


def say(text: str) -> None:
    print(f"databases: {text}", flush=True)


def start() -> None:
    """Start each server that does not run yet; raise `Unavailable` naming those that cannot be had."""
    problems = []
    for server in SERVERS:
        try:
            start_one(server)
        except Unavailable as problem:
            problems.append(f"{server.kind}: {problem}")
    if problems:
        raise Unavailable("\n".join(problems))
    say("PostgreSQL, MariaDB and Redis answer; `make clean` stops and removes those of this clone")


def start_one(server: type[Server]) -> None:
    if os.environ.get(VARIABLES[server.kind]):
        say(f"{server.kind} is the one that {VARIABLES[server.kind]} names")
        return
    kept = kept_servers().get(server.kind)
    if kept is not None and processes(Path(kept["home"])):
        return
    for find, package in PACKAGES[server.kind]:
        need(find, package, VARIABLES[server.kind])
    started = begin(server, kept)
    keep({**kept_servers(), server.kind: {
        "home": str(started.home), "password": started.password, "url": started.url,
    }})  # fmt: skip
    say(f"{server.kind} runs in {started.home} on port {started.port}")


def begin(server: type[Server], kept: dict[str, str] | None) -> Server:
    """Return the started server: the one that is kept, or a new one."""
    for attempt in range(TRIES):
        try:
            if kept is None or not (Path(kept["home"]) / "data").exists():
                made = create(server)
                kept = {"home": str(made.home), "password": made.password}
            else:
                made = server(home=Path(kept["home"]), password=kept["password"])
            made.start()
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            if attempt == TRIES - 1:
                raise Unavailable(f"it does not start; `make clean` removes its data. {error}") from error
        else:
            return made
    raise AssertionError("unreachable")


def create(server: type[Server]) -> Server:
    home = new_home(server)
    try:
        return server(home=home)
    except BaseException:
        shutil.rmtree(home)
        raise


def new_home(server: type[Server]) -> Path:
    """Make the empty folder of a server: in the clone, or a temporary one where its user cannot reach the clone."""
    home = FOLDER / server.kind
    if home.exists():  # an earlier start was interrupted
        stop(home, server.fast)
        shutil.rmtree(home)
    home.mkdir(mode=0o700)
    give(home, server.user)
    uid, gid, groups = identity(server.user)
    reached = subprocess.run(["test", "-w", home], user=uid, group=gid, extra_groups=groups, check=False)
    if reached.returncode == 0:
        return home
    home.rmdir()
    return Path(tempfile.mkdtemp(prefix=f"onebeat-{server.kind}-"))


def need(find: Callable[[], object], package: str, variable: str) -> None:
    """Install a package when its program is missing, if ONEBEAT_TEST_INSTALL allows it."""
    with contextlib.suppress(FileNotFoundError):
        find()
        return
    if os.environ.get("ONEBEAT_TEST_INSTALL") != "1":
        raise Unavailable(
            f"its program is missing; install the package {package}, or name a server in {variable}, or let this "
            "command install it with ONEBEAT_TEST_INSTALL=1 (as root on Debian, on a machine that has no such server)"
        )
    if os.getuid() != 0 or shutil.which("apt-get") is None:
        raise Unavailable(f"the package {package} cannot be installed here: that needs root and apt-get")
    say(f"installing {package}")
    environment = {**os.environ, "PATH": PATH, "RUNLEVEL": "1", "DEBIAN_FRONTEND": "noninteractive"}
    options = ("-y", "-qq", "--no-install-recommends", "--no-remove", "-o", "DPkg::Lock::Timeout=120")
    subprocess.run(["apt-get", "update", "-qq"], env=environment, check=False)
    subprocess.run(["apt-get", "install", *options, package], env=environment, stdout=subprocess.DEVNULL, check=False)
    try:
        find()
    except FileNotFoundError as error:
        raise Unavailable(f"the package {package} could not be installed; apt-get's words are above") from error


def keep(servers: dict[str, dict[str, str]]) -> None:
    """Write the file of the servers, which only its owner may read."""
    new = KEPT.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(servers, file)
    new.replace(KEPT)


def remove() -> None:
    """Stop the servers of this clone and remove their data and passwords."""
    kept = kept_servers()
    for server in SERVERS:
        homes = {FOLDER / server.kind, *(Path(entry["home"]) for kind, entry in kept.items() if kind == server.kind)}
        for home in homes:
            stop(home, server.fast)
            if home.exists():
                shutil.rmtree(home)
                say(f"removed {server.kind}")
    shutil.rmtree(FOLDER)


def stop(home: Path, fast: signal.Signals) -> None:
    """End a server by its own fast shutdown; by SIGKILL when that takes too long."""
    for number, seconds in ((fast, STOP_WITHIN), (signal.SIGKILL, STOP_WITHIN)):
        running = processes(home)
        for pid, parent in running.items():
            if parent not in running or number == signal.SIGKILL:
                with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                    os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while processes(home) and time.monotonic() < deadline:
            time.sleep(0.1)
    if processes(home):
        raise Unavailable(f"the server in {home} does not end; its processes are {sorted(processes(home))}")


def processes(home: Path) -> dict[int, int]:
    """The processes that work in a server's data folder, each with its parent: that server's, and nobody else's."""
    data = os.path.realpath(home / "data")
    if Path("/proc/self/cwd").exists():
        found = [int(entry.parent.name) for entry in Path("/proc").glob("[0-9]*/cwd") if link(entry) == data]
        return {pid: parent for pid in found if (parent := parent_of(pid)) is not None}
    listed = subprocess.run(["lsof", "-a", "-d", "cwd", "-F", "pR", data], capture_output=True, text=True, check=False)
    lines = [line for line in listed.stdout.splitlines() if line[:1] in ("p", "R")]
    return {int(pid[1:]): int(parent[1:]) for pid, parent in zip(lines[::2], lines[1::2], strict=True)}


def link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:  # it ended meanwhile, or is another user's
        return ""


def parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return None


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold the lock of this clone's servers."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    FOLDER.chmod(0o711)  # the servers' users pass through; only the caller lists and writes
    with (FOLDER / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


COMMANDS = {"start": start, "remove": remove}

if __name__ == "__main__":
    if sys.argv[1:] not in (["start"], ["remove"]):
        sys.exit(f"use `databases.py start` or `databases.py remove`, not {' '.join(sys.argv[1:]) or 'nothing'}")
    try:
        with one_at_a_time():
            COMMANDS[sys.argv[1]]()
    except Unavailable as problem:
        sys.exit("\n".join(f"databases: {line}" for line in str(problem).splitlines()))
