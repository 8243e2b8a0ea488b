"""Cost of a log call to the caller while a thread writes to a file, beside python-json-logger behind the stock queue.

`python -m bench.logs` prints one table; `--calls`, `--rounds` change its size. Each variant runs in its own process and
the variants take turns, so that all see the same machine. Columns are medians of the rounds; a ratio is that of the
sums over all rounds: where a machine's speed jumps from second to second, ratios of neighbours scatter by a quarter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VARIANTS = {
    "stock": "queue handler + listener + python-json-logger, orjson",
    "stock-json": "queue handler + listener + python-json-logger, json",
    "stock-simple": "the same with orjson and a SimpleQueue for the queue",
    "onebeat": "onebeat, orjson",
    "onebeat-json": "onebeat, without orjson",
}
LIMIT = 0.55


def measure(variant: str, calls: int) -> tuple[float, float, float]:
    """Microseconds a call: mean, mean with the drain at the end, and the mean of the median batch of 100."""
    if variant == "onebeat-json":
        sys.modules["orjson"] = None  # type: ignore[assignment]  # as if it were not installed
    import logging

    with (
        tempfile.TemporaryDirectory() as folder,
        (onebeat if variant.startswith("onebeat") else stock)(folder, variant) as drain,
    ):
        logger = logging.getLogger("shop.orders")
        for number in range(200):
            logger.info("warm %s %d", "up", number, extra={"user_id": number, "shop": "berlin"})
        time.sleep(0.2)
        batches: list[float] = []
        start = time.perf_counter()
        for first in range(0, calls, 100):
            before = time.perf_counter()
            for number in range(first, first + 100):
                logger.info("user %s ordered %d things", "ada", number, extra={"user_id": number, "shop": "berlin"})
            batches.append((time.perf_counter() - before) / 100)
        called = time.perf_counter()
        drain()
        drained = time.perf_counter()
        lines = [line for path in Path(folder).iterdir() for line in path.read_bytes().splitlines()]
        assert len(lines) == calls + 200, f"{variant}: {len(lines)} lines of {calls + 200}"
        json.loads(lines[-1])
    return (called - start) / calls * 1e6, (drained - start) / calls * 1e6, statistics.median(batches) * 1e6


@contextmanager
def onebeat(folder: str, _: str) -> Iterator[Callable[[], object]]:
    from onebeat.logs.setup import flush_logs, setup_logging

    setup_logging(console=None, directory=folder)
    yield lambda: flush_logs(60)


@contextmanager
def stock(folder: str, variant: str) -> Iterator[Callable[[], object]]:
    import logging
    import queue
    from logging.handlers import QueueHandler, QueueListener

    from pythonjsonlogger.json import JsonFormatter
    from pythonjsonlogger.orjson import OrjsonFormatter

    from onebeat.logs.filter import TrackingFilter

    form = (
        "%(asctime)s %(levelname)s %(name)s %(message)s %(tracking_id)s %(filename)s %(lineno)d %(funcName)s "
        "%(process)d %(processName)s %(threadName)s"
    )
    simple = variant == "stock-simple"
    lines: Any = queue.SimpleQueue() if simple else queue.Queue(-1)  # as logging's documentation and `dictConfig` do
    sink = logging.FileHandler(Path(folder) / "app.log")
    sink.setFormatter((JsonFormatter if variant == "stock-json" else OrjsonFormatter)(form))
    handler = QueueHandler(lines)
    handler.addFilter(TrackingFilter())
    listener = QueueListener(lines, sink)
    listener.start()
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    stopped = False

    def drain() -> None:
        nonlocal stopped
        listener.stop()
        stopped = True

    yield drain
    assert stopped


def blocked(seconds: float) -> None:
    """A sink takes nothing for `seconds` while an event loop logs: how late the loop is, what is lost and used."""
    import asyncio
    import logging
    import os
    import resource
    import threading

    from onebeat.logs.setup import flush_logs, log_stats, setup_logging

    reader, writer = os.pipe()  # nobody reads it: a stuck log driver
    os.dup2(writer, 1)
    setup_logging(console="json", stream="stdout")
    logger = logging.getLogger("shop")

    async def load(duration: float) -> tuple[list[float], int]:
        lags: list[float] = []
        calls = 0
        stop = time.monotonic() + duration
        while time.monotonic() < stop:
            due = time.perf_counter() + 0.001  # from before the log calls: one that waits holds up the loop as well
            for _ in range(20):
                logger.info("user %s ordered %d things", "ada", calls, extra={"filler": "x" * 200})
                calls += 1
            logger.warning("late") if calls % 1_000 == 0 else None
            await asyncio.sleep(0.001)
            lags.append(time.perf_counter() - due)
        return lags, calls

    logger.setLevel(logging.CRITICAL)
    control, _ = asyncio.run(load(seconds))  # the same without a record: what this machine does to any event loop
    logger.setLevel(logging.INFO)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lags, calls = asyncio.run(load(seconds))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    stuck = log_stats()[0]
    received = bytearray()

    def unblock() -> None:
        while chunk := os.read(reader, 1 << 16):
            received.extend(chunk)

    threading.Thread(target=unblock, daemon=True).start()
    flush_logs(30)
    time.sleep(0.2)
    records = [json.loads(line) for line in bytes(received).splitlines()]
    told = sum(sum(record["dropped"].values()) for record in records if "dropped" in record)
    warnings = sum(record["msg"] == "late" for record in records)
    worst, usual = max(lags) * 1000, max(control) * 1000
    verdict = "holds" if worst < 20 else "holds as far as this machine allows" if worst < usual * 1.5 else "BROKEN"
    p99 = statistics.quantiles(lags, n=100)[98] * 1000
    print(
        f"sink blocked for {seconds:g} s, {calls} records at INFO, {calls // 1_000} at WARNING\n"
        f"worst lag of the event loop {worst:.1f} ms, p99 {p99:.1f} ms; without any logging worst {usual:.1f} ms\n"
        f"+{grown / 1024:.1f} MiB, waiting {stuck.waiting}, dropped and told {told}, WARNINGs written {warnings}\n"
        f"promise (worst lag under 20 ms): {verdict}",
        file=sys.stderr,
    )
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--blocked", type=float, metavar="SECONDS", help="the event loop beside a stuck sink instead")
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.blocked:
        blocked(options.blocked)
    if options.one:
        print(json.dumps(measure(options.one, options.calls)))
        return
    results: dict[str, list[tuple[float, float, float]]] = {variant: [] for variant in VARIANTS}
    for _ in range(options.rounds):
        for variant in VARIANTS:
            command = [sys.executable, "-m", "bench.logs", "--one", variant, "--calls", str(options.calls)]
            results[variant].append(tuple(json.loads(subprocess.run(command, check=True, capture_output=True).stdout)))
    print(
        f"{options.calls} calls, {options.rounds} rounds, medians; µs a call; ratio to stock with orjson, of the sums"
    )
    print(f"{'':56}{'mean':>8}{'drained':>9}{'p50':>8}{'ratio':>8}{'ratio drained':>15}")
    for variant, title in VARIANTS.items():
        mean, drained, middle = (statistics.median(row[i] for row in results[variant]) for i in range(3))
        ratio, whole = (
            sum(row[i] for row in results[variant]) / sum(row[i] for row in results["stock"]) for i in range(2)
        )
        print(f"{title:56}{mean:8.1f}{drained:9.1f}{middle:8.1f}{ratio:8.2f}{whole:15.2f}")
        if variant == "onebeat":
            verdict = "holds" if ratio <= LIMIT else "BROKEN"
    print(f"promise: onebeat with orjson costs the caller at most {LIMIT} of the stock pair: {verdict}")


if __name__ == "__main__":
    main()
