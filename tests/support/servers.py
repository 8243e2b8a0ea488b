"""Private PostgreSQL and MariaDB servers, for tests that kill, pause or misconfigure one."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

START_WITHIN = 60.0  # seconds, on a busy machine


class Server:
    """One server with a data directory and a port of its own, on 127.0.0.1; it dies with `close`.

    `start`, `kill` (SIGKILL), `stop` (the server's fast shutdown), `pause` and `proceed` (SIGSTOP and SIGCONT of all of
    it). `options` are added to the server's command line. As root the server runs as the user the package made for it.
    """

    user: ClassVar[str]
    port: int

    def __init__(self, *options: str) -> None:
        self.options = options
        self.home = Path(tempfile.mkdtemp(prefix="onebeat-server-"))
        self.data = self.home / "data"
        self.log = self.home / "server.log"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._uid: int | None = None
        self._gid: int | None = None
        if os.getuid() == 0:
            entry = pwd.getpwnam(self.user)
            self._uid, self._gid = entry.pw_uid, entry.pw_gid
            os.chown(self.home, entry.pw_uid, entry.pw_gid)
        self.create()

    # ── what each kind answers ──
    def create(self) -> None:
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    @property
    def url(self) -> str:
        raise NotImplementedError

    # ── life ──
    def start(self) -> None:
        """Start it and wait until it answers."""
        assert self.process is None, "it runs already"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=log,
                cwd=self.home,
                start_new_session=True,
                user=self._uid,
                group=self._gid,
            )
        deadline = time.monotonic() + START_WITHIN
        while not self.answers():
            ended = self.process.poll()
            assert ended is None, f"the server ended with {ended}:\n{self.log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"no answer within {START_WITHIN} s:\n{self.log.read_text()[-2000:]}"
            time.sleep(0.05)

    def kill(self) -> None:
        """As a power cut of the process: SIGKILL for all of it."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """The server's own fast shutdown."""
        self._end(self.fast)

    fast: ClassVar[signal.Signals] = signal.SIGTERM

    def pause(self) -> None:
        """It stands still and answers nothing; connections stay open."""
        self._signal(signal.SIGSTOP)

    def proceed(self) -> None:
        """It goes on after `pause`."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End it and remove its files."""
        if self.process is not None:
            self.kill()
        shutil.rmtree(self.home, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        for pid in [self.process.pid, *children(self.process.pid)]:
            try:
                os.kill(pid, number)
            except ProcessLookupError:  # it ended meanwhile
                continue

    def _end(self, number: signal.Signals) -> None:
        process, self.process = self.process, None
        assert process is not None, "it does not run"
        if number == signal.SIGKILL:
            for pid in [process.pid, *children(process.pid)]:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
        else:
            process.send_signal(number)
        process.wait(START_WITHIN)

    def run(self, *command: str | Path, check: bool = True) -> str:
        """Run a tool as the server's user; its output."""
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, cwd=self.home, timeout=START_WITHIN,
            user=self._uid, group=self._gid,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command[0]}: {done.stderr[-2000:]}"
        return done.stdout


class PostgreSQLServer(Server):
    """PostgreSQL with `trust` for the superuser `postgres`, and a password (scram) for everybody else."""

    user = "postgres"
    fast = signal.SIGINT

    def create(self) -> None:
        bin_ = self.bin()
        self.run(
            bin_ / "initdb", "-D", self.data, "-U", "postgres", "--no-sync", "-A", "trust", "-E", "UTF8", "--locale=C"
        )
        rules = "local all all trust\nhost all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        (self.data / "pg_hba.conf").write_text(rules)

    def command(self) -> list[str]:
        fixed = {
            "listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": str(self.home),
            "fsync": "off", "shared_buffers": "16MB", "max_connections": "50", "log_statement": "none",
        }  # fmt: skip
        return [
            str(self.bin() / "postgres"),
            "-D",
            str(self.data),
            *(f"-c{k}={v}" for k, v in fixed.items()),
            *self.options,
        ]

    def answers(self) -> bool:
        done = subprocess.run(
            [self.bin() / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)], capture_output=True, check=False
        )
        return done.returncode == 0

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run SQL as the superuser; its output, unadorned."""
        return self.run(
            self.bin() / "psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(self.port),
            "-U", "postgres", "-d", database, "-c", statement,
        ).strip()  # fmt: skip

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @staticmethod
    def bin() -> Path:
        """Where the newest installed version keeps its programs."""
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
        named = shutil.which("postgres")
        assert found or named, "no PostgreSQL server is installed; `make databases` installs one"
        return found[-1].parent if found else Path(str(named)).resolve().parent


class MariaDBServer(Server):
    """MariaDB with `root` without a password, and an empty database `app`."""

    user = "mysql"

    def create(self) -> None:
        install = shutil.which("mariadb-install-db") or shutil.which("mysql_install_db")
        assert install, "no MariaDB server is installed; `make databases` installs one"
        self.run(
            install, "--no-defaults", f"--datadir={self.data}", "--auth-root-authentication-method=normal",
            "--skip-test-db", "--innodb-flush-log-at-trx-commit=0", "--innodb-log-file-size=8M",
        )  # fmt: skip
        (self.data / "app").mkdir()
        if self._uid is not None and self._gid is not None:
            os.chown(self.data / "app", self._uid, self._gid)

    def command(self) -> list[str]:
        daemon = shutil.which("mariadbd") or shutil.which("mysqld") or "/usr/sbin/mariadbd"
        return [
            daemon, "--no-defaults", f"--datadir={self.data}", f"--port={self.port}", "--bind-address=127.0.0.1",
            f"--socket={self.home}/s", f"--pid-file={self.home}/pid", "--innodb-buffer-pool-size=32M",
            "--innodb-log-file-size=8M", "--skip-name-resolve", *self.options,
        ]  # fmt: skip

    def answers(self) -> bool:
        done = subprocess.run(
            [self._client(), "--no-defaults", "-h127.0.0.1", f"-P{self.port}", "-uroot", "-e", "SELECT 1"],
            capture_output=True, check=False, timeout=20,
        )  # fmt: skip
        return done.returncode == 0

    def sql(self, statement: str) -> str:
        """Run SQL as root; its output, unadorned."""
        return self.run(
            self._client(), "--no-defaults", "-h127.0.0.1", f"-P{self.port}", "-uroot", "-NBe", statement
        ).strip()

    @property
    def url(self) -> str:
        return f"mysql://root@127.0.0.1:{self.port}/app"

    @staticmethod
    def _client() -> str:
        found = shutil.which("mariadb") or shutil.which("mysql")
        assert found, "no MariaDB client is installed; `make databases` installs one"
        return found


PRIVATE: dict[str, type[PostgreSQLServer] | type[MariaDBServer]] = {
    "postgresql": PostgreSQLServer,
    "mariadb": MariaDBServer,
}


@contextmanager
def private_server(kind: str, *options: str) -> Iterator[PostgreSQLServer | MariaDBServer]:
    """A started server of one's own: `with private_server("mariadb") as server:`."""
    server = PRIVATE[kind](*options)
    try:
        server.start()
        yield server
    finally:
        server.close()


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children(pid: int) -> list[int]:
    """All descendants of a process, from /proc."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid:
            child = int(entry.parent.name)
            found.extend([child, *children(child)])
    return found
