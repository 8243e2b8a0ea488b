"""Records made faster are the records logging makes."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import threading
from typing import Any

import pytest

from onebeat.logs import factory
from onebeat.logs.setup import reset_logging, setup_logging

TIMES = ("created", "msecs", "relativeCreated")


class Keep(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def say(logger: logging.Logger) -> None:
    logger.info("plain")
    logger.warning("%s %d", "a", 1, extra={"user": 7}, stack_info=False)
    logger.error("%(a)s", {"a": 1})
    logger.log(17, ["no text"], stacklevel=2)
    try:
        raise ValueError("x")
    except ValueError:
        logger.exception("failed")


async def test_every_attribute_is_what_logging_makes_of_it() -> None:
    made: list[list[dict[str, Any]]] = []
    for kind in (logging.LogRecord, factory.Record):
        logging.setLogRecordFactory(kind)
        try:
            logger = logging.Logger("shop", 1)
            keep = Keep()
            logger.addHandler(keep)
            say(logger)
            thread = threading.Thread(target=say, args=(logger,), name="worker")
            thread.start()
            thread.join()
            await asyncio.create_task(asyncio.to_thread(say, logger), name="task")
            made.append([vars(record) for record in keep.records])
        finally:
            logging.setLogRecordFactory(logging.LogRecord)
    for theirs, ours in zip(*made, strict=True):
        assert list(ours) == list(theirs)
        for key in ours.keys() - {*TIMES, "exc_info", "thread", "threadName"}:
            assert ours[key] == theirs[key], key
        for key in TIMES[::2]:
            assert abs(ours[key] - theirs[key]) < 10_000
        assert 0 <= ours["msecs"] < 1_000


def test_it_is_used_by_setup_and_left_by_reset() -> None:
    setup_logging(console=None)
    assert logging.getLogRecordFactory() is factory.Record
    reset_logging()
    assert logging.getLogRecordFactory() is logging.LogRecord


def test_a_factory_of_one_s_own_stays() -> None:
    def mine(*args: Any, **options: Any) -> logging.LogRecord:
        return logging.LogRecord(*args, **options)

    logging.setLogRecordFactory(mine)
    try:
        setup_logging(console=None)
        assert logging.getLogRecordFactory() is mine
        reset_logging()
        assert logging.getLogRecordFactory() is mine
    finally:
        logging.setLogRecordFactory(logging.LogRecord)


def test_a_python_whose_records_have_more_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = logging.LogRecord.__init__

    def later(self: logging.LogRecord, *args: Any, **options: Any) -> None:
        before(self, *args, **options)
        if type(self) is logging.LogRecord:
            self.something_new = 1

    monkeypatch.setattr(logging.LogRecord, "__init__", later)
    factory.use()
    assert logging.getLogRecordFactory() is logging.LogRecord


def test_a_record_goes_to_another_process() -> None:
    record = factory.Record("shop", 20, "/srv/shop.py", 3, "m", (1,), None, "f")
    assert vars(pickle.loads(pickle.dumps(record))) == vars(record)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_forked_child_and_a_thread_are_named_as_they_are() -> None:
    def seen() -> tuple[Any, ...]:
        record = factory.Record("shop", 20, "/srv/mail.py", 1, "m", (), None)
        return record.process, record.thread, record.threadName

    def true() -> tuple[Any, ...]:
        return os.getpid(), threading.get_ident(), threading.current_thread().name

    assert seen() == true()
    named = threading.current_thread().name
    threading.current_thread().name = "renamed"
    assert seen() == true()
    threading.current_thread().name = named
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(seen() == true()), name="another")
    thread.start()
    thread.join()
    assert found == [True]
    child = os.fork()
    if child == 0:
        os._exit(0 if seen() == true() else 1)
    assert os.waitpid(child, 0)[1] == 0
