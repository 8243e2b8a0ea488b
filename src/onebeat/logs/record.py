"""The JSON line of a log record, in a documented schema. The calling thread builds it, whatever the record holds."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, Final

from onebeat.logs.access import UVICORNS, recognised
from onebeat.logs.encoder import decode, encode, quote, to_json, to_line
from onebeat.logs.factory import Record
from onebeat.logs.failure import Failure, captured
from onebeat.logs.filter import Noted, arrived_id, unit_of
from onebeat.logs.plain import FIELD_LIMIT, clip, described, kind, plain, shown
from onebeat.logs.queue import Entry
from onebeat.logs.redact import REDACTED, SAFE_LENGTH, SECRET_WORDS, Redactor, suspicious, without_secrets
from onebeat.logs.shrink import LINE_LIMIT, shrunk
from onebeat.tracking.context import VARIABLE, Tracking
from onebeat.tracking.otel import active_span

ALWAYS: Final = ("ts", "level", "logger", "msg", "tracking_id", "src", "func", "pid", "process", "thread")
"""Fields that every record has; null where there is nothing to say."""

SCHEMA: Final = (
    *ALWAYS, "unit", "unit_id", "parent_id", "client_id", "trace_id", "span_id", "unit_closed",
    "job_id", "task", "attempt", "queue", "schedule_id", "fire_time", "exc", "stack",
)  # fmt: skip  # one name a line would be longer, not clearer
"""All fields of the library's own; any other is the user's."""

MESSAGE_LIMIT: Final = 32 * 1024  # characters
_NESTED = 3  # log calls inside a __str__ inside a log call …; deeper ones are not formatted

_STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"taskName"}
_STANDARD_COUNT = len(logging.LogRecord("", 0, "", 0, "", (), None).__dict__)
_UNWANTED = _STANDARD | {"message", "asctime", "color_message"}
_KNOWN = frozenset((logging.LogRecord, Record))
_SCALARS = frozenset((str, int, float, bool, type(None)))
_place = itemgetter("name", "levelname", "pathname", "lineno", "funcName", "process", "processName", "threadName")
_current = VARIABLE.get
_DIGITS = tuple(f"{number:03}" for number in range(1000))
_SMALL = (1 << 30) - 1  # Python compares such numbers at once; larger ones take the longer way
_REMEMBERED = 2_000  # places in the code, and names of fields


_UnitText = tuple[str, frozenset[str]]  # JSON that begins with a comma, and the names in it
_NOTHING: frozenset[str] = frozenset()


class RecordEncoder:
    """Makes entries for the queue. Reads the tracking context and every argument now, so that nothing changes later.

    `fields` renames fields of the schema (`{"ts": "@timestamp"}`) or leaves them out (`{"func": None}`).
    `redact` are the words that make a key secret; `constants` are fields that every record has. Never raises.
    """

    def __init__(
        self,
        *,
        fields: Mapping[str, str | None] | None = None,
        redact: Iterable[str] = SECRET_WORDS,
        constants: Mapping[str, Any] | None = None,
    ) -> None:
        self.names = dict(fields or {})
        self._secret = Redactor(redact)
        self._constants = dict(constants or {})
        self._taken = frozenset(self._name(field) for field in (*ALWAYS, "exc", "stack")) | self._constants.keys()
        self._no_unit = (self._pairs((("tracking_id", None),)), _NOTHING)
        self._open = f'{{{quote(self._name("ts"))}:"'
        self._second = self._stamp(0)
        self._sites: dict[Any, tuple[str, str]] = {}
        self._clean: dict[str, bool] = {}
        self._leads: dict[str, str] = {}  # of fields that are no secret and need no other name: ',"user_id":'
        self._nesting = threading.local()

    def encode(self, record: logging.LogRecord) -> Entry:
        """The record's moment, level and line, with its exception if it has one."""
        try:
            attributes = record.__dict__
            place = _place(attributes)
            site = self._sites.get(place)
            if site is None:
                if place[0] == UVICORNS:
                    record = recognised(record)
                    attributes = record.__dict__
                site = self._site(place)
            head, tail = site
            created = record.created
            second, stamp = self._second
            micros = int((created - second) * 1_000_000)
            if not 0 <= micros < 1_000_000:
                second, stamp = self._second = self._stamp(created)
                micros = int((created - second) * 1_000_000)
            message, args = record.msg, record.args
            if type(message) is str:
                clean = self._clean.get(message)  # most messages are a constant of the code
                if clean is None:
                    clean = self._remembered(message)
                if args:
                    try:
                        for arg in args if type(args) is tuple else (args,):
                            if type(arg) is str:
                                if len(arg) >= SAFE_LENGTH:
                                    clean = False
                            elif type(arg) not in _SCALARS:  # formatting it may run any code
                                message = self._merged(record)
                                clean = False
                                break
                        else:
                            message = message % args
                    except Exception:  # noqa: BLE001 - arguments that do not fit the message: both are shown
                        message = self._merged(record)
                        clean = False
            else:
                message = self._merged(record)
                clean = False
            if not clean and (len(message) > MESSAGE_LIMIT or suspicious(message)):
                message = without_secrets(clip(message, MESSAGE_LIMIT))
            failed = record.exc_info or record.exc_text or record.stack_info
            unit, taken = self._no_unit
            found = _current()
            if "tracking_id" in attributes:
                if (arrived := arrived_id(record)) is not None:
                    found, unit = None, self._pairs((("tracking_id", arrived),))
                else:
                    found = unit_of(record)
            elif failed if found is None else found.cell.closed:
                found = unit_of(record)  # it came with an exception, or may be over
            if found is not None:
                unit, taken = self._unit(found)
            extras = self._extras(record, attributes, taken, found) if len(attributes) > _STANDARD_COUNT else ""
            failure = None
            if failed:
                rest, failure = self._failure(record)
                extras += rest
            milli, micro = _DIGITS[micros // 1000], _DIGITS[micros % 1000]
            text = f"{stamp}{milli}{micro}{head}{quote(message)}{unit}{tail}{extras}}}\n"
            line = text.encode() if text.isascii() and "\x7f" not in text else to_line(text)
            if len(line) > LINE_LIMIT:
                line = encode(shrunk(decode(line), message=self._name("msg"), kept=self._taken))
            return created, record.levelno, line, failure
        except Exception as error:  # noqa: BLE001 - a record that cannot be encoded must neither raise nor vanish
            return self._last_resort(record, error)

    def losses(self, lost: Mapping[int, int], sink: str) -> Entry:
        """The record that tells how many lines a sink could not take, by level."""
        counts = {logging.getLevelName(level): count for level, count in sorted(lost.items())}
        record = logging.LogRecord("onebeat.logs", logging.WARNING, __file__, 0, "", (), None, "losses")
        record.msg = f"{sum(lost.values())} log records were dropped: the {sink} could not keep up"
        record.__dict__.update(dropped=counts, sink=sink)
        return self.encode(record)

    # ── the way of nearly every record: text put together from fragments that repeat ──────────────────────────────────
    def _merged(self, record: logging.LogRecord) -> str:
        """The message with its arguments; formatting that fails shows both instead."""
        depth = getattr(self._nesting, "depth", 0)
        if depth >= _NESTED:
            return record.msg if type(record.msg) is str else f"<{kind(record.msg)}>"
        self._nesting.depth = depth + 1
        try:
            if not record.args and isinstance(record.msg, (Mapping, list, tuple, set)):
                return described(plain(record.msg, self._secret))  # as it would be shown, without its secrets
            return str.__str__(record.getMessage())
        except Exception:  # noqa: BLE001 - wrong arguments, or a __str__ that raises: the record is worth more than its form
            return f"{described(record.msg)} {shown(record.args)}"
        finally:
            self._nesting.depth = depth

    def _remembered(self, message: str) -> bool:
        """Whether nothing in the message itself is suspicious; remembered, as long as there are not too many."""
        clean = len(message) < MESSAGE_LIMIT // 2 and not suspicious(message)
        if len(self._clean) < _REMEMBERED and len(message) <= 256:
            self._clean[message] = clean
        return clean

    def _site(self, place: tuple[Any, ...]) -> tuple[str, str]:
        """What a place in the code repeats with each of its records: level and logger; source, process and thread.

        Those of a server's access log stand under another key, so that none of its records passes without `recognised`.
        """
        logger, level, path, line, function, pid, process, thread = place
        key = (*place, "recognised") if logger == UVICORNS else place
        site = self._sites.get(key)
        if site is None:
            if len(self._sites) > _REMEMBERED:
                self._sites.clear()
            head = self._pairs((("level", level), ("logger", logger)))
            tail = (("src", f"{_short(path)}:{line}"), ("func", function), ("pid", pid))
            more = (("process", process), ("thread", thread))
            site = self._sites[key] = (
                f'Z"{head},{quote(self._name("msg"))}:',
                self._pairs(tail + more) + self._fixed(),
            )
        return site

    def _fixed(self) -> str:
        """Return the constants as JSON. Those of a record's own under such a name get an underscore."""
        values = self._constants.items()
        return "".join(
            f",{quote(key)}:{self._json(REDACTED if self._secret(key, value) else value)}" for key, value in values
        )

    def _stamp(self, created: float) -> tuple[int, str]:
        """The second, and how each line begins that is of it: RFC 3339, UTC."""
        second = int(created // 1)
        return second, f"{self._open}{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(second))}."

    def _pairs(self, values: Iterable[tuple[str, Any]]) -> str:
        """Fields of the schema as JSON, under the names the user wants, each led by a comma."""
        names = self.names
        secret = self._secret
        return "".join(
            f",{quote(name)}:{to_json(plain(value, secret))}"
            for key, value in values
            if (name := names.get(key, key)) is not None
        )

    def _name(self, field: str) -> str:
        return self.names.get(field) or field

    def _unit(self, unit: Tracking) -> _UnitText:
        """The unit's ids, its trace, and the fields bound to it; the names they take."""
        cell = unit.cell
        span = active_span() or cell.span  # spans change within a unit
        memo = cell.memo
        if (
            memo is None
            or memo[0] is not self
            or memo[2] is not cell.fields
            or memo[3] is not cell.closed
            or memo[4] != span
        ):
            fields, closed = cell.fields, cell.closed
            memo = cell.memo = (self, self._unit_text(unit), fields, closed, span)
        text: _UnitText = memo[1]
        return text

    def _unit_text(self, unit: Tracking) -> _UnitText:
        values = unit.identity()
        text = self._pairs(values.items())
        used = {self._name(field) for field in values}
        for key, value in unit.fields.items():
            text += self._extra(key, value, unit.fields, used)
        return text, frozenset(used)

    def _extras(
        self, record: logging.LogRecord, attributes: dict[str, Any], taken: frozenset[str], unit: Tracking | None
    ) -> str:
        """The user's own fields: without secrets, within limits, under another name if theirs is taken.

        What repeats a field of the unit with an equal value is left out.
        """
        text = ""
        leads = self._leads
        used: set[str] | None = None
        for key, value in reversed(attributes.items()):
            lead = leads.get(key)
            if lead is None or key in taken:
                if key in _STANDARD:
                    if type(record) in _KNOWN:
                        break  # what is added to a record stands behind what every record has
                    continue
                if unit is not None and key in SCHEMA and unit.identity().get(key) == value:
                    continue
                if key not in _UNWANTED and type(value) is not Noted and not _is_arrived(key, record):
                    if used is None:
                        used = set(taken)
                    text = self._extra(key, value, attributes, used) + text
            elif type(value) is str and (
                len(value) < SAFE_LENGTH or (len(value) <= FIELD_LIMIT and not suspicious(value))
            ):
                text = f"{lead}{quote(value)}{text}"
            elif type(value) is int and -_SMALL <= value <= _SMALL:
                text = f"{lead}{value}{text}"
            else:
                text = f"{lead}{self._json(value)}{text}"
        return text

    def _extra(self, key: Any, value: Any, others: Mapping[str, Any], used: set[str]) -> str:
        """A field seen for the first time, a secret, or one whose name is taken or left out; its name is used then."""
        name = key if type(key) is str and len(key) <= 256 else clip(described(key), 256)
        if self._secret(name, value):
            value = REDACTED
        renamed = self.names.get(name, name)
        if renamed is None:
            return ""
        free = renamed
        while free in self._taken or free in used or (free != key and free in others):
            free += "_"
        used.add(free)
        lead = f",{quote(free)}:"
        if free == key and not self._secret(name, "") and len(self._leads) < _REMEMBERED:
            self._leads[name] = lead
        return lead + self._json(value)

    def _json(self, value: Any) -> str:
        return to_json(plain(value, self._secret))

    def _failure(self, record: logging.LogRecord) -> tuple[str, Failure | None]:
        """The stack, and last the place where the writer will render the exception."""
        text = self._pairs((("stack", described(record.stack_info)),)) if record.stack_info else ""
        name = self.names.get("exc", "exc")
        if name is None:
            return text, None
        info = record.exc_info
        if isinstance(info, tuple) and len(info) == 3 and isinstance(info[1], BaseException):
            return f"{text},{quote(name)}:null", captured(info[1], info[2])
        if record.exc_text:  # rendered by someone before us (a stock queue handler)
            value = {"type": None, "msg": None, "text": clip(without_secrets(described(record.exc_text)))}
            return f"{text},{quote(name)}:{to_json(value)}", None
        return text, None

    # ── the way of records that are too large or too strange ──────────────────────────────────────────────────────────
    def _last_resort(self, record: logging.LogRecord, error: Exception) -> Entry:
        """A record whose own attributes are no text and no numbers."""
        attributes = vars(record)
        created = attributes.get("created")
        created = created if isinstance(created, (int, float)) and 0 <= created < 1e11 else time.time()
        level = attributes.get("levelno")
        values = {
            "ts": datetime.fromtimestamp(created, UTC).isoformat(timespec="microseconds")[:-6] + "Z",
            "level": described(attributes.get("levelname")),
            "logger": described(attributes.get("name")),
            "msg": clip(without_secrets(described(attributes.get("msg")))),
            "tracking_id": None if (unit := _current()) is None else unit.tracking_id,
            "src": f"{described(attributes.get('pathname'))}:{described(attributes.get('lineno'))}",
            "func": described(attributes.get("funcName")),
            "pid": plain(attributes.get("process"), self._secret),
            "process": described(attributes.get("processName")),
            "thread": described(attributes.get("threadName")),
            "encoding_error": clip(f"{kind(error)}: {described(error)}", 512),
        }
        values = {key: clip(value, 1024) if isinstance(value, str) else value for key, value in values.items()}
        names = self.names
        renamed = {name: value for key, value in values.items() if (name := names.get(key, key)) is not None}
        renamed |= {key: value for key, value in self._constants.items() if not self._secret(key, value)}
        return created, level if isinstance(level, int) else logging.ERROR, encode(renamed), None


def _is_arrived(key: Any, record: logging.LogRecord) -> bool:
    """Whether this is the tracking id of a record from another process, which is no field of the user's."""
    return key == "tracking_id" and arrived_id(record) is not None


def _short(path: object) -> str:
    """Return the file as it is imported, `shop/mail.py`, whether the server was given its folder as a path or as ""."""
    text = clip(described(path), 1024)
    whole = _absolute(text)
    roots = {_absolute(root or ".").rstrip("/\\") + "/" for root in sys.path if isinstance(root, str)}
    found = [root for root in roots if whole.startswith(root)]
    return whole[len(max(found, key=len)) :] if found else text


def _absolute(path: str) -> str:
    if path.startswith("<"):  # code without a file
        return path
    try:
        return os.path.abspath(path)
    except (OSError, ValueError):  # the working directory is gone, or this is no path
        return path
