"""A sink that is slow, stuck, broken or gone never harms the caller, and what is lost is told."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from onebeat.logs.failure import captured
from onebeat.logs.handler import LogHandler
from onebeat.logs.queue import Bucket
from onebeat.logs.record import RecordEncoder
from onebeat.logs.writer import SinkGone, Writer
from tests.logs.conftest import ROOT


class Sink:
    """Keeps what it is given; can be told to block, to fail or to be gone."""

    def __init__(self, name: str = "test") -> None:
        self.name = name
        self.lines: list[bytes] = []
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.error: Callable[[], Exception | None] = lambda: None
        self.threads: set[str] = set()

    def write(self, batch: deque[Bucket]) -> None:
        self.entered.set()
        self.threads.add(threading.current_thread().name)
        assert self.open.wait(60)
        error = self.error()
        if error is not None:
            raise error
        while batch:
            self.lines.extend(batch.popleft().render())

    def close(self) -> None:
        pass

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


def logger_to(*sinks: Sink, **options: Any) -> tuple[logging.Logger, LogHandler]:
    encoder = RecordEncoder()
    handler = LogHandler(encoder, [Writer(sink, report=encoder.losses, **options) for sink in sinks])
    logger = logging.Logger("shop", logging.DEBUG)
    logger.addHandler(handler)
    return logger, handler


def test_the_caller_does_no_io_and_lines_are_gathered() -> None:
    sink = Sink()
    logger, handler = logger_to(sink)
    for number in range(1_000):
        logger.info("n", extra={"n": number})
    assert handler.flush(10)
    assert [record["n"] for record in sink.records()] == list(range(1_000))
    assert sink.threads == {"onebeat-logs-test"}
    stats = handler.stats()[0]
    assert (stats.written, stats.lost, stats.waiting, stats.errors) == (1_000, 0, 0, 0)


async def test_a_blocked_sink_does_not_hold_up_the_event_loop_and_memory_is_bounded() -> None:
    sink = Sink()
    logger, handler = logger_to(sink, records=5_000, max_bytes=2_000_000, patience=30)
    sink.open.clear()
    logger.info("first")
    assert await asyncio.to_thread(sink.entered.wait, 10)
    tracemalloc.start()
    lags: list[float] = []
    try:
        for burst in range(40):
            before = time.perf_counter()
            for _ in range(500):
                logger.info("x" * 500)
            logger.warning("burst", extra={"burst": burst})
            await asyncio.sleep(0)
            lags.append((time.perf_counter() - before) / 500)
        grown = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert grown < 4_000_000  # twice the bound: bytes and the lists that hold them; 20,000 such lines are 14 MB
    assert sorted(lags)[20] < 0.002  # for each call; this machine has other work: `bench.logs --blocked` is strict
    assert sum(lags) * 500 < 30  # no call waited for room
    sink.open.set()
    assert await asyncio.to_thread(handler.flush, 10)
    records = sink.records()
    assert [record["burst"] for record in records if "burst" in record] == list(range(40))  # no WARNING was lost
    told = sum(record["dropped"]["INFO"] for record in records if "dropped" in record)
    infos = sum(record["level"] == "INFO" for record in records)
    assert told > 0
    assert infos + told == 20_001
    assert all(record["level"] == "WARNING" for record in records if "dropped" in record)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
async def test_lines_that_pass_without_a_look_and_others_keep_order_and_bounds(seed: int) -> None:
    """Small and large ones, with and without an exception, of several quarters of an hour, of all levels."""
    chance = random.Random(seed)
    sink = Sink()
    bounds: dict[str, int] = {"records": chance.choice([50, 1_000]), "max_bytes": chance.choice([20_000, 400_000])}
    writer = Writer(
        sink,
        report=RecordEncoder().losses,
        patience=0,
        records=bounds["records"],
        max_bytes=bounds["max_bytes"],
    )
    sink.open.clear()
    writer.put((0.0, logging.INFO, b'{"n":-1}\n', None))
    assert await asyncio.to_thread(sink.entered.wait, 10)
    sizes = {}
    for number in range(2_000):
        mixed = number < 10 or number >= 1_000  # in between, only such as pass without a look
        failure = captured(ValueError("x")) if mixed and chance.random() < 0.05 else None
        filler = "x" * (chance.randrange(3_000) if mixed and chance.random() < 0.1 else chance.randrange(900))
        line = f'{{"n":{number},"filler":"{filler}","exc":null}}\n'.encode()
        level = logging.WARNING if chance.random() < 0.01 else logging.INFO
        writer.put((chance.choice([0.0, 1_000.0, 2_000.0]), level, line, failure))
        sizes[number] = len(line)
        assert writer.queue.waiting <= bounds["records"]
    sink.open.set()
    assert await asyncio.to_thread(writer.flush, 10)
    records = sink.records()
    written = [record["n"] for record in records if "n" in record][1:]
    assert written == sorted(written)
    assert sum(sizes[number] for number in written) <= bounds["max_bytes"]
    assert len(written) >= min(40, bounds["max_bytes"] // 1_000), "what fits in was taken"
    assert len(written) + sum(sum(record["dropped"].values()) for record in records if "dropped" in record) == 2_000


@pytest.mark.campaign
@pytest.mark.alone
def test_a_sink_blocked_for_ten_seconds_holds_up_no_loop() -> None:
    """A machine may keep any process waiting once; a log call that waits for the sink would do so each time."""
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-m", "bench.logs", "--blocked", "10"], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
        if re.search(r"promise .*: holds", done.stderr):
            return
    pytest.fail(done.stderr)


def test_a_thread_without_a_loop_waits_for_room_instead_of_losing_lines() -> None:
    sink = Sink()
    logger, handler = logger_to(sink, records=100)
    for number in range(5_000):
        logger.info("n", extra={"n": number})
    assert handler.flush(10)
    assert [record["n"] for record in sink.records()] == list(range(5_000))
    assert handler.stats()[0].lost == 0


def test_a_dead_sink_costs_the_patience_once_and_not_at_each_line() -> None:
    sink = Sink()
    logger, handler = logger_to(sink, records=10, patience=0.2)
    sink.open.clear()
    logger.info("first")
    assert sink.entered.wait(10)
    start = time.monotonic()
    for _ in range(300):
        logger.info("more")
    assert 0.2 <= time.monotonic() - start < 5  # 300 times the patience is a minute
    sink.open.set()
    assert handler.flush(10)
    assert handler.stats()[0].lost == 300 - 8


def test_a_sink_that_always_raises_ends_neither_its_thread_nor_another_sink(capfd: pytest.CaptureFixture[str]) -> None:
    bad, good = Sink("bad"), Sink("good")
    bad.error = lambda: OSError("disk on fire")
    logger, handler = logger_to(bad, good)
    for number in range(10):
        logger.info("n", extra={"n": number})
    assert handler.writers[1].flush(10)
    assert len(good.lines) == 10
    assert not handler.writers[0].flush(0.3)
    bad.error = lambda: None
    assert handler.flush(20)
    assert bad.lines == good.lines
    complaints = capfd.readouterr().err.splitlines()
    assert complaints == ["onebeat.logs: bad: OSError: disk on fire; tried again until it works"]  # once a minute


def test_a_sink_nobody_reads_any_more_is_left_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    sink = Sink()
    sink.error = SinkGone
    logger, handler = logger_to(sink)
    for _ in range(10):
        logger.info("n")
        handler.flush(10)
    assert handler.stats()[0].lost == 10
    assert capfd.readouterr().err == ""


def test_after_retiring_the_caller_writes_by_itself() -> None:
    sink = Sink()
    logger, handler = logger_to(sink)
    logger.info("before")
    assert handler.retire(5) == 0
    logger.info("after")
    assert [record["msg"] for record in sink.records()] == ["before", "after"]  # no flush in between
    assert threading.current_thread().name in sink.threads
    handler.resume()
    sink.threads.clear()
    logger.info("again")
    assert handler.flush(5)
    assert sink.threads == {"onebeat-logs-test"}


def test_retiring_gives_up_at_its_deadline_and_later_lines_do_not_block() -> None:
    sink = Sink()
    logger, handler = logger_to(sink)
    sink.open.clear()
    logger.info("stuck")
    assert sink.entered.wait(10)
    logger.info("behind")
    assert handler.retire(0.1) == 2
    start = time.monotonic()
    for _ in range(20):
        logger.info("late")
    assert time.monotonic() - start < 2
    sink.open.set()


def test_a_retired_writer_has_no_thread_and_a_resumed_one_a_new_one() -> None:
    sink = Sink()
    logger, handler = logger_to(sink)
    for round in range(200):
        logger.info("in round %d", round)
        handler.retire(10)
        logger.info("between")
        handler.resume()
        logger.info("behind")
    assert handler.flush(10)
    assert [record["msg"] for record in sink.records()][-3:] == ["in round 199", "between", "behind"]
    assert len(sink.lines) == 600
    handler.retire(10)
    thread = handler.writers[0]._thread
    if thread is not None:
        thread.join(10)
    assert handler.writers[0]._thread is None


def test_a_sink_that_was_too_late_for_one_end_is_written_to_after_the_next_beginning() -> None:
    sink = Sink()
    logger, handler = logger_to(sink)
    sink.open.clear()
    logger.info("stuck")
    assert sink.entered.wait(10)
    logger.info("given up")
    assert handler.retire(0.1)
    sink.open.set()
    handler.resume()
    logger.info("later")
    assert handler.flush(10)
    assert sink.records()[-1]["msg"] == "later"


def test_losses_are_told_even_at_the_end() -> None:
    sink = Sink()
    logger, handler = logger_to(sink, records=10, patience=0)
    sink.open.clear()
    logger.info("first")
    assert sink.entered.wait(10)
    for _ in range(20):
        logger.info("more")
    sink.open.set()
    assert handler.retire(5) == 0
    assert sink.records()[-1]["dropped"] == {"INFO": 12}
    assert "could not keep up" in sink.records()[-1]["msg"]


def test_eight_threads_lose_nothing_and_keep_their_order() -> None:
    sink = Sink()
    logger, handler = logger_to(sink)

    def work(name: int) -> None:
        for number in range(1_000):
            logger.info("n", extra={"who": name, "n": number})

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert handler.flush(10)
    records = sink.records()
    assert len(records) == 8_000
    for name in range(8):
        assert [record["n"] for record in records if record["who"] == name] == list(range(1_000))


# ── logging where one should not ──────────────────────────────────────────────────────────────────────────────────────
class Talkative:
    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger

    def __str__(self) -> str:
        self.logger.info("asked for my text: %s", self)
        return "me"


def test_logging_from_inside_str_ends() -> None:
    sink = Sink()
    logger, handler = logger_to(sink)
    logger.info("%s", Talkative(logger))
    assert handler.flush(10)
    assert len(sink.lines) == 4
    assert sink.records()[-1]["msg"] == "me"


def test_logging_from_a_signal_handler_never_deadlocks() -> None:
    sink = Sink()
    logger, handler = logger_to(sink)
    count = 0

    def interrupted(number: int, frame: Any) -> None:
        nonlocal count
        count += 1
        logger.warning("signal")

    before = signal.signal(signal.SIGALRM, interrupted)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for turn in range(3_000):
            logger.info("work")
            if turn == 1_500:
                handler.retire(5)  # the second half writes in the caller
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert handler.flush(10)
    assert count > 10
    assert len(sink.lines) == 3_000 + count


def test_a_forked_child_starts_with_an_empty_queue_and_a_thread_of_its_own() -> None:
    sink = Sink()
    logger, handler = logger_to(sink)
    sink.open.clear()
    logger.info("parent")
    assert sink.entered.wait(10)
    logger.info("still waiting in the parent")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            handler.forked()
            sink.open = threading.Event()
            sink.open.set()
            logger.info("child")
            handler.flush(5)
            os.write(writer, b"".join(sink.lines))
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert [json.loads(line)["msg"] for line in pipe] == ["child"]
    os.waitpid(pid, 0)
    sink.open.set()
    assert handler.flush(10)
    assert [record["msg"] for record in sink.records()] == ["parent", "still waiting in the parent"]


@pytest.mark.parametrize("file", ["/tmp/\ud800.py", "/tmp/\0.py"], ids=["half a character", "NUL"])
def test_an_exception_whose_source_cannot_be_looked_up_holds_up_no_line(file: str) -> None:
    sink = Sink()
    logger, handler = logger_to(sink)
    code = compile("1/0", "/tmp/x.py", "exec").replace(co_filename=file)
    try:
        exec(code)
    except ZeroDivisionError:
        logger.exception("failed")
    for number in range(100):
        logger.info("%d", number)
    assert handler.flush(10)
    first, *others = sink.records()
    assert first["exc"]["type"] == "ZeroDivisionError"
    assert [record["msg"] for record in others] == [str(number) for number in range(100)]


def test_a_loader_that_fails_holds_up_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(file: str, number: int) -> str:
        raise RuntimeError("no source")

    monkeypatch.setattr("linecache.getline", fails)
    sink = Sink()
    logger, handler = logger_to(sink)
    try:
        raise ValueError("shown")
    except ValueError:
        logger.exception("failed")
    assert handler.flush(10)
    assert sink.records()[0]["exc"]["text"].endswith("ValueError: shown")
