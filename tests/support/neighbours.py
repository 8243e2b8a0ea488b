"""Run `make databases`, `make test` and `make clean` beside servers of the system that have passwords, and compare.

`unshare` gives this process a network, mounts and a process table of its own: it may take the usual ports and cover the
system's folders, and nothing is left behind. Called by tests/test_own_databases.py with the clone and a folder.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

from tests.support.servers import MariaDBServer, PostgreSQLServer, RedisServer, Server, give

FOLDERS = ("/etc/postgresql", "/var/lib/postgresql", "/etc/mysql", "/var/lib/mysql", "/etc/redis", "/var/lib/redis")
TESTS = "tests/store/test_isolation.py tests/locks/test_redis.py -k 'level or permissions' -p no:cacheprovider"


def cover(folder: Path) -> None:
    """Put empty folders over those of the system's servers, and bring up the loopback network."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    for covered in filter(os.path.isdir, FOLDERS):
        empty = folder / covered.strip("/").replace("/", "-")
        empty.mkdir()
        subprocess.run(["mount", "--bind", str(empty), covered], check=True)
    with socket.socket() as any_socket:  # SIOCSIFFLAGS with IFF_UP, netdevice(7)
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", 1))


class SystemPostgreSQL(PostgreSQLServer):
    """PostgreSQL as Debian lays it out: its configuration lies in /etc/postgresql."""

    def command(self) -> list[str]:
        return [*super().command(), f"-chba_file={self.rules()}", "-cunix_socket_directories=/run/postgresql"]

    def rules(self) -> Path:
        return Path("/etc/postgresql") / (self.data / "PG_VERSION").read_text().strip() / "main" / "pg_hba.conf"

    def state(self) -> str:
        tools = (self.bin() / "pg_dumpall", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres")
        dump = self.run(*tools, PGPASSWORD=self.password)
        lines = [line for line in dump.splitlines() if "restrict " not in line]  # a word that differs in each dump
        return self.sql("SELECT name, setting FROM pg_settings ORDER BY 1") + "\n".join(lines)


class SystemMariaDB(MariaDBServer):
    """MariaDB as Debian sets it up: root enters by the socket as root, or with the password."""

    def command(self) -> list[str]:
        return [*super().command(), "--socket=/run/mysqld/mysqld.sock"]

    def state(self) -> str:
        tool = ("mariadb-dump", "--no-defaults", "-h127.0.0.1", f"-P{self.port}", "-uroot", "--all-databases")
        dump = self.run(*tool, "--skip-dump-date", "--ignore-table=mysql.innodb_table_stats",
                        "--ignore-table=mysql.innodb_index_stats", MYSQL_PWD=self.password)  # fmt: skip
        return self.sql("SELECT * FROM mysql.global_priv ORDER BY Host, User") + dump


class SystemRedis(RedisServer):
    """Redis with a password."""

    def state(self) -> str:
        return self.sql("CONFIG GET *") + self.sql("KEYS *") + self.sql("GET theirs") + self.sql("ACL LIST")


def stand_ins(folder: Path) -> tuple[SystemPostgreSQL, SystemMariaDB, SystemRedis]:
    """The system's servers, started on the usual ports, each with a password and something to lose."""
    for name, user in (("postgresql", "postgres"), ("mysqld", "mysql")):
        (Path("/run") / name).mkdir()
        give(Path("/run") / name, user)

    def home(kind: str) -> Path:
        made = folder / f"system-{kind}"
        made.mkdir()
        return made

    postgresql, mariadb = SystemPostgreSQL(home=home("postgresql")), SystemMariaDB(home=home("mariadb"))
    redis = SystemRedis(home=home("redis"))
    postgresql.port, mariadb.port, redis.port = 5432, 3306, 6379
    rules = postgresql.rules()
    rules.parent.mkdir(parents=True)
    rules.write_text("local all postgres peer\nhost all all 127.0.0.1/32 scram-sha-256\n")
    (rules.parent / "postgresql.conf").write_text(f"data_directory = '{postgresql.data}'\nport = 5432\n")
    for path in (rules, rules.parent / "postgresql.conf"):
        give(path, "postgres")
    for server in (postgresql, mariadb, redis):
        server.start()
    postgresql.sql("CREATE TABLE theirs AS SELECT 1 AS kept")
    mariadb.sql(
        "CREATE USER root@localhost IDENTIFIED VIA unix_socket OR mysql_native_password USING "
        f"PASSWORD('{mariadb.password}'); GRANT ALL ON *.* TO root@localhost; CREATE TABLE app.theirs (kept int)"
    )
    redis.sql("SET theirs kept")
    return postgresql, mariadb, redis


def files() -> dict[str, tuple[bytes, int, int]]:
    """The configuration in /etc: bytes, mode and owner of each file."""
    found = [path for folder in FOLDERS if folder.startswith("/etc") for path in Path(folder).rglob("*")]
    return {str(path): (path.read_bytes(), path.stat().st_mode, path.stat().st_uid) for path in found if path.is_file()}


def main(clone: Path, folder: Path) -> None:
    cover(folder)
    servers = stand_ins(folder)

    def state() -> list[object]:
        running: list[Server] = [*servers]
        pids = [server.process.pid for server in running if server.process and server.process.poll() is None]
        return [files(), pids, *(server.state() for server in servers)]

    before = state()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ONEBEAT_TEST", "PYTEST"))}
    environment |= {"PYTEST_ADDOPTS": TESTS, "ONEBEAT_TEST_REQUIRE": "sqlite,postgresql,mariadb,redis"}
    environment["PYTHONPATH"] = f"{clone}/src:{clone}"
    for target in ("databases", "test", "clean"):
        command = ["make", "-o", ".venv/.dev", f"PYTHON={sys.executable}", target]
        done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=300)
        print(done.stdout[-2000:], done.stderr[-2000:])
        after = state()
        changed = [
            str(was)[:500] + "\n→\n" + str(now)[:500] for was, now in zip(before, after, strict=True) if was != now
        ]
        assert not changed, f"make {target} changed a server of the system:\n" + "\n".join(changed)
        assert done.returncode == 0, f"make {target} failed"
        print(f"after make {target} the system's servers are as before")
    assert not (clone / ".run").exists()
    names = [path.read_text().strip() for path in Path("/proc").glob("[0-9]*/comm")]
    assert sum(name.startswith(("postgres", "mariadbd", "redis-server")) for name in names) >= 3


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
