"""A FastAPI application under load: blocking work through onebeat does not touch its neighbours."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

CLIENTS = 200  # concurrent requests
WORK = 0.5  # seconds each of them takes
PROBING = 2.0  # seconds the unrelated route is asked for
PAIRS, MOST = 5, 15  # measurements beside each other: so many, and more when a busy machine made them uneven


PROBE = """
import socket, sys, time
port, seconds = int(sys.argv[1]), float(sys.argv[2])
connection = socket.create_connection(("127.0.0.1", port))
until = time.monotonic() + seconds
while time.monotonic() < until:
    before = time.perf_counter()
    connection.sendall(b"GET /quick HTTP/1.1\\r\\nHost: test\\r\\n\\r\\n")
    answer = b""
    while b"at once" not in answer:
        answer += connection.recv(4096)
    print(time.perf_counter() - before)
    time.sleep(0.002)
"""  # a process of its own: the clients' work must not count as the server's


class Server:
    """A uvicorn process; its log is read at the end."""

    def __init__(self, port: int, process: subprocess.Popen[str]) -> None:
        self.port, self.process = port, process
        self.log = ""

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        async with self.connection() as (reader, writer):
            return await ask(reader, writer, path, **headers)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.close()

    def stop(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        self.log, _ = self.process.communicate(timeout=60)
        return self.log


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, **headers: str) -> tuple[int, str]:
    """One request over a connection that stays open."""
    lines = [f"GET {path} HTTP/1.1", "Host: test", *(f"{name}: {value}" for name, value in headers.items())]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    size = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
    body = await reader.readexactly(int(size[1])) if size else b""
    return int(head.split()[1]), body.decode()


def serve(*options: str) -> Server:
    root = Path(__file__).resolve().parents[2]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return Server(
        port,
        subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "tests.offload.shop:app", "--port", str(port), *options],
            cwd=root,
            env=os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ),
    )


async def until_up(server: Server) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await server.get("/quick")
            except OSError:
                assert server.process.poll() is None, "the server ended"
                await asyncio.sleep(0.05)
            else:
                return


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = serve("--no-access-log", "--backlog", str(2 * CLIENTS))
    await until_up(server)
    yield server
    if server.process.poll() is None:
        server.stop()


async def p99_beside(server: Server, path: str) -> float:
    """The 99th percentile of an unrelated route's time while 200 requests of `path` are under way all the time."""
    over = False
    statuses: set[int] = set()

    async def client(number: int) -> None:
        async with server.connection() as (reader, writer):
            await asyncio.sleep(WORK * number / CLIENTS)  # evenly, not all in the same moment again and again
            while not over:
                statuses.add((await ask(reader, writer, path))[0])

    clients = [asyncio.create_task(client(number)) for number in range(CLIENTS)]
    await asyncio.sleep(1.5 * WORK)  # until all are under way
    probe = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROBE, str(server.port), str(PROBING), stdout=asyncio.subprocess.PIPE
    )
    said, _ = await probe.communicate()
    times = [float(line) for line in said.split()]
    over = True
    await asyncio.gather(*clients)
    assert statuses == {200}
    assert len(times) > 100
    return sorted(times)[int(len(times) * 0.99)]


@pytest.mark.campaign
@pytest.mark.alone
@pytest.mark.timeout(300)
async def test_blocking_calls_through_onebeat_cost_an_unrelated_route_no_more_than_sleeps(server: Server) -> None:
    """p99 at most 1.5 times that beside `asyncio.sleep`: the median of pairs, each one's halves beside each other."""
    ratios = []
    for number in range(MOST):
        ways = ["asleep", "thread"] if number % 2 else ["thread", "asleep"]
        p99 = {way: await p99_beside(server, f"/{way}/{WORK}") for way in ways}
        ratios.append(p99["thread"] / p99["asleep"])
        print(f"p99 beside sleeps {p99['asleep'] * 1e3:.1f} ms, beside threads {p99['thread'] * 1e3:.1f} ms")
        if number + 1 >= PAIRS and statistics.median(ratios) <= 1.5:
            break
    print(f"median of the ratios {statistics.median(ratios):.2f}")
    assert statistics.median(ratios) <= 1.5, ratios


async def test_the_same_call_made_directly_is_named_by_the_watchdog(server: Server) -> None:
    before = time.perf_counter()
    blocked = asyncio.create_task(server.get("/direct/0.4", **{"X-Request-ID": "who-blocks"}))
    await asyncio.sleep(0.1)
    await server.get("/quick")
    assert time.perf_counter() - before > 0.35, "the neighbour waited for it"
    await blocked
    await asyncio.sleep(0.3)  # the watchdog speaks when the stall is over
    found = re.search(r"the event loop was blocked for .*the mistake.*", server.stop())
    assert found is not None, server.log
    assert "GET /direct/{seconds}" in found[0]
    assert "tracking id who-blocks" in found[0]
    assert re.search(r"shop\.py:\d+ in direct", found[0])


async def test_a_full_lane_answers_503_and_sync_routes_go_on(server: Server) -> None:
    held = [asyncio.create_task(server.get("/narrow")) for _ in range(2)]
    async with asyncio.timeout(30):
        while (await server.get("/held"))[1] != "2":
            await asyncio.sleep(0.01)
    answer = await server.get("/narrow")
    assert answer[0] == 503
    assert "lane 'narrow' is full: 2 threads are busy" in answer[1]
    assert (await server.get("/plain"))[0] == 200
    assert (await server.get("/thread/0.01"))[0] == 200
    await server.get("/open")
    assert [status for status, _ in await asyncio.gather(*held)] == [200, 200]


async def test_child_processes_end_with_the_server(server: Server) -> None:
    status, child = await server.get("/process/30")
    assert status == 200
    assert await server.get("/sync-process") == (200, child), "a sync route uses the same one"
    assert Path(f"/proc/{child}").exists()
    server.stop()
    assert not Path(f"/proc/{child}").exists()


@pytest.mark.campaign
async def test_four_workers_have_separate_pools_and_a_bounded_total() -> None:
    """`uvicorn --workers 4`: every worker serves, and all children together are within what is said."""
    server = serve("--workers", "4")
    children: set[str] = set()
    parents: set[int] = set()
    try:
        await until_up(server)
        async with asyncio.timeout(60):
            while len(parents) < 4:
                answers = await asyncio.gather(*(server.get("/process/30") for _ in range(16)))
                assert {status for status, _ in answers} == {200}
                children |= {child for _, child in answers}
                parents = {parent_of(parent_of(int(child))) for child in children}
    finally:
        server.stop()
    assert 4 <= len(children) <= 4 + (os.cpu_count() or 1) - 1
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
