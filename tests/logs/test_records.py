"""A record becomes one line of JSON, whatever it holds."""

from __future__ import annotations

import copy
import dataclasses
import gc
import io
import json
import logging
import math
import pickle
import sys
import traceback
import weakref
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from onebeat.logs.failure import RECORD_LIMIT, captured, finished, rendered
from onebeat.logs.filter import TrackingFilter
from onebeat.logs.record import ALWAYS, RecordEncoder
from onebeat.model.protocols import Unit
from onebeat.tracking.context import VARIABLE, Cell, Tracking, bind, tracking
from tests.logs.conftest import Script, encoded


def test_every_record_has_the_fields_that_are_always_there() -> None:
    record = encoded(msg="hello %s", args=("you",), created=1_700_000_000.25)
    assert tuple(key for key in record if key in ALWAYS) == ALWAYS
    assert record["ts"] == "2023-11-14T22:13:20.250000Z"
    assert record["level"] == "INFO"
    assert record["logger"] == "shop"
    assert record["msg"] == "hello you"
    assert record["tracking_id"] is None
    assert record["src"].endswith("tests/logs/conftest.py:7")
    assert (record["func"], record["process"], record["thread"]) == ("f", "MainProcess", "MainThread")


@pytest.mark.parametrize("moment", [0.0, 0.999999, 1e9 + 0.1, 1_700_000_000.9999999, 253_402_300_799.5])
def test_the_moment_is_rfc_3339_in_utc_with_microseconds(moment: float) -> None:
    written = datetime.fromisoformat(encoded(created=moment)["ts"])
    assert abs(written.timestamp() - moment) < 2e-6
    assert written.tzinfo == UTC


def test_the_clock_may_step_back_within_one_encoder() -> None:
    encoder = RecordEncoder()
    stamps = [encoded(encoder, created=moment)["ts"] for moment in (5.5, 3.25, 5.75)]
    assert stamps == ["1970-01-01T00:00:05.500000Z", "1970-01-01T00:00:03.250000Z", "1970-01-01T00:00:05.750000Z"]


def test_fields_can_have_other_names_or_be_left_out() -> None:
    encoder = RecordEncoder(fields={"ts": "@timestamp", "msg": "message", "func": None, "exc": "error", "task": "job%"})
    try:
        raise ValueError("no")
    except ValueError:
        record = encoded(encoder, msg="100 %", exc_info=sys.exc_info(), task="mail")
    assert next(iter(record)) == "@timestamp"
    assert record["message"] == "100 %"
    assert record["error"]["type"] == "ValueError"
    assert record["job%"] == "mail"
    assert not record.keys() & {"ts", "msg", "func", "exc", "task"}


# ── the unit ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_record_carries_the_ids_and_the_bound_fields_of_its_unit() -> None:
    with tracking("order-7", customer=7, password="x") as unit:
        bind(rows=3)
        record = encoded(msg="m", customer="other")
        inner = encoded()
    assert record["tracking_id"] == "order-7"
    assert (record["unit"], record["unit_id"]) == ("task", unit.unit_id)
    assert (record["customer"], record["customer_"], record["rows"]) == (7, "other", 3)
    assert record["password"] == "[redacted]"
    assert inner["rows"] == 3
    assert encoded()["tracking_id"] is None


def test_a_field_bound_later_is_on_every_record_after_it() -> None:
    encoder = RecordEncoder()
    with tracking("t"):
        assert "a" not in encoded(encoder)
        bind(a=1)
        assert encoded(encoder)["a"] == 1
        bind(a=2)
        assert encoded(encoder)["a"] == 2
        assert encoded(RecordEncoder(fields={"tracking_id": "trace"}))["trace"] == "t"


def test_a_job_s_record_names_the_job_and_its_schedule() -> None:
    job = Unit(kind="job", id="j1", task="mail", attempt=2, queue="slow", schedule_id="nightly", fire_time="2026-01-01")
    token = VARIABLE.set(Tracking("t1", "job", "j1", job=job, cell=Cell()))
    try:
        record = encoded(queue="mine")
    finally:
        VARIABLE.reset(token)
    assert (record["job_id"], record["task"], record["attempt"]) == ("j1", "mail", 2)
    assert (record["queue"], record["queue_"]) == ("slow", "mine")
    assert (record["schedule_id"], record["fire_time"]) == ("nightly", "2026-01-01")


def test_a_server_s_record_after_the_end_of_a_request_has_no_id_unless_it_has_the_exception() -> None:
    with pytest.raises(ValueError) as caught, tracking("r1") as unit:
        raise ValueError("broken")
    token = VARIABLE.set(unit)  # a keep-alive connection whose context still holds the former request
    try:
        assert encoded(name="uvicorn.error", msg="Invalid HTTP request received.")["tracking_id"] is None
        late = encoded(name="shop", msg="a task the request left behind")
        assert (late["tracking_id"], late["unit_closed"]) == ("r1", True)
    finally:
        VARIABLE.reset(token)
    info = (ValueError, caught.value, caught.value.__traceback__)
    record = encoded(name="uvicorn.error", msg="Exception in ASGI application", exc_info=info)
    assert record["tracking_id"] == "r1"


def test_the_filter_notes_the_unit_for_handlers_behind_a_queue() -> None:
    record = logging.makeLogRecord({"name": "shop", "msg": "m"})
    with tracking("q1"):
        TrackingFilter().filter(record)
    line = RecordEncoder().encode(record)[2]
    assert json.loads(line)["tracking_id"] == "q1"
    assert "tracking_id_" not in json.loads(line)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(tracking_id)s %(message)s"))
    handler.handle(record)
    assert stream.getvalue() == "q1 m\n"


# ── content ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclasses.dataclass
class Card:
    owner: str
    secret_code: str


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Loop(list[Any]):
    def __init__(self) -> None:
        super().__init__()
        self.extend([self, self, self])


VALUES: list[tuple[Any, Any]] = [
    (math.nan, None),
    (-math.inf, None),
    (1.5, 1.5),
    (True, True),
    (10**30, str(10**30)),
    (10**5000, "<integer of 16610 bits>"),
    (b"a\xff", "a\\xff"),
    (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
    (Card("ada", "123"), {"owner": "ada", "secret_code": "[redacted]"}),
    (ValueError("why"), "ValueError: why"),
    (Hostile(), "<Hostile: __str__ raised RuntimeError>"),
    ({1: {"Authorization": "Basic x"}, None: 2}, {"1": {"Authorization": "[redacted]"}, "None": 2}),
    ({"a"}, ["a"]),
    ("\ud800", "\\ud800"),
    ("x\x1b[2J\x9b\u202e\x7f\u2028", "x\x1b[2J\x9b\u202e\x7f\u2028"),
    (deque([1]), [1]),
    ("postgresql://shop:s3cret@db/x", "postgresql://shop:[redacted]@db/x"),
]


@pytest.mark.parametrize(("value", "expected"), VALUES, ids=[type(value).__name__ for value, _ in VALUES])
def test_any_value_becomes_plain_json(value: Any, expected: Any) -> None:
    assert encoded(extra_field=value)["extra_field"] == expected


def test_cycles_depth_and_width_end() -> None:
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    record = encoded(loop=Loop(), deep=deep, wide=list(range(100_000)), text="x" * 10_000_000)
    assert "too deep" in json.dumps(record["loop"])
    assert "too deep" in json.dumps(record["deep"])
    assert len(record["wide"]) == 129
    assert record["text"] == "x" * 8192 + "…[+9991808 characters]"


def test_characters_that_drive_a_terminal_or_split_lines_are_escaped_in_the_line() -> None:
    record = logging.makeLogRecord({"msg": "a\x00\x1b\x7f\x85\x9b\u2028\u202e\ufeff\U000e0041é漢😀\r\n"})
    line = RecordEncoder().encode(record)[2]
    for character in "\x00\x1b\x7f\r\x85\x9b\u2028\u202e\ufeff\U000e0041":
        assert character.encode() not in line
    assert "é漢😀" in line.decode()
    assert json.loads(line)["msg"] == record.msg
    assert len(line.decode().splitlines()) == 1


def test_names_of_extras_that_are_taken_get_another_name() -> None:
    taken: dict[str, Any] = {"ts": 1, "logger": 2, "tracking_id": "mine", "ts_": 3, "exc": 4}
    record = encoded(**taken)
    assert record["level"] == "INFO"
    assert (record["ts__"], record["ts_"], record["logger_"], record["tracking_id_"]) == (1, 3, 2, "mine")
    assert record["exc_"] == 4
    assert record["tracking_id"] is None


@pytest.mark.parametrize(
    ("fields", "bound", "extra"),
    [
        ({}, {"level": 3}, {"level": 4}),
        ({}, {"level": 3, "level_": 2}, {"level": 4, "level_": 5, "level__": 6}),
        ({"user": "uid"}, {}, {"user": 1, "uid": 2}),
        ({"user": "uid"}, {}, {"uid": 2, "user": 1}),
        ({"user": "uid"}, {"user": 1}, {"uid": 2, "uid_": 3}),
        ({"func": "src_", "user": "ts_"}, {"ts": 1}, {"src": 2, "user": 3, "ts": 4}),
        ({}, {}, {"k" * 300 + "a": 1, "k" * 300 + "b": 2}),
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_no_two_fields_of_a_line_have_one_name(
    fields: dict[str, str | None], bound: dict[str, Any], extra: dict[str, Any], again: bool
) -> None:
    encoder = RecordEncoder(fields=fields)
    if again:  # names are remembered once they were seen
        for key in extra:
            encoded(encoder, **{key: 1})
    with tracking(**bound):
        record = logging.makeLogRecord({"name": "shop", "msg": "x", "levelname": "INFO"})
        record.__dict__.update(extra)
        line = encoder.encode(record)[2]
    names = [name for name, _ in json.loads(line, object_pairs_hook=list)]
    assert sorted(names) == sorted(set(names))


def test_a_record_of_another_process_keeps_its_id_as_the_id() -> None:
    with tracking("order-7"):
        record = logging.makeLogRecord({"name": "shop", "msg": "x", "process": 1})
        TrackingFilter().filter(record)
    arrived = pickle.loads(pickle.dumps(record))
    with tracking("of the listener"):
        shown = json.loads(RecordEncoder().encode(arrived)[2])
    assert shown["tracking_id"] == "order-7"
    assert "tracking_id_" not in shown
    assert encoded(tracking_id="mine")["tracking_id_"] == "mine"


def test_an_exception_that_refuses_to_tell_its_notes_loses_nothing() -> None:
    class Odd(Exception):
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    with tracking("order-7"):
        try:
            raise Odd("no")
        except Odd:
            record = encoded(msg="failed", exc_info=sys.exc_info())
    assert (record["msg"], record["tracking_id"]) == ("failed", "order-7")
    assert record["exc"]["msg"] == "no"


def test_a_record_whose_attributes_are_nonsense_keeps_its_tracking_id() -> None:
    with tracking("order-7"):
        record = encoded(created="never")
    assert (record["tracking_id"], "encoding_error" in record) == ("order-7", True)


def test_keys_that_are_no_text_are_written_as_text() -> None:
    record = logging.makeLogRecord({"msg": "m"})
    record.__dict__[5] = "five"  # type: ignore[index]  # hostile on purpose
    record.__dict__[None] = 1  # type: ignore[index]  # hostile on purpose
    value = json.loads(RecordEncoder().encode(record)[2])
    assert (value["5"], value["None"]) == ("five", 1)


def test_secrets_are_redacted_by_key_and_in_addresses_and_each_use_is() -> None:
    encoder = RecordEncoder()
    for _ in range(3):  # the names are remembered after the first
        record = encoded(
            encoder,
            msg="cannot reach mysql://u:pw@db/x with Bearer abcdefghijkl",
            api_key="k",
            session_cookie=["c"],
            prompt_tokens=12,
            password=None,
            user="ada",
            **{"X-Auth-Token": "t"},
        )
        assert record["msg"] == "cannot reach mysql://u:[redacted]@db/x with Bearer [redacted]"
        assert [record[key] for key in ("api_key", "X-Auth-Token", "session_cookie")] == ["[redacted]"] * 3
        assert (record["prompt_tokens"], record["password"], record["user"]) == (12, None, "ada")


@pytest.mark.parametrize(
    ("msg", "args"),
    [
        ("to %s", ("redis://:s3cret@h",)),
        ("redis://:%s@h", ("s3cret",)),
        ("%s://:%s@h", ("redis", "s3cret")),
        ("%s", (["redis://:s3cret@h"],)),
        ("%(to)s", ({"to": "redis://:s3cret@h"},)),
        ("redis://:s3cret@h", ()),
        (["redis://:s3cret@h"], ()),
        ("GET %s", ("/?pwd=s3cret",)),
        ("GET /?%s=%s", ("pwd", "s3cret")),
    ],
)
def test_a_secret_is_found_wherever_the_message_has_it_from_and_each_time(msg: Any, args: tuple[Any, ...]) -> None:
    encoder = RecordEncoder()
    for _ in range(3):
        shown = encoded(encoder, msg=msg, args=args)["msg"]
        assert "[redacted]" in shown
        assert "s3cret" not in shown


def test_an_argument_changed_after_the_call_is_logged_as_it_was() -> None:
    basket = ["apple"]
    record = logging.makeLogRecord({"msg": "%s", "args": (basket,), "basket": basket})
    line = RecordEncoder().encode(record)[2]
    basket.append("pear")
    assert json.loads(line)["msg"] == "['apple']"
    assert json.loads(line)["basket"] == ["apple"]


def test_arguments_that_do_not_fit_the_message_lose_nothing() -> None:
    assert encoded(msg="%d of %d", args=(1,))["msg"] == "%d of %d (1,)"
    assert encoded(msg="%d", args=("x",))["msg"] == "%d ('x',)"
    assert encoded(msg="%s", args=(Hostile(),))["msg"].startswith("%s <tuple: __repr__ raised RuntimeError>")
    assert encoded(msg="%(a)s", args={"a": 1})["msg"] == "1"
    assert encoded(msg=Hostile())["msg"].startswith("<Hostile")


def test_a_record_whose_attributes_are_nonsense_is_still_a_line() -> None:
    record = encoded(name=["no"], levelno="high", levelname=None, created="now", lineno=Hostile(), process={})
    assert record["logger"] == "['no']"
    assert "encoding_error" in record


def test_no_line_is_longer_than_the_limit() -> None:
    fields = {f"field{number}": "é" * 8000 for number in range(40)}
    try:
        raise ValueError("x" * 100_000)
    except ValueError:
        record = logging.makeLogRecord({"msg": "m" * 1_000_000, "exc_info": sys.exc_info(), **fields})
    _, _, line, failure = RecordEncoder().encode(record)
    whole = finished(line, failure)
    assert len(whole) <= RECORD_LIMIT
    value = json.loads(whole)
    assert value["exc"]["type"] == "ValueError"
    assert value["field39"] == "…[16002 bytes left out]"
    assert value["msg"].startswith("mmm")


@pytest.mark.parametrize(
    "extra",
    [
        {f"f{number}": "\u202e" * 8000 for number in range(3)},  # six bytes each in the line, three in the text
        {f"field{number}": number for number in range(20_000)},
        {f"field{number}": "x" * 8000 for number in range(400)},
        {"\u202e" * 250 + str(number): 1 for number in range(500)},
    ],
    ids=["hostile characters", "many fields", "many large fields", "hostile names"],
)
def test_no_line_is_longer_than_the_limit_whatever_its_fields(extra: dict[str, Any]) -> None:
    error = type("E" * 100_000, (ValueError,), {})("\u202e" * 50_000)
    record = logging.makeLogRecord(
        {"msg": "\u202e" * 50_000, "name": "n" * 50_000, **extra, "exc_info": (type(error), error, None)}
    )
    with tracking("t-1", **dict(list(extra.items())[:50])):
        _, _, line, failure = RecordEncoder().encode(record)
    whole = finished(line, failure)
    assert len(whole) <= RECORD_LIMIT
    value = json.loads(whole)
    assert value["tracking_id"] == "t-1"
    assert value["exc"]["type"].startswith("tests.logs.test_records.EEE")
    assert "left out" in whole.decode()


# ── exceptions ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_an_exception_is_structured_and_readable() -> None:
    empty: dict[str, int] = {}
    try:
        try:
            empty["missing"]
        except KeyError as error:
            error.add_note("looked in the empty one")
            raise ValueError("outer") from error
    except ValueError:
        failure = encoded(exc_info=sys.exc_info())["exc"]
    assert (failure["type"], failure["msg"]) == ("ValueError", "outer")
    assert failure["frames"][-1]["func"] == "test_an_exception_is_structured_and_readable"
    assert failure["cause"]["type"] == "KeyError"
    assert failure["cause"]["notes"] == ["looked in the empty one"]
    assert '    empty["missing"]\n' in failure["text"]
    assert failure["text"].endswith("ValueError: outer")
    assert "direct cause" in failure["text"]


def test_groups_contexts_cycles_and_deep_stacks_end() -> None:
    def deep(left: int) -> None:
        if left == 0:
            raise ExceptionGroup("both", [ValueError("a"), ExceptionGroup("inner", [KeyError("b")])])
        deep(left - 1)

    try:
        deep(300)
    except ExceptionGroup as group:
        group.__context__ = group.exceptions[0]
        group.exceptions[0].__context__ = group
        failure = encoded(exc_info=sys.exc_info())["exc"]
    assert len(failure["frames"]) == 50
    assert "252 frames left out" in failure["text"]
    assert failure["members"][0]["members"][0]["type"] == "KeyError"


def test_an_exception_rendered_by_someone_before_us_is_kept() -> None:
    assert encoded(exc_text="Traceback …\nboom")["exc"] == {"type": None, "msg": None, "text": "Traceback …\nboom"}
    assert encoded(stack_info="Stack (most recent call last)")["stack"].startswith("Stack")
    assert "exc" not in encoded(exc_info=(None, None, None))


class Held:
    pass


def test_what_was_logged_is_not_kept_alive() -> None:
    held = Held()
    seen = weakref.ref(held)
    encoder = RecordEncoder()
    try:
        request = held
        raise ValueError(request)
    except ValueError:
        record = logging.makeLogRecord({"msg": "%s", "args": (held,), "held": held, "exc_info": sys.exc_info()})
        entry = encoder.encode(record)
    del held, request, record
    gc.collect()
    assert seen() is None
    assert entry[3] is not None


# ── uvicorn ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_uvicorn_s_access_record_becomes_fields_without_the_query() -> None:
    args = ("127.0.0.1:5000", "GET", "/a?token=abc", "1.1", 200)
    record = encoded(name="uvicorn.access", msg='%s - "%s %s HTTP/%s" %d', args=args)
    assert record["msg"] == '127.0.0.1:5000 - "GET /a HTTP/1.1" 200'
    assert (record["method"], record["path"], record["status"]) == ("GET", "/a", 200)
    assert (record["client"], record["http_version"]) == ("127.0.0.1:5000", "1.1")
    other = encoded(name="uvicorn.access", msg="%s", args=("x",))
    assert other["msg"] == "x"


# ── ten thousand records ──────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.campaign)])
def test_random_records_are_lines_of_json(count: int) -> None:
    from tests.logs.fuzz import main

    assert main(count, seed=1) == count


def test_random_records_are_lines_of_json_without_orjson_too(script: Script) -> None:
    done = script(
        "import sys; sys.modules['orjson'] = None\nfrom tests.logs.fuzz import main\nprint(main(500, seed=2))"
    )
    assert done.stdout == "500\n"


def test_the_unit_is_no_field_for_the_handlers_of_others_and_no_class_in_a_pickle() -> None:
    record = logging.makeLogRecord({"name": "shop", "msg": "m"})
    before = set(vars(record))
    with tracking("q1"):
        TrackingFilter().filter(record)
    assert {name: value for name, value in vars(record).items() if name not in before} == {"tracking_id": "q1"}
    assert json.loads(json.dumps(vars(record)))["tracking_id"] == "q1"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps(vars(record), protocol)
        assert b"onebeat" not in data
        assert type(pickle.loads(data)["tracking_id"]) is str
    assert json.loads(RecordEncoder().encode(copy.copy(record))[2])["unit"] == "task"  # as a QueueHandler copies it


@pytest.mark.parametrize("behind", [0, 10, 5_000])
def test_a_secret_that_a_limit_cuts_through_is_not_shown(behind: int) -> None:
    from onebeat.logs.plain import FIELD_LIMIT, clean

    address = "postgresql://u:hunter2@db"
    for before in range(FIELD_LIMIT - 30, FIELD_LIMIT + 5):
        text = clean("x" * before + address + "y" * behind)
        assert "hunter2"[:2] not in text.partition("://")[2]


def test_a_traceback_has_the_marks_that_python_draws() -> None:
    def price(order: Any) -> Any:
        return (order["net"]["sum"]) + order["tax"]["sum"]["total"]

    try:
        price({"net": {"sum": 1}, "tax": {"sum": None}})
    except TypeError as error:
        expected = "".join(traceback.format_exception(error)).splitlines()
        text = rendered(captured(error))["text"].splitlines()
    marks = [line for line in expected if set(line.strip()) <= {"~", "^"}]
    assert marks
    assert [line for line in text if set(line.strip()) <= {"~", "^"}] == marks


def test_a_syntax_error_shows_its_own_line() -> None:
    try:
        compile("def f(:\n    pass", "shop.py", "exec")
    except SyntaxError as error:
        text = rendered(captured(error))["text"].splitlines()
    assert text[-4:-1] == ['  File "shop.py", line 1', "    def f(:", "          ^"]
    nonsense = SyntaxError("no", ("shop.py", 1, 10**9, "x"))
    nonsense.text, nonsense.offset = object(), "first"  # type: ignore[assignment]  # as an application may set them
    assert "SyntaxError" in rendered(captured(nonsense))["text"]


def test_a_cause_that_is_falsy_is_kept() -> None:
    class Empty(Exception):
        def __len__(self) -> int:
            return 0

    error = ValueError("whole")
    error.__cause__ = Empty("the cause")
    value = rendered(captured(error))
    assert value["cause"]["msg"] == "the cause"
    context = ValueError("whole")
    context.__context__ = Empty("the context")
    assert rendered(captured(context))["context"]["msg"] == "the context"


@pytest.mark.parametrize("kind", [dict, lambda pairs: [dict(pairs)], lambda pairs: (dict(pairs), 1)])
def test_a_mapping_as_the_message_shows_no_secret(kind: Any) -> None:
    message = kind({"user": "ann", "password": "hunter2", "deep": {"api_key": "k-123"}})
    record = logging.LogRecord("shop", 20, "x.py", 7, message, None, None)
    shown = json.loads(RecordEncoder().encode(record)[2])["msg"]
    assert "ann" in shown
    assert "hunter2" not in shown
    assert "k-123" not in shown


@pytest.mark.parametrize("root", ["", ".", "{folder}", "{folder}/", "sub/.."])
@pytest.mark.parametrize("path", ["{folder}/shop/mail.py", "shop/mail.py", "./shop/mail.py", "sub/../shop/mail.py"])
def test_the_source_is_the_same_however_the_server_was_started(
    root: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`uvicorn shop:app` puts "" into the path of modules, `python -m uvicorn` the folder itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [root.format(folder=tmp_path), *sys.path])
    record = logging.LogRecord("shop", 20, path.format(folder=tmp_path), 7, "sent", (), None)
    assert json.loads(RecordEncoder().encode(record)[2])["src"] == "shop/mail.py:7"


@pytest.mark.parametrize("path", ["<string>", "/elsewhere/mail.py", "", "a\x00b"])
def test_a_source_under_no_folder_of_modules_stays_as_it_is(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    record = logging.LogRecord("shop", 20, path, 7, "sent", (), None)
    assert json.loads(RecordEncoder().encode(record)[2])["src"] == f"{path}:7"


def test_constants_stand_on_every_record_and_their_names_are_theirs() -> None:
    encoder = RecordEncoder(constants={"service": "shop", "replica": 3, "api_token": "t-1"}, fields={"src": "service_"})
    record = logging.LogRecord("shop", 20, "x.py", 7, "sent", (), None)
    record.service = "mine"
    with tracking("t-1", replica="bound"):
        line = json.loads(encoder.encode(record)[2])
    assert (line["service"], line["replica"]) == ("shop", 3)
    assert (line["service__"], line["replica_"]) == ("mine", "bound")
    assert line["api_token"] == "[redacted]"
