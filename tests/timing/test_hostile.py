"""Whatever text comes in: read or refused with one clear error, in bounded time and memory."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings, strategies as st

from onebeat.errors import InvalidCron
from onebeat.timing.cron import expression
from onebeat.timing.cron_parser import MAX_LENGTH, parse
from onebeat.timing.triggers import Cron

START = datetime(2026, 3, 29, tzinfo=UTC)
MOST_TIME = 0.05  # seconds of the processor
MOST_MEMORY = 1_000_000  # bytes

HOSTILE: dict[str, Callable[[], str]] = {
    "ones": lambda: "1," * 10**5,
    "stars": lambda: "*," * 10**6,
    "ranges": lambda: "0-59," * 10**5,
    "digits": lambda: "9" * 5_000,
    "zeros": lambda: "0" * 10**6 + "1",
    "letters": lambda: "a" * 10**6,
    "fields": lambda: "* " * 10**6,
    "blanks": lambda: " " * 10**6,
    "slashes": lambda: "/" * 10**5,
    "dashes": lambda: "-" * 10**5,
    "hashes": lambda: "#" * 10**5,
    "open": lambda: "H(" * 10**5,
    "astral": lambda: "\U0001f600" * 10**5,
    "surrogates": lambda: "\ud800" * 10**5,
    "long list within the length": lambda: ",".join(["1"] * 65) + " * * * *",
    "many items": lambda: ",".join(["*/2"] * 60),
    "H list": lambda: ",".join(["H(0-5)/2"] * 26) + " * * * *",
    "specials": lambda: "0 0 " + ",".join(["L-30"] * 20) + " 2 " + ",".join(["1#5"] * 20),
    "specials that can happen": lambda: "0 0 " + ",".join(["15W", "LW", "L-3"] * 14) + " * " + ",".join(["1#5"] * 24),
}
ATOMS = [*"*?LW/-,H()#@R0157 \t٣０\u00a0\u2028\ud800\x00"]
ATOMS += ["LW", "15W", "31W", "1#5", "FRI#2", "5L", "L-30", "*/2", "*/31", "H/2", "H(0-5)/2", "0-59", "0-59/59"]
ATOMS += ["1-31/30", "22-2", "NOV-FEB", "29", "31", "@daily", "@reboot", "9999", "00000"]
FIELDS = [
    ["*", "0", "*/7", "0-59/2", "H", "H/15", "H(0-29)/10", "59"],
    ["*", "2", "*/5", "22-2", "H", "0"],
    ["*", "?", "L", "LW", "L-30", "31W", "31", "*/31", "29", "H", "H(29-31)"],
    ["*", "2", "FEB", "NOV-FEB", "*/11", "H"],
    ["*", "?", "1#5", "5L", "FRI#2", "7", "6-1", "H", "0#1"],
]


MANY = [*ATOMS, "* "]
TIMES = [10, 64, 256, 10_000, 1_000_000]


def made_up(rng: random.Random) -> str:
    """Heaps of what the dialect knows, one thing a million times, long lists in every field, and plain noise."""
    kind = rng.random()
    if kind < 0.25:
        return "".join(rng.choice(ATOMS) for _ in range(rng.randint(0, 90)))
    if kind < 0.3:
        one, times = rng.choice(MANY), rng.choice(TIMES)
        return "".join([one] * times)
    if kind < 0.4:
        return "".join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(0x110000)])) for _ in range(300))
    columns = [",".join(rng.choice(field) for _ in range(rng.choice([1, 1, 2, 5, 20, 60]))) for field in FIELDS]
    text = " ".join([columns[0], *columns] if rng.random() < 0.3 else columns)
    if rng.random() < 0.3:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(ATOMS) + text[at + 1 :]
    return text[:MAX_LENGTH] if rng.random() < 0.5 else text


def read(text: str) -> Cron | None:
    """As if for the first time; what is refused is refused with a short, printable message and a position."""
    parse.cache_clear()
    expression.cache_clear()
    try:
        return Cron(text, "Europe/Berlin").bind("seed")
    except InvalidCron as error:
        fault = error
    assert len(str(fault)) < 400
    assert str(fault).isprintable()
    assert 0 <= fault.position <= MAX_LENGTH
    return None


def costs(text: str) -> tuple[float, int]:
    """Processor seconds (the best of three) and peak bytes of reading the text."""
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        read(text)
        best = min(best, time.process_time() - started)
        if best < MOST_TIME / 10:
            break
    tracemalloc.start()
    read(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return best, peak


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_input_costs_neither_time_nor_memory(name: str) -> None:
    seconds, peak = costs(HOSTILE[name]())
    assert seconds < MOST_TIME
    assert peak < MOST_MEMORY


def campaign(cases: int, seed: int) -> tuple[int, float, int]:
    """How many were accepted, and the worst time and memory of one text."""
    rng = random.Random(seed)
    accepted, slowest, largest = 0, 0.0, 0
    for _ in range(cases):
        text = made_up(rng)
        seconds, peak = costs(text)
        slowest, largest = max(slowest, seconds), max(largest, peak)
        assert seconds < MOST_TIME, text[:300]
        assert peak < MOST_MEMORY, text[:300]
        cron = read(text)
        if cron is not None:
            accepted += 1
            following = cron.next_after(START)
            assert following is not None, text
            assert following.astimezone(UTC) > START
            assert cron.describe().replace("\n", "").isprintable()
    return accepted, slowest, largest


@pytest.mark.timeout(300)
def test_no_made_up_text_costs_more() -> None:
    accepted, _, _ = campaign(1_000, seed=1)
    assert accepted > 30


@pytest.mark.soak
@pytest.mark.timeout(3_600)
def test_no_text_of_a_hundred_thousand_costs_more() -> None:
    seed = random.randrange(1 << 32)
    accepted, slowest, largest = campaign(100_000, seed)
    print(f"seed {seed}: {accepted} accepted; at most {slowest * 1000:.2f} ms and {largest} bytes")


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.text(max_size=300), st.text("0123456789*/,-#?LWH() \tJANMON@", max_size=80)))
def test_any_text_is_read_or_refused_and_nothing_else(text: str) -> None:
    cron = read(text)
    assert cron is None or cron.next_after(START) is not None


@pytest.mark.parametrize("value", [None, 5, b"* * * * *", ["*"]])
def test_what_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(InvalidCron, match="is text"):
        Cron(value)  # type: ignore[arg-type]  # the wrong types are the point
