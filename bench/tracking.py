"""Cost of the tracking layer for a request, over the bare application, beside asgi-correlation-id.

`python -m bench.tracking` prints one table; `--requests`, `--rounds` change its size. The variants take turns in many
short rounds, forwards and backwards, in one event loop, so that a difference compares neighbours in time; what is
printed is the median of the rounds, in time of the processor, which a busy machine disturbs less. Requests are ASGI
calls without a server, with five headers, without an id and with one. Exit code 1 when the layer costs more than
asgi-correlation-id does.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from asgi_correlation_id import CorrelationIdMiddleware

from fastapi import FastAPI
from onebeat import install
from onebeat.tracking import TrackingMiddleware

HEADERS = [
    (b"host", b"shop.example"),
    (b"user-agent", b"bench/1"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip"),
    (b"connection", b"keep-alive"),
]
UUID = (b"x-request-id", b"6f9619ff-8b86-4011-b42d-00c04fc964ff")
BODY = {"type": "http.response.body", "body": b"ok"}
App = Callable[..., Any]


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """The least an application can do."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send(BODY)


def route() -> FastAPI:
    """A FastAPI application with one route."""
    app = FastAPI()

    @app.get("/")
    async def home() -> str:
        return "ok"

    return app


def with_install() -> FastAPI:
    """The same behind `install`: layer, silent access log and all."""
    app = route()
    install(app, watchdog=False)
    return app


def with_peer() -> FastAPI:
    """The same behind asgi-correlation-id, as its documentation says."""
    app = route()
    app.add_middleware(CorrelationIdMiddleware)
    return app


GROUPS: dict[str, dict[str, Callable[[], App]]] = {
    "bare ASGI application": {
        "bare": lambda: bare,
        "onebeat": lambda: TrackingMiddleware(bare),
        "asgi-correlation-id": lambda: CorrelationIdMiddleware(bare),
    },
    "FastAPI route": {"bare": route, "onebeat": with_install, "asgi-correlation-id": with_peer},
}


async def measure(app: App, headers: list[tuple[bytes, bytes]], requests: int) -> float:
    """Microseconds a request."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        return None

    def scope() -> dict[str, Any]:
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/",
            "raw_path": b"/",
            "query_string": b"",
            "root_path": "",
            "headers": list(headers),
            "client": ("127.0.0.1", 4711),
            "server": ("127.0.0.1", 80),
            "state": {},
        }

    start = time.thread_time()
    for _ in range(requests):
        await app(scope(), receive, send)
    return (time.thread_time() - start) / requests * 1e6


async def compare(
    apps: dict[str, App], headers: list[tuple[bytes, bytes]], requests: int, rounds: int
) -> dict[str, list[float]]:
    """Microseconds a request in each round, by variant."""
    for app in apps.values():
        await measure(app, headers, requests)  # the first call builds the middleware stack
    times: dict[str, list[float]] = {name: [] for name in apps}
    order = list(apps)
    for _ in range(rounds):
        gc.collect()
        gc.disable()
        for name in order:
            times[name].append(await measure(apps[name], headers, requests))
        gc.enable()
        order.reverse()
    return times


def main() -> int:
    """Print the table; 1 when a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    worse = 0
    print(f"{'µs a request, median of ' + str(options.rounds):56} {'total':>8} {'over bare':>10} {'of the peer':>12}")
    for group, variants in GROUPS.items():
        apps = {name: make() for name, make in variants.items()}
        for words, headers in (("no id", HEADERS), ("an id", [*HEADERS, UUID])):
            times = asyncio.run(compare(apps, headers, options.requests, options.rounds))
            extra = {
                name: statistics.median(a - b for a, b in zip(values, times["bare"], strict=True))
                for name, values in times.items()
            }
            for name, values in times.items():
                ratio = "" if name == "bare" else f"{extra[name] / extra['asgi-correlation-id']:12.2f}"
                label = f"{group}, {words}, {name}"
                print(f"{label:56} {statistics.median(values):8.2f} {extra[name]:10.2f} {ratio}")
            worse += extra["onebeat"] > extra["asgi-correlation-id"]
    return int(worse > 0)


if __name__ == "__main__":
    sys.exit(main())
