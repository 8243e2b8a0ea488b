"""Private PostgreSQL, MariaDB and Redis servers: those of `make databases`, and those that a test may kill.

It imports the standard library alone, so that `make databases` needs no virtual environment.
"""

from __future__ import annotations

import json
import os
import pwd
import secrets
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

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / ".run" / "databases"  # what `make databases` makes and `make clean` removes
KEPT = FOLDER / "servers.json"  # its servers: home, password and address by kind; nobody else may read it
VARIABLES = {  # addresses of servers that the tests are to use instead
    "postgresql": "ONEBEAT_TEST_POSTGRESQL",
    "mariadb": "ONEBEAT_TEST_MARIADB",
    "redis": "ONEBEAT_TEST_REDIS",
}
START_WITHIN = 60.0  # seconds, on a busy machine
PATH = os.pathsep.join(
    (os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin")
)  # Debian's servers


class Server:
    """One server with a folder, a port and a password of its own, on 127.0.0.1; it ends with `close`.

    `start`, `kill` (SIGKILL), `stop` (the server's fast shutdown), `pause` and `proceed` (SIGSTOP and SIGCONT of all of
    it). `options` are added to the server's command line. As root the server runs as the user that its package made,
    and has none of root's groups. `home` is the folder, empty or of an earlier start. Without it a temporary one is
    made, and the server gets the settings of `small`, which save memory and do not wait for the disk.
    """

    kind: ClassVar[str]
    user: ClassVar[str]
    small: ClassVar[tuple[str, ...]] = ()
    hello: ClassVar[str] = "SELECT 1"
    fast: ClassVar[signal.Signals] = signal.SIGTERM
    port: int

    def __init__(self, *options: str, home: Path | None = None, password: str | None = None) -> None:
        self.options = (*self.small, *options) if home is None else options
        self.password = password or secrets.token_hex(16)
        self.home = Path(tempfile.mkdtemp(prefix="onebeat-server-")) if home is None else home
        self.data = self.home / "data"
        self.log = self.home / "server.log"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._uid, self._gid, self._groups = identity(self.user)
        give(self.home, self.user)
        if not self.data.exists():
            self.create()

    # ── what each kind answers ──
    def create(self) -> None:
        """Make the data folder, with the password for the administrator and no other way in."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """What starts the server in the foreground."""
        raise NotImplementedError

    def sql(self, statement: str) -> str:
        """Run a statement as the administrator; its output, unadorned."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        """The administrator's address, with the password."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Return whether the administrator's password opens a connection, so that no other server is meant."""
        try:
            return self.sql(self.hello) != ""
        except (AssertionError, subprocess.TimeoutExpired):
            return False

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
                env={"PATH": PATH, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                user=self._uid,
                group=self._gid,
                extra_groups=self._groups,
            )
        deadline = time.monotonic() + START_WITHIN
        while not self.answers():
            if (ended := self.process.poll()) is not None:
                self.process = None
                raise AssertionError(f"the server ended with {ended}:\n{self.log.read_text()[-2000:]}")
            assert time.monotonic() < deadline, f"no answer within {START_WITHIN} s:\n{self.log.read_text()[-2000:]}"
            time.sleep(0.05)

    def kill(self) -> None:
        """As a power cut of the process: SIGKILL for all of it."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """The server's own fast shutdown."""
        self._end(self.fast)

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

    def run(self, *command: str | Path, **environment: str) -> str:
        """Run a tool as the server's user, with no variables but these; its output."""
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, cwd=self.home, timeout=START_WITHIN,
            env={"PATH": PATH, "LC_ALL": "C", **environment}, stdin=subprocess.DEVNULL,
            user=self._uid, group=self._gid, extra_groups=self._groups,
        )  # fmt: skip
        assert done.returncode == 0, f"{command[0]}: {(done.stderr or done.stdout)[-2000:]}"
        return done.stdout

    @contextmanager
    def secret_file(self, text: str) -> Iterator[Path]:
        """A file that only the server's user can read, for the time of the block."""
        path = self.home / "secret"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        give(path, self.user)
        try:
            yield path
        finally:
            path.unlink()


class PostgreSQLServer(Server):
    """PostgreSQL where everybody needs a password (scram), the superuser `postgres` too."""

    kind = "postgresql"
    user = "postgres"
    small = ("-cfsync=off", "-cshared_buffers=16MB", "-cmax_connections=50")
    fast = signal.SIGINT

    def create(self) -> None:
        with self.secret_file(self.password) as secret:
            self.run(
                self.bin() / "initdb", "-D", self.data, "-U", "postgres", "--no-sync", "-A", "scram-sha-256",
                f"--pwfile={secret}", "-E", "UTF8", "--locale=C",
            )  # fmt: skip
        (self.data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")

    def command(self) -> list[str]:
        fixed = ("listen_addresses=127.0.0.1", f"port={self.port}", "unix_socket_directories=", "log_statement=none")
        return [str(self.bin() / "postgres"), "-D", str(self.data), *(f"-c{word}" for word in fixed), *self.options]

    def sql(self, statement: str, database: str = "postgres") -> str:
        return self.run(
            self.bin() / "psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(self.port),
            "-U", "postgres", "-d", database, "-c", statement, PGPASSWORD=self.password, PGCONNECT_TIMEOUT="20",
            PGCLIENTENCODING="UTF8",
        ).strip()  # fmt: skip

    @property
    def url(self) -> str:
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/postgres"

    @staticmethod
    def bin() -> Path:
        """Where the newest installed version keeps its programs."""
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
        return found[-1].parent if found else Path(program("postgres")).resolve().parent


class MariaDBServer(Server):
    """MariaDB where only `root` may enter, with a password, and an empty database `app`."""

    kind = "mariadb"
    user = "mysql"
    small = ("--innodb-buffer-pool-size=32M", "--innodb-log-file-size=8M")

    def create(self) -> None:
        accounts = (
            "FLUSH PRIVILEGES;\n"  # the table of accounts is not loaded before
            "DELETE FROM mysql.global_priv WHERE User <> 'mariadb.sys';\n"
            "FLUSH PRIVILEGES;\n"
            f"CREATE USER root@'127.0.0.1' IDENTIFIED BY '{self.password}';\n"
            "GRANT ALL ON *.* TO root@'127.0.0.1' WITH GRANT OPTION;\n"
            "CREATE DATABASE app;\n"
        )
        with self.secret_file(accounts) as secret:
            self.run(
                program("mariadb-install-db", "mysql_install_db"), "--no-defaults", f"--datadir={self.data}",
                "--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve",
                f"--extra-file={secret}", "--innodb-flush-log-at-trx-commit=0",
                *(option for option in self.options if option in self.small),
            )  # fmt: skip

    def command(self) -> list[str]:
        return [
            program("mariadbd", "mysqld"), "--no-defaults", f"--datadir={self.data}", f"--port={self.port}",
            "--bind-address=127.0.0.1", "--socket=socket", "--pid-file=pid", "--skip-name-resolve",
            f"--tmpdir={self.data}",  # a server that starts removes the temporary tables it finds there
            *self.options,
        ]  # fmt: skip  # socket and pid lie in the data folder, whose whole path may be too long for a socket

    def sql(self, statement: str) -> str:
        return self.run(
            program("mariadb", "mysql"), "--no-defaults", "-h127.0.0.1", f"-P{self.port}", "-uroot",
            "--connect-timeout=20", "--default-character-set=utf8mb4", "-NBe", statement, MYSQL_PWD=self.password,
        ).strip()  # fmt: skip

    @property
    def url(self) -> str:
        return f"mysql://root:{self.password}@127.0.0.1:{self.port}/app"


class RedisServer(Server):
    """Redis with a password, which remembers nothing when it ends."""

    kind = "redis"
    user = "redis"
    hello = "PING"

    def create(self) -> None:
        self.data.mkdir(mode=0o700)
        give(self.data, self.user)

    def command(self) -> list[str]:
        settings = self.data / "redis.conf"  # a file, since everybody may read a command line
        settings.unlink(missing_ok=True)
        with os.fdopen(os.open(settings, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(
                f"bind 127.0.0.1\nport {self.port}\nrequirepass {self.password}\ndir {self.data}\n"
                'save ""\nappendonly no\ndaemonize no\n'
            )
        give(settings, self.user)
        return [program("redis-server"), str(settings), *self.options]

    def sql(self, statement: str) -> str:
        """Run a command of Redis; its words are separated by blanks."""
        answer = self.run(
            program("redis-cli"), "-h", "127.0.0.1", "-p", str(self.port), *statement.split(),
            REDISCLI_AUTH=self.password,
        ).strip()  # fmt: skip
        assert not answer.startswith(("ERR", "NOAUTH", "WRONGPASS", "LOADING")), answer
        return answer

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"


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


def kept_servers() -> dict[str, dict[str, str]]:
    """Home, password and address, by kind, of each server that `make databases` made in this clone."""
    try:
        kept: dict[str, dict[str, str]] = json.loads(KEPT.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return kept


def addresses() -> dict[str, str]:
    """The address by kind that the tests use: the variable's, else that of `make databases`, else an empty text."""
    kept = kept_servers()
    return {kind: os.environ.get(variable) or kept.get(kind, {}).get("url", "") for kind, variable in VARIABLES.items()}


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


def program(*names: str) -> str:
    """The path of the first of these programs that is installed."""
    for name in names:
        if found := shutil.which(name, path=PATH):
            return found
    raise FileNotFoundError(f"{names[0]} is not installed")


def identity(user: str) -> tuple[int | None, int | None, list[int] | None]:
    """User, group and further groups of a server: None for the caller's own; as root its package's user or `nobody`."""
    if os.getuid() != 0:
        return None, None, None
    try:
        entry = pwd.getpwnam(user)
    except KeyError:  # a server that no package brought
        entry = pwd.getpwnam("nobody")
    return entry.pw_uid, entry.pw_gid, []


def give(path: Path, user: str) -> None:
    """Make a path the server user's own; only root has to."""
    uid, gid, _ = identity(user)
    if uid is not None and gid is not None:
        os.chown(path, uid, gid)
