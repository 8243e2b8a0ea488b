"""Random records, as hostile as they come: every one must be one line of JSON within the limits."""

from __future__ import annotations

import decimal
import json
import logging
import math
import random
import sys
from collections.abc import Callable
from typing import Any

from onebeat.logs.failure import RECORD_LIMIT, finished
from onebeat.logs.record import RecordEncoder
from onebeat.logs.text import TextView
from onebeat.tracking.context import tracking

_ALPHABETS = [
    "abc xyz",
    '"\\/%{}[]:,',
    "\x00\x07\x1b\r\n\t\x7f",
    "\x80\x85\x9b\xa0",
    "éß漢😀",
    "\ud800\udfff",
    "\u2028\u202e\u200b\ufeff",
    "%s %d %(a)s",
]


class Grumpy:
    def __str__(self) -> str:
        raise ValueError("no")

    def __repr__(self) -> str:
        raise KeyError("no")


class Liar(str):
    def __str__(self) -> str:
        raise ValueError("I am a text")

    def __len__(self) -> int:
        return -1


class Odd(dict[Any, Any]):
    def items(self) -> Any:
        raise RuntimeError("no items")


def text(chance: random.Random) -> str:
    letters = chance.choice(_ALPHABETS) + chance.choice(_ALPHABETS)
    some = "".join(chance.choices(letters, k=chance.choice([0, 1, 5, 20])))
    return some * (500 if chance.random() < 0.01 else 1)


_SIMPLE: list[Callable[[random.Random], Any]] = [
    lambda _: None,
    lambda _: True,
    lambda chance: chance.randrange(-5, 5),
    lambda chance: chance.getrandbits(chance.choice([8, 64, 200])),
    lambda chance: chance.random(),
    lambda _: math.nan,
    lambda _: -math.inf,
    text,
    text,
    lambda chance: text(chance).encode("utf-8", "surrogatepass"),
    lambda _: Grumpy(),
    lambda _: Liar("liar"),
    lambda _: decimal.Decimal("1.5"),
    lambda chance: ValueError(text(chance)),
    lambda _: object,
    lambda _: 10**4400,
]


def value(chance: random.Random, depth: int = 0) -> Any:
    pick = chance.randrange(22 if depth < 4 else 16)
    if pick < 16:
        return _SIMPLE[pick](chance)
    items = [value(chance, depth + 1) for _ in range(chance.randrange(4))]
    if pick == 16:
        items.append(items)
    if pick < 19:
        return items
    if pick == 19:
        return Odd(a=1)
    return {key(chance): item for item in items}


def key(chance: random.Random) -> Any:
    return chance.choice([text(chance), "password", "user_id", "ts", "msg", "exc", "a", 5, None, (1, 2), Liar("k")])


def record(chance: random.Random) -> logging.LogRecord:
    made = logging.LogRecord("shop", chance.choice([10, 20, 30, 40, 50]), __file__, 1, text(chance), None, None, "f")
    made.args = chance.choice([None, (), (value(chance),), (value(chance), value(chance)), {"a": value(chance)}])
    if chance.random() < 0.3:
        made.msg = value(chance)
    for _ in range(chance.randrange(5)):
        made.__dict__[key(chance)] = value(chance)
    if chance.random() < 0.01:
        made.__dict__.update({f"{text(chance)}{number}": text(chance) for number in range(chance.randrange(2_000))})
    if chance.random() < 0.2:
        try:
            raise chance.choice([ValueError, KeyError, OSError])(value(chance)) from chance.choice(
                [None, RuntimeError(text(chance))]
            )
        except Exception:
            made.exc_info = sys.exc_info()
    if chance.random() < 0.1:
        name = chance.choice(
            ["name", "levelname", "created", "lineno", "process", "threadName", "funcName", "pathname", "exc_text"]
        )
        made.__dict__[name] = value(chance)
    return made


def without_two_of_one_name(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The mapping; no reader of JSON may have to choose."""
    assert len({name for name, _ in pairs}) == len(pairs), pairs
    return dict(pairs)


def main(count: int, *, seed: int) -> int:
    """How many of `count` records became one line that parses and keeps the limits."""
    chance = random.Random(seed)
    encoder, view = RecordEncoder(), TextView({}, colour=False)
    good = 0
    for _ in range(count):
        one = record(chance)
        with tracking(None, bound=value(chance)):
            _, _, line, failure = encoder.encode(one)
        whole = finished(line, failure)
        assert len(whole) <= RECORD_LIMIT, whole[:200]
        assert whole.endswith(b"\n"), whole[:200]
        assert len(whole.decode().splitlines()) == 1, whole[:200]
        assert isinstance(json.loads(whole, object_pairs_hook=without_two_of_one_name), dict)
        if good % 10 == 0:
            assert "\x1b" not in view.render(whole)
        good += 1
    return good
