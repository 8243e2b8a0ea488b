"""Real uvicorn, real signals: every line of requests and of the server itself is written, also the very last."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from onebeat.logs.setup import uvicorn_log_config
from tests.logs.conftest import environment, read

Server = tuple[subprocess.Popen[bytes], int]


@contextmanager
def server(
    directory: Path, *arguments: str, setup: str = "install", orjson: bool = True, gunicorn: bool = False
) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    options = ("gunicorn", "--bind", f"127.0.0.1:{port}") if gunicorn else ("uvicorn", "--port", str(port))
    command = [sys.executable, "-m", *options, "tests.logs.server_app:app", *arguments]
    env = {**environment(), "LOGS": str(directory / "logs"), "LOGS_SETUP": setup}
    if not orjson:
        (directory / "orjson.py").write_text("raise ModuleNotFoundError(name=__name__)")
        env["PYTHONPATH"] = f"{directory}{os.pathsep}{env['PYTHONPATH']}"
    with open(directory / "output", "wb") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_until(lambda: get(port, "/health") is not None, "the server answers")
        yield process, port
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_until(reached: Callable[[], bool], what: str, timeout: float = 40) -> None:
    deadline = time.monotonic() + timeout
    while not reached():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.02)


def get(port: int, path: str, **headers: str) -> tuple[int, bytes] | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    except OSError:
        return None
    finally:
        connection.close()


def end(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
    process.send_signal(number)
    return process.wait(40)


def requests(port: int, count: int) -> dict[int, int]:
    """Ask from four threads; which process answered which request."""
    answered: dict[int, int] = {}

    def ask(first: int) -> None:
        for number in range(first, count, 4):
            answer = get(port, f"/many/{number}")
            if answer is not None:
                answered[number] = json.loads(answer[1])["pid"]

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answered


def check_all_written(records: list[dict[str, Any]], answered: dict[int, int]) -> None:
    by_request: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        if record.get("path", "").startswith("/many/"):
            by_request.setdefault(int(record["path"].rpartition("/")[2]), []).append(record)
        elif "request" in record:
            by_request.setdefault(record["request"], []).append(record)
    for number, pid in answered.items():
        mine = by_request[number]
        assert [record["part"] for record in mine if record["msg"] == "part"] == list(range(20))
        assert sum(record["msg"] == "after" for record in mine) == 1
        assert sum(record["logger"] == "onebeat.access" for record in mine) == 1
        assert {record["pid"] for record in mine} == {pid}
        assert len({record["tracking_id"] for record in mine}) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_one_process_writes_every_line_down_to_the_server_s_last(number: int, tmp_path: Path) -> None:
    with server(tmp_path) as (process, port):
        answered = requests(port, 40)
        code = end(process, number)
    records = read(tmp_path / "logs")
    assert len(answered) == 40
    check_all_written(records, answered)
    assert records[-1]["msg"] == f"Finished server process [{process.pid}]"
    assert "Application shutdown complete." in {record["msg"] for record in records}
    assert code == (-signal.SIGTERM if number == signal.SIGTERM else 0)


def test_gunicorn_s_own_asgi_worker_writes_each_request_once(tmp_path: Path) -> None:
    config = tmp_path / "log.json"
    config.write_text(json.dumps(uvicorn_log_config(console=None, directory=str(tmp_path / "logs"))))
    arguments = ("-k", "asgi", "--log-config-json", str(config), "--no-control-socket")
    with server(tmp_path, *arguments, setup="config", gunicorn=True) as (process, port):
        answered = requests(port, 8)
        end(process)
    records = read(tmp_path / "logs")
    assert len(answered) == 8
    check_all_written(records, answered)
    assert "gunicorn.access" not in {record["logger"] for record in records}


@pytest.mark.parametrize(
    "orjson", [True, pytest.param(False, marks=pytest.mark.soak)], ids=["with orjson", "without orjson"]
)
def test_four_workers_lose_nothing_at_sigterm(orjson: bool, tmp_path: Path) -> None:
    """The signal arrives in the middle of the requests: whatever was answered is in the files, whole."""
    with server(tmp_path, "--workers", "4", orjson=orjson) as (process, port):
        answered: dict[int, int] = {}
        asking = threading.Thread(target=lambda: answered.update(requests(port, 400)))
        asking.start()
        logs = tmp_path / "logs"
        wait_until(
            lambda: logs.exists() and any(f.stat().st_size > 100_000 for f in logs.iterdir()), "lines are written"
        )
        assert end(process) == 0
        asking.join()
    records = read(tmp_path / "logs")
    assert len(answered) > 5
    check_all_written(records, answered)
    started = {record["pid"] for record in records if str(record["msg"]).startswith("logs go to")}
    finished = {record["pid"] for record in records if str(record["msg"]).startswith("Finished server process")}
    assert len(started) == 4
    assert started == finished


def test_the_log_config_as_a_file_covers_the_supervisor_and_needs_no_install(tmp_path: Path) -> None:
    config = tmp_path / "log.json"
    config.write_text(json.dumps(uvicorn_log_config(console=None, directory=tmp_path / "logs")))
    with server(tmp_path, "--workers", "2", "--log-config", str(config), setup="none") as (process, port):
        assert get(port, "/many/1?token=secret") is not None
        assert end(process) == 0
    records = read(tmp_path / "logs")
    messages = {record["msg"].partition(" [")[0] for record in records if record["pid"] == process.pid}
    assert {"Started parent process", "Stopping parent process"} <= messages
    assert sum(record["msg"].startswith("Finished server process") for record in records) == 2
    assert sum(record.get("request") == 1 for record in records) == 21
    access = [record for record in records if record.get("path") == "/many/1"]
    assert [(record["logger"], record["status"]) for record in access] == [("uvicorn.access", 200)]
    assert "secret" not in json.dumps(records)
    assert (tmp_path / "output").read_text() == ""


def test_the_log_config_and_install_together_give_one_access_record(tmp_path: Path) -> None:
    config = tmp_path / "log.json"
    config.write_text(json.dumps(uvicorn_log_config(console=None, directory=tmp_path / "logs")))
    with server(tmp_path, "--log-config", str(config), setup="config") as (process, port):
        assert get(port, "/items/3") is not None
        end(process)
    records = read(tmp_path / "logs")
    access = [record for record in records if record.get("path") == "/items/3"]
    assert [record["logger"] for record in access] == ["onebeat.access"]
    assert records[-1]["msg"].startswith("Finished server process")


@pytest.mark.soak
@pytest.mark.parametrize("http_parser", ["h11", "httptools"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_four_workers_lose_nothing_whatever_parser_and_loop(http_parser: str, loop: str, tmp_path: Path) -> None:
    with server(tmp_path, "--workers", "4", "--http", http_parser, "--loop", loop) as (process, port):
        answered = requests(port, 2_000)
        assert end(process) == 0
    assert len(answered) == 2_000
    check_all_written(read(tmp_path / "logs"), answered)


@pytest.mark.soak
def test_workers_restarted_by_sighup_lose_nothing(tmp_path: Path) -> None:
    with server(tmp_path, "--workers", "2") as (process, port):
        answered = requests(port, 20)
        process.send_signal(signal.SIGHUP)
        logs = tmp_path / "logs"
        wait_until(lambda: sum("logs go to" in record["msg"] for record in read_now(logs)) >= 4, "new workers")
        wait_until(lambda: get(port, "/health") is not None, "the server answers again")
        assert end(process) == 0
    records = read(tmp_path / "logs")
    check_all_written(records, answered)
    assert sum(record["msg"].startswith("Finished server process") for record in records) >= 4


def read_now(logs: Path) -> list[dict[str, Any]]:
    """Records of files that are being written: the last line may still be on its way."""
    return [json.loads(line) for path in logs.iterdir() for line in path.read_bytes().split(b"\n")[:-1]]


@pytest.mark.parametrize("graceful", [True, False], ids=["with a graceful timeout", "client hangs up"])
def test_an_open_stream_at_sigterm_keeps_its_last_lines(graceful: bool, tmp_path: Path) -> None:
    with server(tmp_path, *(["--timeout-graceful-shutdown", "1"] if graceful else [])) as (process, port):
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while received.count(b"data: tick") < 20:
            received += client.recv(4096)
        process.send_signal(signal.SIGTERM)
        if not graceful:
            client.close()
        process.wait(40)
        client.close()
    records = read(tmp_path / "logs")
    ticks = [record["tick"] for record in records if "tick" in record]
    assert ticks == list(range(len(ticks)))
    assert len(ticks) >= 20
    assert sum(record["msg"] == "stream over" for record in records) == 1
    access = [record for record in records if record.get("path") == "/stream"]
    assert [record["aborted"] for record in access] == [True]
    assert records[-1]["msg"].startswith("Finished server process")


def test_the_access_record_has_duration_ids_and_bound_fields(tmp_path: Path) -> None:
    with server(tmp_path) as (process, port):
        get(port, "/items/5?token=abc", **{"X-Request-ID": "client-5"})
        get(port, "/items/500")
        get(port, "/nothing%1b[2J")
        get(port, "/health")
        with connect(f"ws://127.0.0.1:{port}/ws", additional_headers={"X-Request-ID": "ws-1"}) as websocket:
            websocket.send("bye")
            with pytest.raises(ConnectionClosed):
                websocket.recv(timeout=20)
        end(process)
    records = [record for record in read(tmp_path / "logs") if record["logger"] == "onebeat.access"]
    found = {record["path"]: record for record in records if record["status"] != 101}
    five = found["/items/5"]
    assert (five["tracking_id"], five["item"], five["route"]) == ("client-5", 5, "/items/{item}")
    assert (five["method"], five["status"], five["level"], five["http_version"]) == ("GET", 200, "INFO", "1.1")
    assert five["bytes"] == len(b'{"item":5}')
    assert 0 < five["first_byte_ms"] <= five["duration_ms"] < 60_000
    assert five["client"].startswith("127.0.0.1:")
    assert five["aborted"] is False
    assert (found["/items/500"]["status"], found["/items/500"]["level"]) == (500, "ERROR")
    assert "/health" not in found
    assert found["/nothing\x1b[2J"]["status"] == 404
    sockets = [record for record in records if record["status"] == 101]
    assert [(record["tracking_id"], record["msg"].split()[2:4]) for record in sockets] == [
        ("ws-1", ["websocket", "accepted"]),
        ("ws-1", ["websocket", "closed"]),
    ]
    assert sockets[1]["code"] == 4001
    everything = read(tmp_path / "logs")
    assert not [record for record in everything if record["logger"] == "uvicorn.access"]
    assert "access log: by onebeat, the server's is off" in everything_said(everything)
    failed = [record for record in everything if record["logger"] == "uvicorn.error" and "exc" in record]
    assert [record["tracking_id"] for record in failed] == [found["/items/500"]["tracking_id"]]
    assert failed[0]["exc"]["msg"] == "item on fire"
    assert "abc" not in json.dumps([record for record in everything if record.get("path") == "/items/5"])


def everything_said(records: list[dict[str, Any]]) -> str:
    return "\n".join(str(record["msg"]) for record in records)


def written(records: list[dict[str, Any]]) -> list[int]:
    """How many access records and other lines of `/many/` requests there are: an answer comes before the last."""
    access = [record.get("path", "").startswith("/many/") for record in records]
    return [sum(access), sum("request" in record for record in records)]


def test_sigkill_loses_no_more_than_the_queue(tmp_path: Path) -> None:
    with server(tmp_path) as (process, port):
        answered = requests(port, 4)
        logs = tmp_path / "logs"
        wait_until(lambda: written(read_now(logs)) == [4, 84], "the queue is written")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    check_all_written(read(logs), answered)
