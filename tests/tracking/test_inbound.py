"""Whose id is accepted, in which form, and what becomes of any other."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from onebeat.errors import ConfigurationError
from onebeat.tracking import TrackingMiddleware, TrackingRules, notices
from onebeat.tracking.ids import is_valid
from tests.tracking.asgi import Echo, ask

X = b"x-request-id"
TRACE = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def layer(**rules: Any) -> tuple[Echo, TrackingMiddleware]:
    echo = Echo()
    return echo, TrackingMiddleware(echo, TrackingRules(**rules))


async def effective(*values: bytes, **rules: Any) -> str:
    """The id in force for a request with these values of X-Request-ID, the same wherever one looks."""
    echo, app = layer(**rules)
    reply = await ask(app, [(b"host", b"x"), *((X, value) for value in values)])
    assert [value for key, value in echo.headers if key == X] == [reply.id.encode()]
    assert echo.state == {"tracking_id": reply.id}
    assert echo.seen.tracking_id == reply.id
    assert echo.seen.kind == "request"
    assert is_valid(reply.id)
    return reply.id


def is_new(id: str) -> bool:
    return len(id) == 32 and int(id, 16) >> 76 & 0xF == 7


async def test_without_a_header_the_request_gets_32_hex_digits() -> None:
    assert is_new(await effective())


@pytest.mark.parametrize(
    "id",
    [
        "6F9619FF-8B86-D011-B42D-00C04FC964FF",
        "01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "Root=1-67891233-abcdef012345678912345678",
        "3f2a9c0b7d6e5f4a8b1c2d3e4f506172",
        "c2Vzc2lvbi0xMjM0NTY3+/==",
        "105445aa7843bc8bf206b12000100000/1;o=1",
        "7b1d3c4e5f6a7b8c-FRA",
        "x",
        "!#$%&'()*+-./:;<=>?@[]^_`{|}~",
        "A" * 128,
    ],
)
async def test_ids_of_the_field_come_back_byte_for_byte(id: str) -> None:
    assert await effective(id.encode()) == id


@pytest.mark.parametrize(
    "value",
    [
        b"A" * 129,
        b"-" * 60_000 + b"a" * 32,
        b"\xff\xfe",
        b"a\x1b[2Jb",
        b"a\x00b",
        b"a\rb",
        b"a\nb",
        b"a\tb",
        b"a\x7fb",
        "a\x9bb".encode(),
        "a\x85b".encode(),
        b"a\x9bb",
        "a\u202eb".encode(),
        b'a"b',
        b"a\\b",
        b"a,b",
        b"a b",
        b"id\n",
        "ı".encode(),
        b"\xc0\x80",
    ],
)
async def test_what_could_harm_a_log_a_terminal_or_a_list_is_replaced(value: bytes) -> None:
    assert is_new(await effective(value))


@pytest.mark.parametrize("value", [b"", b" ", b" \t  "])
async def test_only_spaces_are_no_id_and_nothing_to_count(value: bytes) -> None:
    before = notices.refusals()
    assert is_new(await effective(value))
    assert notices.refusals() == before


async def test_surrounding_spaces_are_stripped() -> None:
    assert await effective(b" \tabc \t") == "abc"


async def test_the_same_id_twice_is_fine_and_two_ids_are_none() -> None:
    assert await effective(b"abc", b" abc") == "abc"
    before = notices.refusals().get("an inbound tracking id", 0)
    assert is_new(await effective(b"abc", b"def"))
    assert notices.refusals()["an inbound tracking id"] == before + 1


async def test_the_first_name_present_decides_and_no_other_id_stays_visible() -> None:
    echo, app = layer()
    both = [(b"x-tracking-id", b"second"), (X, b"first")]
    assert (await ask(app, both)).id == "first"
    assert dict(echo.headers) == {X: b"first", b"x-tracking-id": b"first"}
    assert (await ask(app, both[:1])).id == "second"
    assert dict(echo.headers) == {X: b"second", b"x-tracking-id": b"second"}
    hostile = await ask(app, [(b"x-tracking-id", b"\xff")])
    assert dict(echo.headers) == {X: hostile.id.encode(), b"x-tracking-id": hostile.id.encode()}


async def test_a_thousand_hostile_requests_make_one_warning_without_the_raw_value(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "_quiet_until", 0.0)
    _, app = layer()
    with caplog.at_level(logging.WARNING, "onebeat.tracking"):
        for _ in range(1000):
            await ask(app, [(X, b"\x1b[31m" + b"z" * 5000)])
    [record] = caplog.records
    words = record.getMessage()
    assert "\x1b" not in words
    assert r"\x1b[31m" in words
    assert len(words) < 300


async def test_reject_answers_400_with_the_new_id_in_the_header() -> None:
    echo, app = layer(on_invalid="reject")
    reply = await ask(app, [(X, b"a b")])
    assert reply.status == 400
    assert is_new(reply.id)
    assert echo.unit is None
    assert (await ask(app, [(X, b"ab")])).status == 200
    assert (await ask(app)).status == 200


@pytest.mark.parametrize("denial", [True, False])
async def test_reject_never_sends_http_messages_to_a_websocket(denial: bool) -> None:
    _, app = layer(on_invalid="reject")
    more: dict[str, Any] = {"extensions": {"websocket.http.response": {}}} if denial else {}
    reply = await ask(app, [(X, b"a b")], kind="websocket", **more)
    kinds = [message["type"] for message in reply.sent]
    if denial:
        assert kinds == ["websocket.http.response.start", "websocket.http.response.body"]
        assert reply.status == 400
        assert is_new(reply.id)
    else:
        assert kinds == ["websocket.close"]


@pytest.mark.parametrize(
    ("accept", "client", "trusted"),
    [
        ("always", ("203.0.113.9", 1), True),
        ("never", ("127.0.0.1", 1), False),
        (["10.0.0.0/8"], ("10.1.2.3", 1), True),
        (["10.0.0.0/8"], ("11.1.2.3", 1), False),
        (["10.0.0.0/8"], ("::ffff:10.1.2.3", 1), True),
        (["10.0.0.0/8", "fd00::/8"], ("fd00::7", 1), True),
        (["10.0.0.0/8"], None, False),
        (["unix"], None, True),
        (["10.0.0.0/8"], ("testclient", 1), False),
        (lambda scope: scope["path"] == "/", ("203.0.113.9", 1), True),
        (lambda scope: scope["nothing"], ("203.0.113.9", 1), False),
    ],
)
async def test_the_id_of_a_client_that_is_not_trusted_is_a_log_field_and_nothing_else(
    accept: str | Sequence[str] | Callable[..., bool], client: tuple[str, int] | None, trusted: bool
) -> None:
    echo, app = layer(accept=accept)
    reply = await ask(app, [(X, b"theirs"), (b"traceparent", TRACE)], client=client)
    if trusted:
        assert reply.id == "theirs"
        assert echo.seen.client_id is None
        assert echo.seen.trace is not None
    else:
        assert is_new(reply.id)
        assert echo.seen.identity()["client_id"] == "theirs"
        assert echo.seen.trace is None
        await ask(app, [(X, b"th\xffeirs")], client=client)
        assert "client_id" not in echo.seen.identity()


async def test_the_same_id_from_two_clients_at_once_makes_two_units() -> None:
    units = set()

    async def one() -> None:
        echo, app = layer()
        await ask(app, [(X, b"same")])
        assert echo.seen.tracking_id == "same"
        units.add(echo.seen.unit_id)

    await asyncio.gather(*(one() for _ in range(50)))
    assert len(units) == 50


def _raises() -> str:
    raise RuntimeError("no more ids")


@pytest.mark.parametrize(
    "generate", [_raises, lambda: "", lambda: "a b", lambda: None, lambda: "x" * 129, lambda: b"x"]
)
async def test_a_generator_that_fails_is_replaced_by_the_default(generate: Callable[[], str]) -> None:
    assert is_new(await effective(generate=generate))
    assert is_new(await effective(b"a b", generate=generate))


async def test_a_generator_that_works_is_used() -> None:
    assert await effective(generate=lambda: "mine-1") == "mine-1"


async def test_a_stricter_check_narrows_the_standard_and_never_widens_it() -> None:
    assert is_new(await effective(b"Root=1", check="strict"))
    assert await effective(b"a.b_c-1", check="strict") == "a.b_c-1"
    assert await effective(b"ok-1", check=lambda id: id.startswith("ok")) == "ok-1"
    assert is_new(await effective(b"no-1", check=lambda id: id.startswith("ok")))
    assert is_new(await effective(b"a b", check=lambda id: True))
    assert is_new(await effective(b"ok", check=lambda id: 1 / 0 > 0))


async def test_other_names_and_a_unit_header() -> None:
    echo = Echo()
    rules = TrackingRules(header="X-Correlation-ID", accept_headers=["X-Amzn-Trace-Id"], unit_header="X-Hop")
    app = TrackingMiddleware(echo, rules)
    reply = await ask(app, [(b"x-amzn-trace-id", b"Root=1-abc"), (b"x-correlation-id", b"not asked for")])
    assert reply.values(b"x-correlation-id") == [b"Root=1-abc"]
    assert reply.values(b"x-hop") == [echo.seen.unit_id.encode()]
    assert dict(echo.headers) == {b"x-amzn-trace-id": b"Root=1-abc", b"x-correlation-id": b"Root=1-abc"}
    await ask(app, [(b"x-correlation-id", b"not asked for")])
    assert [value for key, value in echo.headers if key == b"x-correlation-id"] == [echo.seen.tracking_id.encode()]


@pytest.mark.parametrize(
    "rules",
    [
        {"header": "a b"},
        {"header": ""},
        {"accept": "sometimes"},
        {"accept": ["10.0.0.0/99"]},
        {"check": "lax"},
        {"on_invalid": "ignore"},
        {"accept_headers": "X-Request-ID"},
        {"generate": "id"},
        {"transform": "upper"},
        {"header": "X\r\nY"},
    ],
)
def test_rules_that_cannot_work_are_refused_where_they_are_made(rules: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        TrackingRules(**rules)


async def test_ten_thousand_random_header_sets_never_raise_and_never_make_a_long_or_hostile_id() -> None:
    chance = random.Random(20261123)
    names = [X, b"x-tracking-id", b"traceparent", b"tracestate", b"cookie", b"x-request-id2"]
    pieces = [
        b"00-",
        b"4bf92f3577b34da6a3ce929d0e0e4736",
        b"-",
        b"00f067aa0ba902b7",
        b"-01",
        b",",
        b"k=v",
        b"\x1b[",
        b" ",
    ]

    def value() -> bytes:
        match chance.randrange(5):
            case 0:
                return chance.randbytes(chance.randrange(200))
            case 1:
                return b"".join(chance.choices(pieces, k=chance.randrange(12)))
            case 2:
                return bytes(chance.choices(range(0x21, 0x7F), k=chance.randrange(140)))
            case 3:
                changed = bytearray(TRACE)
                changed[chance.randrange(len(TRACE))] = chance.randrange(256)
                return bytes(changed)
        return TRACE

    apps = [layer(), layer(accept=["203.0.113.0/24"]), layer(accept="never"), layer(check="strict")]
    accepted = 0
    for turn in range(10_000):
        headers = [(chance.choice(names), value()) for _ in range(chance.randrange(6))]
        echo, app = apps[turn % len(apps)]
        reply = await ask(app, headers)
        assert is_valid(reply.id)
        assert len(reply.id) <= 128
        assert len(echo.seen.unit_id) == 16
        assert [v for k, v in echo.headers if k == X] == [reply.id.encode()]
        identity = "".join(map(str, echo.seen.identity().values()))
        assert identity.isascii()
        assert identity.isprintable()
        accepted += echo.seen.origin != "generated"
    assert accepted > 500  # the fuzzer reaches the accepting side too


def test_one_header_cannot_have_both_ids() -> None:
    with pytest.raises(ConfigurationError, match="give the unit id another name"):
        TrackingRules(unit_header="x-request-id")


async def test_what_stands_outside_sees_the_id_in_the_state_it_holds() -> None:
    echo, app = layer()
    state = {"user": 7}
    reply = await ask(app, state=state)
    assert state == {"user": 7, "tracking_id": reply.id}
    assert echo.state is state


async def test_one_name_means_both_directions() -> None:
    """As users of asgi-correlation-id expect; the usual names still count after it."""
    echo = Echo()
    app = TrackingMiddleware(echo, TrackingRules(header="X-Correlation-ID"))
    for name in (b"x-correlation-id", b"x-request-id", b"x-tracking-id"):
        reply = await ask(app, [(name, b"given-1")])
        assert reply.values(b"x-correlation-id") == [b"given-1"], name
    reply = await ask(app, [(b"x-request-id", b"second"), (b"x-correlation-id", b"first")])
    assert reply.values(b"x-correlation-id") == [b"first"]
    assert TrackingRules(header="x-tracking-id").inbound == ("x-tracking-id", "X-Request-ID")
    assert TrackingRules(header="X-A", accept_headers=()).inbound == ()


async def test_an_id_is_transformed_wherever_it_comes_from() -> None:
    assert await effective(b"0123456789", transform=lambda id: id[:8]) == "01234567"
    assert len(await effective(transform=lambda id: id[:8])) == 8
    assert await effective(generate=lambda: "made", transform=str.upper) == "MADE"
    echo = Echo()
    app = TrackingMiddleware(echo, TrackingRules(transform=lambda id: id[:4]))
    trace = b"4bf92f3577b34da6a3ce929d0e0e4736"
    reply = await ask(app, [(b"traceparent", b"00-" + trace + b"-00f067aa0ba902b7-01")])
    assert reply.id == "4bf9"
    assert echo.seen.trace is not None
    assert echo.seen.trace.trace_id == trace.decode()
    app = TrackingMiddleware(echo, TrackingRules(accept="never", transform=lambda id: id[:4]))
    assert len((await ask(app, [(b"x-request-id", b"of a stranger")])).id) == 4


@pytest.mark.parametrize("transform", [lambda id: 1 / 0, lambda id: "not usable", lambda id: 7, lambda id: ""])
async def test_a_transform_that_fails_leaves_the_id_as_it_was(transform: Any) -> None:
    assert await effective(b"given-1", transform=transform) == "given-1"
    assert is_new(await effective(transform=transform))


@pytest.mark.parametrize(
    ("on_invalid", "status", "then"),
    [("replace", 200, "and was replaced by a new one"), ("reject", 400, "and the request was rejected")],
)
async def test_the_warning_says_what_became_of_the_request(
    on_invalid: Any, status: int, then: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "_quiet_until", 0.0)
    app = TrackingMiddleware(Echo(), TrackingRules(on_invalid=on_invalid))
    assert (await ask(app, [(b"x-request-id", b"a b")])).status == status
    [warning] = [record.getMessage() for record in caplog.records if record.name == "onebeat.tracking"]
    assert then in warning
