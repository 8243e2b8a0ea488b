"""A real uvicorn and raw sockets: hostile bytes, keep-alive, pipelining, websockets, clients that leave."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from onebeat.tracking.ids import is_valid
from tests.fastapi.served import Answer, Served, request, serving

ID = b"X-Request-ID: order-7"
EVERYWHERE = [
    (http, loop)
    for http in ("h11", "httptools")
    for loop in ("asyncio", "uvloop")
    if (http, loop) != ("h11", "asyncio")
]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("h11", "asyncio"), id="h11-asyncio"),
        *(pytest.param(pair, id="-".join(pair), marks=pytest.mark.soak) for pair in EVERYWHERE),
    ],
)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    http, loop = request.param
    with serving(tmp_path_factory.mktemp("logs"), "--http", http, "--loop", loop) as found:
        yield found


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/", "GET", 200), ("/status/204", "GET", 204), ("/status/304", "GET", 304), ("/status/200", "HEAD", 200),
        ("/nothing", "GET", 404), ("/", "DELETE", 405), ("/number/x", "GET", 422), ("/denied", "GET", 429),
        ("/boom", "GET", 500), ("/teapot", "GET", 418), ("/own", "GET", 200), ("/stream", "GET", 200),
        ("/stream-sync", "GET", 200), ("/sse", "GET", 200), ("/file", "GET", 200), ("/redirect", "GET", 307),
        ("/mounted/", "GET", 200), ("/installed/", "GET", 200), ("/installed/nothing", "GET", 404),
    ],
)  # fmt: skip  # a table of requests
def test_one_header_on_the_wire(server: Served, path: str, method: str, status: int) -> None:
    answer = server.get(path, ID, method=method)
    assert answer.status == status
    assert answer.ids == ["order-7"]


@pytest.mark.parametrize(
    "value",
    [
        b"\xff\xfe", b"a\x1b[31mb", b"a\tb", "a\x9b31mb".encode(), "a\x85b".encode(), b"a\x9bb", "a\u202eb".encode(),
        b"a,b", b'a"b', b"A" * 129, b"-" * 60_000 + b"a" * 32, b"   ", b"a\x7fb", b"a\x00b",
    ],
)  # fmt: skip  # a table of values
def test_hostile_bytes_get_a_new_id_or_are_refused_by_the_server_itself(server: Served, value: bytes) -> None:
    answer = server.get("/", b"X-Request-ID: " + value)
    if answer.status == 400 and b"Invalid" in answer.body:
        assert answer.ids == []  # the server could not parse it: the application never saw the request
        return
    assert answer.status == 200, (answer.headers, answer.body)
    assert is_valid(answer.id)
    assert len(answer.id) == 32
    assert answer.json()["header"] == [answer.id]


def test_an_error_is_logged_with_the_requests_id_by_the_server_itself(server: Served) -> None:
    for path in ("/boom", "/late-boom"):
        id = f"failing{path.replace('/', '-')}"
        with contextlib.suppress(AssertionError, ValueError):  # the late one breaks off in the middle
            server.get(path, f"X-Request-ID: {id}".encode())
        line = server.wait_for_line(tracking_id=id, logger="uvicorn.error")
        assert line["level"] == "ERROR"
        assert "RuntimeError" in json.dumps(line["exc"])


def test_after_a_large_post_the_next_request_on_the_connection_has_its_own_id(server: Served) -> None:
    """cpython#140947: a body that outruns the application runs the next request in the context of this one."""
    post = request("/upload", b"X-Request-ID: the-post", method="POST", body=b"x" * 1_000_000)
    with server.connect() as connection:
        stream = connection.makefile("rb")
        sender = threading.Thread(target=connection.sendall, args=(post,))
        sender.start()
        first = Answer.read(stream)
        sender.join()
        connection.sendall(request("/"))
        second = Answer.read(stream)
    assert first.id == "the-post"
    assert second.id != "the-post"
    assert second.json()["context"] == second.id
    line = server.wait_for_line(tracking_id=second.id, msg="home")
    assert line["unit"] == "request"
    early = server.wait_for_line(msg="upload answered early", tracking_id="the-post")
    assert early["unit_id"] != line["unit_id"]


def test_pipelined_requests_have_an_id_each(server: Served) -> None:
    numbers = range(20)
    burst = b"".join(request(f"/pause/{n % 3}", f"X-Request-ID: pipe-{n}".encode()) for n in numbers)
    with server.connect() as connection:
        connection.sendall(burst + request("/"))
        stream = connection.makefile("rb")
        answers = [Answer.read(stream) for _ in numbers]
        last = Answer.read(stream)
    assert [answer.id for answer in answers] == [f"pipe-{n}" for n in numbers]
    assert all(answer.json() == {"id": answer.id, "same": True} for answer in answers)
    assert last.json()["context"] == last.id
    assert not last.id.startswith("pipe")


def test_garbage_after_a_request_is_not_logged_under_its_id(server: Served) -> None:
    before = len(server.lines(logger="uvicorn.error", level="WARNING"))  # of other tests' hostile bytes
    for id in ("before-garbage", "before-garbage-2"):
        with server.connect() as connection:
            stream = connection.makefile("rb")
            body = b"x" * (0 if id == "before-garbage" else 500_000)
            connection.sendall(request("/upload", f"X-Request-ID: {id}".encode(), method="POST", body=body))
            assert Answer.read(stream).id == id
            connection.sendall(b"\x00\x01garbage\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                while stream.read(65536):
                    pass
    warnings = server.wait_for_lines(before + 2, logger="uvicorn.error", level="WARNING")
    assert all("Invalid HTTP request" in warning["msg"] for warning in warnings[before:])
    assert {warning["tracking_id"] for warning in warnings} == {None}


def test_a_client_that_leaves_in_the_middle_is_on_record(server: Served) -> None:
    connection = server.connect()
    connection.sendall(request("/endless", b"X-Request-ID: left-early"))
    assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    connection.close()
    line = server.wait_for_line(tracking_id="left-early", logger="onebeat.access")
    assert line["aborted"] is True
    assert server.get("/").json()["context"] != "left-early"


def test_what_a_sync_dependency_bound_is_on_the_access_record(server: Served) -> None:
    server.get("/spread", b"X-Request-ID: spread-1")
    line = server.wait_for_line(tracking_id="spread-1", logger="onebeat.access")
    assert line["sync_dependency"] == "was here"
    assert (line["route"], line["status"], line["method"]) == ("/spread", 200, "GET")
    later = server.wait_for_line(tracking_id="spread-1", msg="outlived")
    assert later["unit_closed"] is True


def test_a_traceparent_is_the_id_on_the_wire_and_in_the_log(server: Served) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    answer = server.get("/", f"traceparent: 00-{trace_id}-00f067aa0ba902b7-01".encode())
    assert answer.id == trace_id
    assert server.wait_for_line(tracking_id=trace_id, msg="home")["trace_id"] == trace_id


HANDSHAKE = (
    b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)  # fmt: skip  # one header each


@pytest.mark.parametrize(
    "implementation",
    ["websockets-sansio", *(pytest.param(one, marks=pytest.mark.soak) for one in ("websockets", "wsproto"))],
)
def test_websocket_handshakes_have_the_id_accepted_or_not(implementation: str, tmp_path: Path) -> None:
    with serving(tmp_path, "--ws", implementation) as server:
        for path, status in (("/ws", 101), ("/ws/denied", 403), ("/ws/closed", 403), ("/ws/nothing", 403)):
            answer = server.get(path, ID, *HANDSHAKE)
            assert (answer.status, answer.ids) == (status, ["order-7"]), path
        answer = server.get("/ws/boom", ID, *HANDSHAKE)
        assert (answer.status, answer.ids) == (500, ["order-7"])
        assert server.wait_for_line(msg="websocket open")["tracking_id"] == "order-7"
        server.stop()
        errors = server.lines(logger="uvicorn.error", level="ERROR")
        assert not any("handshake" in error["msg"] for error in errors)  # a refusal is no error
        [broken] = [error for error in errors if "socket boom" in json.dumps(error.get("exc"))]
        assert broken["tracking_id"] == "order-7"


def test_two_workers_keep_their_ids_apart(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2") as server:
        answers: list[Answer] = []

        def ask(number: int) -> None:
            answers.append(server.get("/pause/20", f"X-Request-ID: worker-{number}".encode()))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answer.id for answer in answers) == sorted(f"worker-{number}" for number in range(40))
        assert all(answer.json() == {"id": answer.id, "same": True} for answer in answers)
    lines = server.lines(logger="onebeat.access")
    assert {line["tracking_id"] for line in lines} == {f"worker-{number}" for number in range(40)}
    assert len({line["unit_id"] for line in lines}) == 40


def test_a_port_nobody_reads_from_does_not_hold_the_id(server: Served) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as idle:
        idle.sendall(b"GET / HTTP/1.1\r\nHost: shop\r\nX-Request-ID: half")
        assert server.get("/").id != "half"
