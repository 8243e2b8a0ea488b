"""The parser of cron expressions (dialect 1): it turns fields into bit masks and reports errors with a position."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple, NoReturn

from onebeat.errors import InvalidCron

DIALECT = 1  # stored with every rule; what an expression means never changes under a number
MAX_LENGTH = 256  # characters
MAX_ITEMS = 64  # list items in one field
ECHO = 60  # characters of the input a message repeats

MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_REFUSED = {
    "@reboot": "@reboot names no time; run such work when the application starts",
    "@every": "@every is no cron rule; use Every(seconds)",
}
_MONTHS = {
    "JAN": 1,
    "FEB": 2,
    "MAR": 3,
    "APR": 4,
    "MAY": 5,
    "JUN": 6,
    "JUL": 7,
    "AUG": 8,
    "SEP": 9,
    "OCT": 10,
    "NOV": 11,
    "DEC": 12,
}
_WEEKDAYS = {"SUN": 0, "MON": 1, "TUE": 2, "WED": 3, "THU": 4, "FRI": 5, "SAT": 6}

_ALLOWED = re.compile(r"[0-9A-Za-z*?/,\-#() \t@]*")
_WORD = re.compile(r"[^ \t]+")
_VALUE = r"(?:[0-9]{1,4}|[A-Z]{3})"
_ITEM = re.compile(
    rf"(?:(?P<all>\*|\?)|(?P<hash>H)(?:\((?P<hlow>{_VALUE})-(?P<hhigh>{_VALUE})\))?|(?P<low>{_VALUE})(?:-(?P<high>{_VALUE}))?)"
    r"(?:/(?P<step>[0-9]{1,4}))?"
)
_SPECIAL = re.compile(rf"(?P<last>L)(?:-(?P<back>[0-9]{{1,4}}))?(?P<nearest>W)?|(?P<work>[0-9]{{1,4}})W"
                      rf"|(?P<lastday>{_VALUE})L|(?P<day>{_VALUE})\#(?P<nth>[0-9]{{1,4}})")  # fmt: skip


class Field(NamedTuple):
    """One column: its name and bounds."""

    name: str
    low: int
    high: int
    top: int  # the largest distinct value: 7 is Sunday again
    hashed: int  # the largest value H takes
    wraps: bool = False  # 22-2 is a range
    names: Mapping[str, int] = {}


FIELDS = (
    Field("second", 0, 59, 59, 59),
    Field("minute", 0, 59, 59, 59),
    Field("hour", 0, 23, 23, 23, True),
    Field("day of the month", 1, 31, 31, 28),
    Field("month", 1, 12, 12, 12, True, _MONTHS),
    Field("day of the week", 0, 7, 6, 6, True, _WEEKDAYS),
)
SECOND, MINUTE, HOUR, DAY, MONTH, WEEKDAY = FIELDS


class Special(NamedTuple):
    """A day that depends on the month.

    `L`: `a` days before the last. `LW`: the working day nearest to that. `W`: the one nearest to day `a`.
    `#`: the `b`th weekday `a` (0: Sunday), the last one for -1.
    """

    kind: str
    a: int = 0
    b: int = 0


@dataclass(frozen=True, slots=True)
class Columns:
    """A parsed expression: a bit for each value; days that depend on the month apart."""

    text: str
    seconds: int
    minutes: int
    hours: int
    days: int
    months: int
    weekdays: int
    day_specials: tuple[Special, ...]
    weekday_specials: tuple[Special, ...]
    day_star: bool
    weekday_star: bool
    fixed: bool  # neither minute nor hour begins with *
    hashed: int | None  # where the first H stands, when it is not bound to a seed


@lru_cache(maxsize=1_024)
def parse(text: str, seed: str | None = None) -> Columns:
    """Read an expression of 5 fields, or 6 with seconds first, or a macro.

    Raises `InvalidCron` with the position of the fault, whatever the input, in bounded time and memory.

    >>> bin(parse("*/15 9 * * *").minutes).count("1")
    4
    """
    tokens = _tokens(text)
    at = tokens[0][0]
    columns = [(0, "0"), *tokens] if len(tokens) == 5 else tokens
    masks: list[int] = []
    specials: dict[str, list[Special]] = {DAY.name: [], WEEKDAY.name: []}
    reader = _FieldReader(text, seed)
    for (at, word), field in zip(columns, FIELDS, strict=True):
        masks.append(reader.field(field, word, at, specials.get(field.name)))
    stars = [word[0] in "*?" or (field.name in ("minute", "hour") and bool(re.match(r"H/", word)))
             for (_, word), field in zip(columns, FIELDS, strict=True)]  # fmt: skip
    return Columns(
        text=" ".join(word for _, word in tokens),
        seconds=masks[0],
        minutes=masks[1],
        hours=masks[2],
        days=masks[3],
        months=masks[4],
        weekdays=masks[5],
        day_specials=tuple(specials[DAY.name]),
        weekday_specials=tuple(specials[WEEKDAY.name]),
        day_star=stars[3],
        weekday_star=stars[5],
        fixed=not (stars[1] or stars[2]),
        hashed=reader.unbound,
    )


def refuse(text: str, position: int, why: str) -> NoReturn:
    """Raise `InvalidCron` with a clipped echo of the input and where the fault stands."""
    start = max(0, min(position - ECHO // 2, len(text) - ECHO))
    echo = text[start : start + ECHO]
    before, after = "…" if start else "", "…" if start + ECHO < len(text) else ""
    raise InvalidCron(f"cron {before}{echo!a:.100}{after}, at {position}: {why}", position=position)


def _tokens(text: str) -> list[tuple[int, str]]:
    if not isinstance(text, str):
        raise InvalidCron(f"a cron expression is text, not {type(text).__name__}", position=0)
    if len(text) > MAX_LENGTH:
        refuse(text, MAX_LENGTH, f"over {MAX_LENGTH} characters ({len(text)})")
    text = text.rstrip("\r\n")  # as a line of a file or of an environment variable ends
    allowed = _ALLOWED.match(text)
    if allowed is None or allowed.end() < len(text):
        at = allowed.end() if allowed else 0
        refuse(text, at, "only ASCII letters, digits, blanks and * ? / , - # ( ) @ may stand here")
    tokens = [(match.start(), match[0].upper()) for match in _WORD.finditer(text)]
    if not tokens:
        refuse(text, 0, "empty; write five fields: minute, hour, day of the month, month, day of the week")
    at, first = tokens[0]
    if first.startswith("@"):
        macro = MACROS.get(first.lower())
        if macro is None or len(tokens) > 1:
            refuse(text, at, _REFUSED.get(first.lower(), f"not one of {', '.join(MACROS)}"))
        return [(at, word) for word in macro.split()]
    if len(tokens) == 7:
        refuse(text, tokens[6][0], "seven fields; there is no year column, use .between(start, end)")
    if len(tokens) not in (5, 6):
        refuse(text, tokens[min(6, len(tokens) - 1)][0], f"{len(tokens)} fields; write 5, or 6 with seconds first")
    return tokens


class _FieldReader:
    """Parse the fields of one expression."""

    def __init__(self, text: str, seed: str | None) -> None:
        self.text = text
        self.seed = seed
        self.unbound: int | None = None

    def field(self, field: Field, word: str, at: int, specials: list[Special] | None) -> int:
        mask = 0
        items = word.split(",")
        if len(items) > MAX_ITEMS:
            refuse(self.text, at, f"{len(items)} items in the {field.name}; at most {MAX_ITEMS}")
        for index, item in enumerate(items):
            special = None if specials is None else self.special(field, item, at)
            if specials is not None and special:
                specials.append(special)
            else:
                mask |= self.item(field, item, at, index)
            at += len(item) + 1
        return mask

    def special(self, field: Field, item: str, at: int) -> Special | None:
        match = _SPECIAL.fullmatch(item)
        if match is None:
            return None
        of_month = bool(match["last"] or match["work"])
        if of_month and field is WEEKDAY:
            refuse(self.text, at, "L and W belong to the day of the month; the last Friday is 5L or FRIL")
        if not of_month and field is DAY:
            refuse(self.text, at, f"{item} belongs to the day of the week, the last field")
        if match["last"]:
            back = int(match["back"] or 0)
            if back > 30:
                refuse(self.text, at, "L-n counts back from the last day; n is at most 30")
            return Special("LW" if match["nearest"] else "L", back)
        if match["work"]:
            return Special("W", self.value(field, match["work"], at))
        weekday = self.value(field, match["lastday"] or match["day"], at) % 7
        if match["lastday"]:
            return Special("#", weekday, -1)
        if not 1 <= int(match["nth"]) <= 5:
            refuse(self.text, at, "a month has a first to a fifth weekday: #1 to #5")
        return Special("#", weekday, int(match["nth"]))

    def item(self, field: Field, item: str, at: int, index: int) -> int:
        match = _ITEM.fullmatch(item)
        if match is None:
            refuse(self.text, at, self.hint(field, item))
        if match["all"] == "?" and (field not in (DAY, WEEKDAY) or item != "?"):
            refuse(self.text, at, "? stands alone, in one of the two day fields")
        if match["hash"]:
            return self.hash(field, match, at, index)
        if match["all"]:
            low, high = field.low, field.top
        else:
            low = self.value(field, match["low"], at)
            high = self.value(field, match["high"], at) if match["high"] else low
            if match["step"] and not match["high"]:
                refuse(self.text, at, _step_of_one_value(field, low, int(match["step"])))
        if high < low:
            high = self.wrapped(field, low, high, at, stepped=match["step"] is not None)
        step = self.step(match["step"], high - low, field, at)
        return self.mask(field, low, high, step)

    def wrapped(self, field: Field, low: int, high: int, at: int, *, stepped: bool) -> int:
        if not field.wraps:
            instead = "" if stepped else f"; write `{low}-{field.top},{field.low}-{high}`"
            refuse(self.text, at, f"the range {low}-{high} runs backward; in the {field.name} it must ascend{instead}")
        if field is WEEKDAY and low == 7:
            return high + 7
        return high + field.top - field.low + 1

    def mask(self, field: Field, low: int, high: int, step: int) -> int:
        size = field.top - field.low + 1
        mask = 0
        for value in range(low, high + 1, step):
            mask |= 1 << (field.low + (value - field.low) % size)
        return mask

    def step(self, text: str | None, span: int, field: Field, at: int) -> int:
        if text is None:
            return 1
        step = int(text)
        if step == 0:
            refuse(self.text, at, "a step of 0 goes nowhere")
        if step > max(span, 1):
            refuse(self.text, at, f"the step {step} leaves the {field.name}'s range after one value")
        return step

    def value(self, field: Field, text: str, at: int) -> int:
        if text.isdigit():
            value = int(text)
            if field.low <= value <= field.high:
                return value
            refuse(self.text, at, f"{field.name} {value} is not within {field.low}-{field.high}")
        if text in field.names:
            return field.names[text]
        refuse(self.text, at, self.hint(field, text))

    def hash(self, field: Field, match: re.Match[str], at: int, index: int) -> int:
        low, high = field.low, field.hashed
        if match["hlow"]:
            low, high = self.value(field, match["hlow"], at), self.value(field, match["hhigh"], at)
            if high < low:
                refuse(self.text, at, f"the range {low}-{high} of H runs backward")
        step = self.step(match["step"], high - low, field, at) if match["step"] else None
        if self.seed is None:
            self.unbound = at if self.unbound is None else self.unbound
            number = 0
        else:
            key = f"onebeat.cron.{DIALECT}.{field.name}.{index}".encode()
            number = int.from_bytes(blake2b(self.seed.encode(), key=key, digest_size=8).digest(), "big")
        if step is None:
            return self.mask(field, low + number % (high - low + 1), low + number % (high - low + 1), 1)
        return self.mask(field, low + number % step, high, step)

    def hint(self, field: Field, item: str) -> str:
        if not item:
            return "an empty list item"
        if re.fullmatch(r"R(\(.*)?(/.*)?", item):
            return "R would differ in every process; H spreads by the schedule's id and agrees everywhere"
        if field is WEEKDAY and item.startswith("L"):
            return "the last Friday is written 5L or FRIL"
        if re.search(r"[0-9]{5}", item):
            return "a number has at most four digits"
        short = f"; write `{item[:3]}`" if item.isalpha() and item[:3] in field.names else ""
        return f"{item[:20]!r} is nothing a {field.name} can be{short}"


def _step_of_one_value(field: Field, low: int, step: int) -> str:
    """Say what to write for `7/15`: a range, or the one value when the step leads out of the field."""
    if step == 0:
        return "a step of 0 goes nowhere"
    if low + step > field.top:
        return f"a step needs a range, and no {field.name} comes {step} after {low}; write `{low}`"
    return f"a step needs a range: `{low}-{field.top}/{step}` counts from {low}, `*/{step}` from {field.low}"
