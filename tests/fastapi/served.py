"""A real uvicorn in a process of its own, its log lines, and raw sockets to it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WITHIN = 30.0  # seconds for anything here, on a busy machine


class Served:
    """One server; `stop()` ends it with SIGTERM and waits, so that all its lines are written."""

    def __init__(self, directory: Path, *options: str, app: str = "tests.fastapi.app:served") -> None:
        self.directory = directory
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.listener.set_inheritable(True)
        fd = self.listener.fileno()
        self.errors = directory / "stderr.txt"
        command = [sys.executable, "-m", "uvicorn", app, "--factory", "--fd", str(fd), *options]
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command,
                pass_fds=[fd],
                env={**os.environ, "ONEBEAT_TEST_LOGS": str(directory), "PYTHONPATH": f"src{os.pathsep}."},
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
            )
        self.listener.close()

    def connect(self) -> socket.socket:
        """A connection; the first waits until the server answers."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=WITHIN)

    def exchange(self, *requests: bytes) -> list[Answer]:
        """Send requests over one connection, each after the answer to the one before."""
        with self.connect() as connection:
            stream = connection.makefile("rb")
            answers = []
            for request in requests:
                connection.sendall(request)
                answers.append(Answer.read(stream, head=request.startswith(b"HEAD")))
            return answers

    def get(self, path: str, *headers: bytes, method: str = "GET") -> Answer:
        """One request."""
        return self.exchange(request(path, *headers, method=method))[0]

    def stop(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(WITHIN)

    def lines(self, **fields: Any) -> list[dict[str, Any]]:
        """Log records with these fields, of all files, in order."""
        found = []
        for path in sorted(self.directory.glob("*.log")):
            whole = path.read_text("utf-8").rpartition("\n")[0]  # the last line may be half seen
            found += [json.loads(line) for line in whole.splitlines()]
        return [line for line in found if all(line.get(name) == value for name, value in fields.items())]

    def wait_for_line(self, **fields: Any) -> dict[str, Any]:
        """The first record with these fields, as soon as it is written."""
        return self.wait_for_lines(1, **fields)[0]

    def wait_for_lines(self, count: int, **fields: Any) -> list[dict[str, Any]]:
        """The records with these fields, as soon as there are `count`."""
        until = time.monotonic() + WITHIN
        while len(found := self.lines(**fields)) < count:
            assert time.monotonic() < until, f"no line with {fields}; stderr: {self.errors.read_text()}"
            time.sleep(0.02)
        return found


@contextmanager
def serving(directory: Path, *options: str, app: str = "tests.fastapi.app:served") -> Iterator[Served]:
    """A server that ends with the block."""
    server = Served(directory, *options, app=app)
    try:
        yield server
    finally:
        server.stop()


class Answer:
    """A response as it came over the wire."""

    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @classmethod
    def read(cls, stream: Any, *, head: bool = False) -> Answer:
        """One response from a connection."""
        first = stream.readline().decode("latin-1")
        match = re.match(r"HTTP/1\.[01] (\d{3})", first)
        assert match, f"no response: {first!r}"
        status = int(match[1])
        headers = []
        while (line := stream.readline().decode("latin-1").rstrip("\r\n")) != "":
            name, _, value = line.partition(":")
            headers.append((name.lower(), value.strip()))
        known = dict(headers)
        body = b""
        if head or status in (101, 204, 304):
            pass
        elif "content-length" in known:
            body = stream.read(int(known["content-length"]))
        elif known.get("transfer-encoding") == "chunked":
            while size := int(stream.readline() or b"0", 16):
                body += stream.read(size)
                stream.readline()
            stream.readline()
        elif known.get("connection") == "close":
            body = stream.read()
        return cls(status, headers, body)

    @property
    def ids(self) -> list[str]:
        """Every value of the id header."""
        return [value for name, value in self.headers if name == "x-request-id"]

    @property
    def id(self) -> str:
        """The one tracking id."""
        [value] = self.ids
        return value

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


def request(path: str, *headers: bytes, method: str = "GET", body: bytes = b"") -> bytes:
    """The bytes of a request; header lines are given whole."""
    lines: Iterable[bytes] = [f"{method} {path} HTTP/1.1".encode(), b"Host: shop", *headers]
    if body:
        lines = [*lines, b"Content-Length: %d" % len(body)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
