"""What a setup takes over of the servers' loggers, and what it leaves alone."""

from __future__ import annotations

import asyncio
import logging
import logging.config
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from fastapi import FastAPI
from onebeat import install
from onebeat.errors import ConfigurationError
from onebeat.logs import exits
from onebeat.logs.setup import (
    SERVER_LOGGERS,
    close_logs,
    flush_logs,
    open_logs,
    reset_logging,
    setup_logging,
    uvicorn_log_config,
)
from tests.logs.conftest import read


@pytest.fixture(autouse=True)
def servers_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in SERVER_LOGGERS]
    before = [(one, list(one.handlers), one.propagate, one.level) for one in loggers]
    yield
    for one, handlers, propagate, level in before:
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


@pytest.mark.parametrize("terminal", [True, False], ids=["gunicorn's own handlers", "gunicorn has none"])
def test_under_gunicorn_no_line_of_either_server_is_lost(terminal: bool, tmp_path: Path) -> None:
    """uvicorn-worker gives uvicorn's loggers the very lists of gunicorn's, also empty ones, and stops propagation."""
    for server, kind in (("gunicorn", "error"), ("gunicorn", "access")):
        theirs, ours = logging.getLogger(f"{server}.{kind}"), logging.getLogger(f"uvicorn.{kind}")
        theirs.handlers = [logging.StreamHandler()] if terminal else []
        ours.handlers = theirs.handlers
        theirs.propagate = ours.propagate = False
    setup_logging(console=None, directory=tmp_path)
    open_logs(access_layer=True)
    try:
        for name in ("gunicorn.error", "uvicorn.error", "uvicorn.access"):
            logging.getLogger(name).warning("from %s", name)
        assert flush_logs(10)
    finally:
        close_logs()
    said = [record["logger"] for record in read(tmp_path) if record["msg"].startswith("from")]
    assert said == ["gunicorn.error", "uvicorn.error"]  # the access log is ours now


@pytest.mark.parametrize("again", [False, True], ids=["the file alone", "and set up again in the app"])
def test_under_gunicorn_with_the_log_config_a_worker_s_first_lines_are_there_once(again: bool, tmp_path: Path) -> None:
    """What uvicorn says before the app's start, while its loggers have gunicorn's handlers and nothing else."""
    logging.config.dictConfig(uvicorn_log_config(console=None, directory=tmp_path, finish_at_sigterm=False))
    theirs, ours = logging.getLogger("gunicorn.error"), logging.getLogger("uvicorn.error")
    ours.handlers, ours.propagate = theirs.handlers, False  # as uvicorn-worker does
    for logger in (theirs, ours):
        logger.info("before")
    if again:
        setup_logging(console=None, directory=tmp_path)
    open_logs()
    try:
        for logger in (theirs, ours):
            logger.info("after")
        assert flush_logs(10)
    finally:
        close_logs()
    said = [(record["logger"], record["msg"]) for record in read(tmp_path) if record["msg"] in ("before", "after")]
    assert said == [(name, when) for when in ("before", "after") for name in ("gunicorn.error", "uvicorn.error")]


def test_gunicorn_s_own_access_log_is_off_while_ours_is_there_but_for_its_file(tmp_path: Path) -> None:
    """With a log config gunicorn's own ASGI worker logs each request, whatever its options of access logs are."""
    logging.config.dictConfig(uvicorn_log_config(console=None, directory=tmp_path, finish_at_sigterm=False))
    theirs, file = logging.getLogger("gunicorn.access"), logging.FileHandler(tmp_path / "access.txt")
    theirs.addHandler(file)
    for moment in ("within", "after"):
        if moment == "within":
            open_logs(access_layer=True)
        else:
            close_logs()
            reset_logging()
            setup_logging(console=None, directory=tmp_path)
        theirs.info(moment)
    assert flush_logs(10)
    file.close()
    assert (tmp_path / "access.txt").read_text() == "within\nafter\n"
    assert [record["msg"] for record in read(tmp_path) if record["logger"] == "gunicorn.access"] == ["after"]


def test_what_somebody_silenced_or_sent_to_a_file_of_theirs_stays_so(tmp_path: Path) -> None:
    silent, filed = logging.getLogger("uvicorn.access"), logging.getLogger("gunicorn.access")
    silent.handlers, silent.propagate = [], False  # `--no-access-log`
    file = logging.FileHandler(tmp_path / "access.txt")
    filed.handlers, filed.propagate = [file], False  # `--access-logfile`
    setup_logging(console=None, directory=tmp_path)
    silent.warning("nobody hears this")
    filed.warning("kept where it was")
    file.close()
    assert flush_logs(10)
    assert read(tmp_path) == []
    assert (tmp_path / "access.txt").read_text() == "kept where it was\n"


def test_a_handler_for_a_stream_that_is_no_terminal_stays(tmp_path: Path) -> None:
    root = logging.getLogger()
    with open(tmp_path / "mine.txt", "w") as stream:
        mine, terminal = logging.StreamHandler(stream), logging.StreamHandler()
        for handler in (mine, terminal):
            root.addHandler(handler)
        setup_logging(console=None)
        assert mine in root.handlers
        assert terminal not in root.handlers


@pytest.mark.parametrize(
    ("access", "logger", "said"),
    [(True, "onebeat.access", "by onebeat, the server's is off"), (False, "uvicorn.access", "the server's own")],
)
def test_logs_set_up_while_the_application_starts_take_the_server_over_as_well(
    access: bool, logger: str, said: str, tmp_path: Path
) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(setup_logging, console=None, directory=tmp_path, access=access)
        yield

    app = FastAPI(lifespan=lifespan)
    install(app)
    with TestClient(app) as client:
        client.get("/nothing")
        logging.getLogger("uvicorn.access").info("the server's own access record")
    records = read(tmp_path)
    assert [record["logger"] for record in records if "access" in record["logger"]] == [logger]
    assert any(record["msg"].endswith(f"access log: {said}") for record in records)


def test_the_server_s_access_log_is_back_when_logs_are_set_up_anew_without_ours(tmp_path: Path) -> None:
    app = FastAPI()
    install(app)
    setup_logging(console=None, directory=tmp_path / "first")
    with TestClient(app) as client:
        setup_logging(console=None, directory=tmp_path, access=False)
        client.get("/nothing")
        logging.getLogger("uvicorn.access").info("the server's own access record")
    assert [record["logger"] for record in read(tmp_path) if "access" in record["logger"]] == ["uvicorn.access"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors as Linux shows them")
def test_setting_up_again_and_again_leaves_no_thread_and_no_descriptor_behind(tmp_path: Path) -> None:
    def held() -> tuple[int, int]:
        writers = [one for one in threading.enumerate() if one.name.startswith("onebeat-logs-")]
        return len(writers), len(os.listdir("/proc/self/fd"))

    def ended(before: tuple[int, int]) -> bool:
        for _ in range(500):  # a thread that was told to end takes a moment
            if held() <= before:
                return True
            time.sleep(0.01)
        return False

    before = held()
    for number in range(10):
        setup_logging(console=None, directory=tmp_path)
        logging.getLogger("shop").info("setup %d", number)
    reset_logging()
    assert ended(before), (before, held())
    assert [record["msg"] for record in read(tmp_path)] == [f"setup {number}" for number in range(10)]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"msg": "level"}, "'level' and 'msg'"),
        ({"ts": "time", "msg": "time"}, "'ts' and 'msg'"),
        ({"msg": "unit"}, "'unit'"),
        ({"user": "id", "customer": "id"}, "would both be 'id'"),
        ({"msg": ""}, "cannot be named ''"),
        ({"msg": 5}, "cannot be named 5"),
    ],
)
def test_names_of_fields_that_cannot_work_are_refused(fields: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        setup_logging(console=None, fields=fields)


def test_two_fields_may_change_places() -> None:
    setup_logging(console=None, fields={"ts": "level", "level": "ts", "func": None})


def test_what_a_setup_leaves_unwritten_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exits, "DEADLINE", 0.1)
    (tmp_path / "file").touch()
    setup_logging(console=None, directory=tmp_path / "file" / "logs")
    logging.getLogger("shop").warning("there is no such directory")
    setup_logging(console=None)
    assert "1 log records were not written within 0.1 s before the logs were set up anew" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"level": "LOUD"}, "unknown log level 'LOUD'"),
        ({"fields": ["ts"]}, "is no mapping"),
        ({"constants": ["shop"]}, "is no mapping; give values by names"),
        ({"constants": {"level": "x"}}, "'level' cannot be a name"),
        ({"constants": {"message": 1}, "fields": {"msg": "message"}}, "'message' cannot be a name"),
        ({"constants": {"service": ["x"]}}, "'service' is a list"),
        ({"fields": {"msg": None}}, "'msg' cannot be left out"),
        ({"fields": {"ts": None}}, "'ts' cannot be left out"),
        ({"directory": 123}, "directory=123 is no path"),
        ({"queue_records": "x"}, "queue_records='x' is no number"),
        ({"keep_days": 999_999}, "keep_days=999999 cannot work; use a number of days from 0 to"),
        ({"redact": "password"}, "redact='password' is no list of texts"),
        ({"access_exclude": "/health"}, "access_exclude='/health' is no list of texts"),
    ],
)
def test_what_cannot_work_is_refused_in_words_and_the_former_setup_goes_on(
    options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    setup_logging(console=None, directory=tmp_path)
    with pytest.raises(ConfigurationError, match=words):
        setup_logging(**{"console": None, **options})
    logging.getLogger("shop").info("still here")
    assert flush_logs(10)
    assert [record["msg"] for record in read(tmp_path)] == ["still here"]


def test_an_unknown_option_of_the_log_config_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no option 'typo'"):
        uvicorn_log_config(typo=1)


def test_setting_up_again_while_another_thread_logs_loses_and_doubles_nothing(tmp_path: Path) -> None:
    setup_logging(console=None, directory=tmp_path)
    done, begun, count = threading.Event(), threading.Event(), 0

    def logs() -> None:
        nonlocal count
        while not done.is_set() and count < 100_000:
            logging.getLogger("shop").info("%d", count)
            count += 1
            begun.set()

    thread = threading.Thread(target=logs)
    thread.start()
    assert begun.wait(10)
    for _ in range(3):
        setup_logging(console=None, directory=tmp_path)
    done.set()
    thread.join()
    assert flush_logs(10)
    deadline = time.monotonic() + 10  # a line that was on its way to the former handler is written by its thread
    while len(read(tmp_path)) < count and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sorted(int(record["msg"]) for record in read(tmp_path)) == list(range(count))
