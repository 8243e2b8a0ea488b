"""W3C trace context, in and out."""

from __future__ import annotations

import pytest

from onebeat.tracking import TrackingMiddleware, outgoing_headers, tracking
from onebeat.tracking.context import VARIABLE, Cell, Tracking
from onebeat.tracking.traceparent import Trace, read, read_state
from tests.tracking.asgi import Echo, ask

ID, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{ID}-{SPAN}-01"


async def test_the_trace_id_is_the_tracking_id_where_no_header_gave_one() -> None:
    echo = Echo()
    app = TrackingMiddleware(echo)
    reply = await ask(app, [(b"traceparent", GOOD.encode()), (b"tracestate", b"a=1, b=2")])
    assert reply.id == ID
    assert echo.seen.origin == "traceparent"
    assert echo.seen.trace == Trace(ID, SPAN, "01", "a=1,b=2")
    assert echo.seen.identity()["trace_id"] == ID
    assert dict(echo.headers)[b"traceparent"] == GOOD.encode()

    both = await ask(app, [(b"traceparent", GOOD.encode()), (b"x-request-id", b"mine")])
    assert both.id == "mine"
    assert echo.seen.identity()["trace_id"] == ID

    odd = await ask(app, [(b"traceparent", GOOD.encode()), (b"x-request-id", b"a b")])
    assert odd.id == ID


@pytest.mark.parametrize(
    "value",
    [
        GOOD.upper(),
        GOOD.replace("00-", "ff-", 1),
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{ID}-{'0' * 16}-01",
        GOOD[:-1],
        GOOD + "0",
        GOOD + "-extra",
        GOOD + "\n",
        "\n" + GOOD,
        GOOD.replace("-01", "-0g"),
        GOOD.replace("-", "_"),
        "",
        "01" + GOOD[2:] + "x",
        "0" + GOOD,
        GOOD.replace("4b", "4B"),
        "cc" + GOOD[2:] + "-" + "a" * 500,
        GOOD + "\x00",
    ],
)
def test_a_wrong_traceparent_is_as_if_absent(value: str) -> None:
    assert read([value.encode()], [b"a=1"]) is None


def test_two_of_them_are_none_also_when_equal() -> None:
    assert read([GOOD.encode(), GOOD.encode()]) is None
    assert read([]) is None


def test_a_version_to_come_is_read_as_far_as_it_is_known() -> None:
    for value in ("01" + GOOD[2:], "01" + GOOD[2:] + "-what-comes-later", "fe" + GOOD[2:] + "-"):
        assert read([value.encode()]) == Trace(ID, SPAN, "01")


@pytest.mark.parametrize(
    "lines",
    [
        [",".join(f"k{n}=v" for n in range(33))],
        ["a=1,b=2,a=3"],
        ["a=1", "a=2"],
        ["a=" + "x" * 9000],
        ["a"],
        ["=1"],
        ["A=1"],
        ["a=b=c"],
        ["a=\x1b"],
        ["a=é"],
        ["a=1 ,b="],
        [",", ","],
        ["a=1\n"],
        ["a=" + "x" * 257],
    ],
)
def test_a_wrong_tracestate_is_dropped_as_a_whole_and_the_traceparent_stays(lines: list[str]) -> None:
    found = read([GOOD.encode()], [line.encode() for line in lines])
    assert found == Trace(ID, SPAN, "01", None)


def test_a_right_tracestate_is_kept_in_its_order() -> None:
    lines = [",".join(f"k{n}=v{n}" for n in range(31)), "tenant@vendor=x y"]
    assert read_state([line.encode() for line in lines]) == ",".join(lines)


async def test_calls_made_from_a_request_have_its_trace_a_new_span_and_its_flags() -> None:
    found: list[dict[str, str]] = []

    async def app(scope: object, receive: object, send: object) -> None:
        found.extend([outgoing_headers(), outgoing_headers(header="X-Correlation-ID")])

    with pytest.raises(IndexError):  # this app answers nothing
        await ask(TrackingMiddleware(app), [(b"traceparent", GOOD.encode()), (b"tracestate", b"a=1")])
    first, second = found
    assert first["X-Request-ID"] == second["X-Correlation-ID"] == ID
    sent = read([first["traceparent"].encode()], [first["tracestate"].encode()])
    again = read([second["traceparent"].encode()])
    assert sent is not None
    assert again is not None
    assert (sent.trace_id, sent.flags, sent.state) == (ID, "01", "a=1")
    assert len({sent.span_id, again.span_id, SPAN}) == 3


def test_without_a_trace_none_is_invented_and_outside_a_unit_there_is_nothing() -> None:
    assert outgoing_headers() == {}
    with tracking("order-7"):
        assert outgoing_headers() == {"X-Request-ID": "order-7"}


async def test_the_httpx_hooks_add_what_the_caller_did_not_set() -> None:
    import httpx

    from onebeat.tracking import async_httpx_hook, httpx_hook

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=request.headers.get_list("x-request-id"))

    transport = httpx.MockTransport(answer)
    with tracking("order-7"):
        with httpx.Client(transport=transport, event_hooks={"request": [httpx_hook]}) as client:
            assert client.get("http://x").json() == ["order-7"]
            assert client.get("http://x", headers={"x-request-id": "mine"}).json() == ["mine"]
        async with httpx.AsyncClient(transport=transport, event_hooks={"request": [async_httpx_hook]}) as other:
            assert (await other.get("http://x")).json() == ["order-7"]


def test_a_traceparent_of_the_caller_keeps_its_own_state_or_none() -> None:
    import httpx

    from onebeat.tracking import httpx_hook

    unit = Tracking("order-7", "task", "u", Cell(), trace=Trace("4" * 32, "5" * 16, "01", "ours=1"))
    token = VARIABLE.set(unit)
    try:
        request = httpx.Request("GET", "http://shop", headers={"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})
        httpx_hook(request)
    finally:
        VARIABLE.reset(token)
    assert request.headers["traceparent"] == f"00-{'a' * 32}-{'b' * 16}-01"
    assert "tracestate" not in request.headers
    assert request.headers["x-request-id"] == "order-7"
